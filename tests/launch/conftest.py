"""A BUSI of simulated images and a random model of 64 px, prepared and encoded once through the run's own functions."""

import shutil
from pathlib import Path

import pytest

from launch.config import RunConfig, load_config
from launch.prepare import encode_databases, prepare_databases
from tests.data.busi_fixture import write_busi
from tests.tiny_random_model import write_tiny_random_model

CONFIG = """\
run: {folder}/run
model: {{base: {folder}/model}}
databases:
  busi: {{kind: busi, root: {folder}/Dataset_BUSI_with_GT}}
prepare: {{validation_fraction: 0.2, test_fraction: 0.2}}
optimizer: {{lr: 1.0e-3, warmup_steps: 5}}
batch: {{global_size: 8, micro_size: 4}}
checkpoint: {{save_every_steps: null}}
validation: {{every_steps: 10, num_samples: 3, timesteps_per_sample: 3}}
preview: {{every_steps: 10, sampling: {{steps: 2}}}}
stages:
  - {{name: busi, databases: [busi], steps: 20}}
"""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file whose run is prepared and encoded. Tests train into folders of their own."""
    return prepare_run(tmp_path_factory.mktemp("launch"))


def prepare_run(folder: Path) -> Path:
    """Write model, images, manifest and shards to `folder`; return the configuration file."""
    write_tiny_random_model(folder / "model")
    write_busi(folder, num_per_label=8)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    config = load_config(path)
    prepare_databases(config)
    encode_databases(config)
    return path


@pytest.fixture
def fresh(prepared: Path, tmp_path: Path) -> Path:
    """A copy of `prepared` that a test may damage; its own folder is `fresh.parent`."""
    shutil.copytree(prepared.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "config.yaml"
    path.write_text(CONFIG.format(folder=path.parent), encoding="utf-8")
    return path


def own_run(config: RunConfig, folder: Path) -> RunConfig:
    """Return `config` with its shards, training into `folder`."""
    return config.model_copy(update={"shards": config.shards_path, "run": folder})
