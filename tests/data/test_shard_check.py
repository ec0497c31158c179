"""Whatever byte of a folder of shards is flipped, cut off or gone, the file with it is named."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.shard_check import check_shards

NAMES = ["fingerprint.json", "text.npy", "text.parquet"] + [
    f"busi/{shard}.{kind}"
    for shard in ("test-000000", "train-000000", "train-000002", "validation-000000")
    for kind in ("tar", "parquet")
]


@pytest.fixture
def folder(busi_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(busi_shards, tmp_path / "shards"))


def problems(folder: Path) -> list[str]:
    return [checked.problem for checked in check_shards(folder) if checked.problem is not None]


def test_whole_shards_are_right(busi_shards: Path) -> None:
    checked = list(check_shards(busi_shards))
    assert [each.problem for each in checked] == [None] * 7
    assert [str(each.path.relative_to(busi_shards)) for each in checked[:4]] == [
        "fingerprint.json",
        "text.npy",
        "busi/test-000000.tar",
        "busi/train-000000.tar",
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_and_named(folder: Path, name: str, place: float, bit: int) -> None:
    path = folder / name
    content = path.read_bytes()
    number = int(place * len(content))
    path.write_bytes(content[:number] + bytes([content[number] ^ 1 << bit]) + content[number + 1 :])
    try:
        found = problems(folder)
        # In fingerprint.json white space may become other white space, and an escaped letter the same one.
        assert len(found) == 1 or (name == "fingerprint.json" and content[number : number + 1].isspace())
        assert all(str(path) in line for line in found)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [0, 1, 0.5, -2])
def test_a_file_that_is_cut_off_is_found_and_named(folder: Path, name: str, kept: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    (line,) = problems(folder)
    assert str(folder / name) in line


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_missing_is_found_and_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (line,) = problems(folder)
    assert name.removesuffix(".parquet") in line
    assert "missing" in line or "it has no index" in line


def test_a_flipped_bit_within_a_sample_names_the_sample(folder: Path) -> None:
    from data.shards import ShardSet

    entry = ShardSet.open(folder).entries("busi", "train")[2]
    tar = folder / f"{entry.shard}.tar"
    content = bytearray(tar.read_bytes())
    content[entry.offsets[0] + entry.bytes[0] - 1] ^= 1
    tar.write_bytes(content)
    assert problems(folder) == [f"{tar} is damaged at {entry.id}: remove it and run `sonoshard encode` again"]
    content[-1] ^= 1
    content[entry.offsets[0] + entry.bytes[0] - 1] ^= 1
    tar.write_bytes(content)
    assert problems(folder) == [f"{tar} is damaged outside of its samples: remove it and run `sonoshard encode` again"]


def test_an_index_of_another_tar_is_found(folder: Path) -> None:
    shutil.copy(folder / "busi" / "train-000001.parquet", folder / "busi" / "train-000000.parquet")
    (line,) = problems(folder)
    assert line.startswith(f"{folder}/busi/train-000000.tar holds other rows than the manifest that was encoded last")
