"""A BUSI of simulated images, prepared and encoded once for all tests, which copy what they change."""

from pathlib import Path

import pytest

from data.databases import Busi
from data.encode import EncodeConfig, encode
from data.prepare import PrepareConfig, prepare
from tests.data.busi_fixture import write_busi
from tests.data.fake_encoder import FakeEncoder

# Exact, so that tests compare with what the encoder said.
SMALL_SHARDS = EncodeConfig(samples_per_shard=4, batch_size=3, moments_dtype="float32")
RESOLUTION = 64


@pytest.fixture(scope="session")
def busi_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_busi(tmp_path_factory.mktemp("busi"))


@pytest.fixture(scope="session")
def busi_manifest(busi_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    config = PrepareConfig(validation_fraction=0.2, test_fraction=0.2)
    prepare({"busi": Busi(root=busi_root)}, config, folder / "manifest.parquet", folder / "workspace")
    return folder / "manifest.parquet"


@pytest.fixture(scope="session")
def busi_shards(busi_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "shards"
    encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, out)
    return out
