"""The manifest a shard at a time is the manifest."""

from pathlib import Path

import pytest

from data.errors import DataError
from data.manifest import Manifest
from data.manifest_slices import ManifestSlices
from tests.data.rows_fixture import write_rows


def test_the_shards_have_all_rows_in_the_manifests_order(busi_manifest: Path) -> None:
    whole = Manifest.read(busi_manifest)
    with ManifestSlices.open(busi_manifest, samples_per_shard=4) as slices:
        assert slices.palette == whole.palette
        assert dict(slices.sizes) == {
            "busi/test-000000": 3,
            "busi/train-000000": 4,
            "busi/train-000001": 4,
            "busi/train-000002": 3,
            "busi/validation-000000": 4,
        }
        for split in ("train", "validation", "test"):
            names = [name for name in slices.sizes if name.startswith(f"busi/{split}-")]
            rows = [row for name in names for row in slices.rows(name)]
            assert rows == [row for row in whole.rows if row.split == split]
        expected = {"", *(prompt for row in whole.rows for prompt in row.prompts)}
        assert slices.prompts().to_pylist() == sorted(expected)


def test_rows_of_several_batches(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 2500)
    with ManifestSlices.open(path, samples_per_shard=1000) as slices:
        rows = [row for name in slices.sizes for row in slices.rows(name)]
        assert sorted(rows, key=lambda row: row.id) == list(Manifest.read(path).rows)
        assert len(slices.prompts()) == 2501


def test_what_is_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    with pytest.raises(DataError, match=r"there is no manifest .*: run `sonoshard prepare` first"):
        ManifestSlices.open(path, 4).__enter__()
    path.write_bytes(b"nothing at all")
    with pytest.raises(DataError, match=r"is not a manifest of SonoShard: remove it and run `sonoshard prepare`"):
        ManifestSlices.open(path, 4).__enter__()
