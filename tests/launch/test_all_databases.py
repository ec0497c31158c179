"""Every kind of database goes all the way: prepare, encode, ten steps of training."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from data.manifest import PALETTE
from launch.config import load_config
from launch.databases import kinds
from launch.prepare import encode_databases, prepare_databases
from launch.step_log import read_steps
from tests.data.busi_fixture import write_busi
from tests.data.quality.planted import picture, write_table
from tests.tiny_random_model import write_tiny_random_model


def settings_of(kind: str, folder: Path) -> dict[str, object]:
    """Return the configuration of a database of `kind`, whose files are written to `folder`."""
    folder.mkdir()
    if kind == "simulated":
        return {"kind": kind, "preset": "fetal", "count": 12, "size": 64}
    if kind == "manifest":
        for index in range(12):
            picture(index, 64)[0].save(folder / f"{index}.png")
        return {"kind": kind, "path": str(write_table(folder, [{"image": f"{i}.png"} for i in range(12)]).path)}
    if kind == "busi":
        return {"kind": kind, "root": str(write_busi(folder))}
    name = kind.replace("-", "_")
    write = getattr(import_module(f"tests.data.databases.fixtures.{name}"), f"write_{name}")
    return {"kind": kind, "root": str(write(folder))}


@pytest.mark.slow
def test_every_kind_trains(tmp_path: Path) -> None:
    write_tiny_random_model(tmp_path / "model")
    databases = {kind.replace("-", "_"): settings_of(kind, tmp_path / kind) for kind in kinds()}
    assert len(databases) == 14
    content = {
        "run": str(tmp_path / "run"),
        "model": {"base": str(tmp_path / "model")},
        "databases": databases,
        "prepare": {"validation_fraction": 0.25, "test_fraction": 0.1},
        "batch": {"global_size": 28, "micro_size": 28},
        "validation": {"every_steps": None, "num_samples": 1, "timesteps_per_sample": 1},
        "preview": {"every_steps": None, "prompts": [""], "sampling": {"steps": 1}},
        "stages": [{"name": "all", "databases": list(databases), "steps": 10, "weights": dict.fromkeys(databases, 1)}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    config = load_config(path)
    report = prepare_databases(config)
    assert {row.database for row in report.rows.values()} == databases.keys()
    assert config.quality_report.is_file()
    encode_databases(config)
    command = [sys.executable, "-m", "launch.cli", "train", str(path)]
    trained = subprocess.run(command, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr
    table = trained.stdout.split("Validation loss after each stage")[1]
    assert all(name in table for name in databases)
    assert max(map(len, table.splitlines())) <= 80
    steps = read_steps(config.stage_path(config.stages[0]) / "steps.jsonl")
    assert len(steps) == 10
    assert {id_.split("/")[0] for step in steps for id_ in step["ids"]} == databases.keys()


def test_every_mask_class_has_its_number_beforehand(tmp_path: Path) -> None:
    names = set()
    for kind, model in kinds().items():
        database = model.model_validate(settings_of(kind, tmp_path / kind))
        names |= {name for row in database.rows(tmp_path / "work" / kind) for name in row.mask_classes.values()}
    assert names <= set(PALETTE)
