"""The manifest a shard at a time is the manifest."""

import errno
import os
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest

from data.errors import DataError
from data.manifest import ROW_GROUP_ROWS, Manifest
from data.manifest_slices import ManifestSlices
from tests.data.peak_memory import peak_bytes
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


def test_rows_of_one_row_group(tmp_path: Path) -> None:
    """As earlier versions wrote them, and as other programs do."""
    path = write_rows(tmp_path, 2500)
    with ManifestSlices.open(path, samples_per_shard=300) as slices:
        expected = [slices.rows(name) for name in slices.sizes]
    assert pq.ParquetFile(path).num_row_groups == 3
    pq.write_table(pq.read_table(path), path, row_group_size=10_000)
    with ManifestSlices.open(path, samples_per_shard=300) as slices:
        assert [slices.rows(name) for name in slices.sizes] == expected


def test_a_file_system_that_fails_is_no_fault_of_the_manifest(busi_manifest: Path) -> None:
    stale = patch.object(pq.ParquetFile, "read_row_group", side_effect=OSError(errno.ESTALE, os.strerror(errno.ESTALE)))
    told = pytest.raises(DataError, match=r"manifest\.parquet cannot be read: Stale file handle: run it again")
    with ManifestSlices.open(busi_manifest, samples_per_shard=4) as slices, stale, told:
        slices.rows("busi/train-000000")


def test_memory_is_that_of_a_row_group_and_a_shard(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        with ManifestSlices.open(path, samples_per_shard=100) as slices:
            assert {len(slices.rows(name)) for name in slices.sizes} <= set(range(1, 101))
            assert len(slices.prompts()) <= 51

    def peak(count: int) -> int:
        (tmp_path / str(count)).mkdir()
        path = write_rows(tmp_path / str(count), count, num_prompts=50)
        return peak_bytes(lambda: read(path))

    peak(10)  # what is imported or cached the first time
    few, many = peak(2 * ROW_GROUP_ROWS), peak(20 * ROW_GROUP_ROWS)
    # 16 bytes a row for its number, twice while they are grouped, and 3 for its part of a shard's name. A row itself
    # has 5,000 bytes as a Python object and 600 as Arrow's columns.
    assert (many - few) / (18 * ROW_GROUP_ROWS) < 30


def test_a_damaged_row_group_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 1500)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match=r"is not a manifest of SonoShard: remove it and run `sonoshard prepare`"),
        ManifestSlices.open(path, 100) as slices,
    ):
        slices.rows(next(iter(slices.sizes)))


def test_what_is_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    with pytest.raises(DataError, match=r"there is no manifest .*: run `sonoshard prepare` first"):
        ManifestSlices.open(path, 4).__enter__()
    path.write_bytes(b"nothing at all")
    with pytest.raises(DataError, match=r"is not a manifest of SonoShard: remove it and run `sonoshard prepare`"):
        ManifestSlices.open(path, 4).__enter__()
