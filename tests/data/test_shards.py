"""A folder of shards is opened only if it is whole and of the right encoder; a sample is one random access."""

import os
import pickle
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.databases import ManifestFile, SimulatedDatabase
from data.encode import encode
from data.errors import DataError
from data.prepare import PrepareConfig, prepare
from data.shard_index import VERSION
from data.shards import ShardSet
from tests.data.conftest import RESOLUTION, SMALL_SHARDS
from tests.data.fake_encoder import FINGERPRINT, FakeEncoder
from tests.data.noise_image import write_noise


@pytest.fixture
def folder(busi_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(busi_shards, tmp_path / "shards"))


def refusal(folder: Path, expected: dict[str, str] | None = None) -> str:
    with pytest.raises(DataError) as refused:
        ShardSet.open(folder, expected)
    return str(refused.value)


def test_what_is_there(busi_shards: Path) -> None:
    shards = ShardSet.open(busi_shards, {**FINGERPRINT, "resolution": "64"})
    assert shards.databases == {"busi": ("test", "train", "validation")}
    assert shards.latent_shape == (4, 8, 8)
    assert shards.palette[:2] == ("background", "lesion")
    assert [len(shards.entries("busi", split)) for split in ("train", "validation", "test")] == [11, 4, 3]


def test_entries_are_a_sequence(busi_shards: Path) -> None:
    entries = ShardSet.open(busi_shards).entries("busi", "train")
    listed = list(entries)
    assert entries[-1] == listed[-1] == entries[len(entries) - 1]
    assert entries[2:5] == listed[2:5]
    assert listed == list(ShardSet.open(busi_shards).entries("busi", "train")), "in an order that stays"
    for index in (len(entries), -len(entries) - 1):
        with pytest.raises(IndexError):
            entries[index]


def test_it_goes_to_other_processes(busi_shards: Path) -> None:
    shards = ShardSet.open(busi_shards)
    entry = shards.entries("busi", "train")[3]
    again = pickle.loads(pickle.dumps(shards))
    assert np.array_equal(again.read(entry, mirrored=True).moments, shards.read(entry, mirrored=True).moments)


def test_what_is_read_may_be_written_to(busi_shards: Path) -> None:
    """As a view of a map could not."""
    shards = ShardSet.open(busi_shards)
    entry = shards.entries("busi", "train")[0]
    record = shards.read(entry, mirrored=False)
    before = record.moments.copy()
    record.moments[:] = 0
    assert np.array_equal(shards.read(entry, mirrored=False).moments, before)


def test_one_of_several_prompts_is_chosen(tmp_path: Path) -> None:
    prompts = ("a {label} breast", "{organ}")
    databases = {"sim": SimulatedDatabase(count=8, size=64, prompts=prompts)}
    prepare(databases, PrepareConfig(), tmp_path / "manifest.parquet", tmp_path)
    encode(tmp_path / "manifest.parquet", FakeEncoder(), SMALL_SHARDS, 64, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    entry = shards.entries("sim", "train")[0]
    found = [shards.prompts[shards.read(entry, False, choice=choice).prompt_index] for choice in range(3)]
    assert found == [f"a {entry.label} breast", "breast", f"a {entry.label} breast"]


def test_another_encoder_is_refused(busi_shards: Path) -> None:
    assert refusal(busi_shards, {**FINGERPRINT, "vae": "v2"}) == (
        f"the shards in {busi_shards} were made with vae v1, needed v2: "
        "encode into another folder with this model, or train with that one"
    )
    assert "were made with unet nothing, needed u1: " in refusal(busi_shards, {"unet": "u1"})


def test_a_truncated_tar(folder: Path) -> None:
    tar = folder / "busi" / "train-000001.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes()[:-512])
    assert refusal(folder) == f"{tar} has {size - 512} bytes, needed {size}: run `sonoshard encode` again"


def test_a_missing_tar(folder: Path) -> None:
    (folder / "busi" / "test-000000.tar").unlink()
    assert refusal(folder) == f"{folder}/busi/test-000000.tar is missing: run `sonoshard encode` again"


def test_a_tar_without_its_index(folder: Path) -> None:
    (folder / "busi" / "train-000000.parquet").unlink()
    message = f"{folder}/busi/train-000000.tar is unfinished, it has no index: run `sonoshard encode` again"
    assert refusal(folder) == message


def test_a_damaged_index(folder: Path) -> None:
    index = folder / "busi" / "train-000000.parquet"
    index.write_bytes(b"nothing")
    assert refusal(folder) == f"{index} is damaged: remove it and run `sonoshard encode` again"


def test_several_shards_that_are_missing_are_counted(folder: Path) -> None:
    for name in ("train-000002.tar", "validation-000000.parquet"):
        (folder / "busi" / name).unlink()
    assert refusal(folder) == (
        f"2 of the 5 shards in {folder} are missing or not whole, the first of them: {folder}/busi/train-000002.tar is"
        " missing: run `sonoshard encode` again, all its parts"
    )


def test_a_stale_index(folder: Path) -> None:
    for suffix in (".tar", ".parquet"):
        shutil.copy(folder / "busi" / f"train-000001{suffix}", folder / "busi" / f"train-000000{suffix}")
    assert refusal(folder) == (
        f"{folder}/busi/train-000000.tar holds other rows than the manifest that was encoded last: "
        "run `sonoshard encode` again"
    )


@pytest.mark.parametrize("name", ["text.npy", "text.parquet"])
def test_missing_text(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder) == f"{folder}/{name} is missing: run `sonoshard encode` again"


def test_text_that_is_cut_off(folder: Path) -> None:
    path = folder / "text.npy"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(folder) == f"{path} has {size - 1} bytes, needed {size}: run `sonoshard encode` again"


def test_no_shards_at_all(tmp_path: Path) -> None:
    message = f"{tmp_path} holds no latent shards (fingerprint.json is missing): run `sonoshard encode`"
    assert refusal(tmp_path) == message


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", f'{{"version": {VERSION}, "fingerprint": {{}}, "palette": [], "shards": 5}}']
)
def test_a_damaged_fingerprint(folder: Path, content: str) -> None:
    (folder / "fingerprint.json").write_text(content)
    message = f"{folder}/fingerprint.json is damaged: remove it and run `sonoshard encode` again"
    assert refusal(folder) == message


def test_another_version(folder: Path) -> None:
    path = folder / "fingerprint.json"
    path.write_text(path.read_text().replace(f'"version": {VERSION}', '"version": 99'))
    assert refusal(folder) == f"{path} has version 99, needed {VERSION}: encode into another folder"


def test_an_unknown_database_or_split(busi_shards: Path) -> None:
    shards = ShardSet.open(busi_shards)
    with pytest.raises(DataError, match=f"^{busi_shards} has no database camus; it has busi$"):
        shards.entries("camus", "train")
    with pytest.raises(DataError, match=f"^{busi_shards} has no val samples of busi; it has test, train, validation$"):
        shards.entries("busi", "val")


def test_a_flipped_bit_is_found(folder: Path) -> None:
    shards = ShardSet.open(folder)
    entries = shards.entries("busi", "train")
    for entry in entries:
        shards.check(entry)
    tar = folder / f"{entries[1].shard}.tar"
    content = bytearray(tar.read_bytes())
    content[entries[1].offsets[2] + 200] ^= 1
    tar.write_bytes(content)
    shards = ShardSet.open(folder)
    shards.check(entries[0])
    with pytest.raises(DataError) as refused:
        shards.check(entries[1])
    assert str(refused.value) == f"{tar} is damaged at {entries[1].id}: remove it and run `sonoshard encode` again"


def test_at_most_a_few_tars_are_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.shards.MAX_TARS", 1)
    shards = ShardSet.open(folder)
    entries = list(shards.entries("busi", "train"))
    moments = [shards.read(entry, mirrored=False).moments for entry in [*entries, *entries]]
    assert np.array_equal(moments[: len(entries)], moments[len(entries) :])
    assert moments[0].shape[-1] == RESOLUTION // 8


def test_no_page_of_a_tar_stays_in_memory(busi_shards: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("Linux only")
    shards = ShardSet.open(busi_shards)
    for entry in shards.entries("busi", "train"):
        shards.read(entry, mirrored=False)
    assert f"{busi_shards}/text.npy" in maps.read_text(encoding="utf-8")
    assert ".tar" not in maps.read_text(encoding="utf-8")


def test_embeddings_beyond_the_limit_are_let_go_of(busi_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet.open(busi_shards)
    numbers = [1, 0, 3, 3, 2]
    let_go: list[int] = []
    monkeypatch.setattr("data.shards.let_go", lambda array: let_go.append(array.nbytes))
    assert np.array_equal(shards.embeddings(numbers), shards.text[numbers])
    assert let_go == [], "all of them are within the limit"
    # Five embeddings are read at a time, and there are four.
    monkeypatch.setattr("data.shards.MAX_TEXT_BYTES", 2 * 5 * shards.text[0].nbytes)
    shards.embeddings(numbers), shards.embeddings(numbers), shards.embeddings(numbers)
    assert let_go == [], "they are read again and again, but are few"
    monkeypatch.setattr("data.shards.MAX_TEXT_BYTES", shards.text.nbytes - 1)
    for _ in range(2):
        assert np.array_equal(shards.embeddings(numbers), shards.text[numbers])
    assert let_go == 2 * [shards.text.nbytes]


def test_a_tar_that_was_cut_off_since_it_was_opened(folder: Path) -> None:
    shards = ShardSet.open(folder)
    last = shards.entries("busi", "validation")[-1]
    tar = folder / f"{last.shard}.tar"
    end = last.offsets[2] + last.bytes[2] - 1
    os.truncate(tar, end)
    with pytest.raises(DataError, match=f"^{tar} ends after {end} bytes: remove it and run `sonoshard encode` again"):
        shards.read(last, mirrored=True)


def test_what_is_encoded_anew_is_not_read_by_what_was_known_of_it(folder: Path) -> None:
    shards = ShardSet.open(folder)
    known, other = sorted(shards.databases["busi"])[:2]
    entry = shards.entries("busi", known)[0]
    for index in folder.glob("busi/*.parquet"):
        content = index.read_bytes()
        index.unlink()
        index.with_suffix(".new").write_bytes(content)
        index.with_suffix(".new").rename(index)
    with pytest.raises(DataError, match=r"\.tar was encoded anew since it was first read: start again"):
        shards.read(entry, mirrored=False)
    with pytest.raises(DataError, match=r"\.tar was encoded anew since it was first read: start again"):
        shards.entries("busi", other)


def test_with_hashes_checked_a_flipped_bit_is_found_where_it_is_read(folder: Path) -> None:
    entry = ShardSet.open(folder).entries("busi", "train")[1]
    tar = folder / f"{entry.shard}.tar"
    content = bytearray(tar.read_bytes())
    content[entry.offsets[2] + 200] ^= 1
    tar.write_bytes(content)
    ShardSet.open(folder).read(entry, mirrored=False)
    for shards in (checking := ShardSet.open(folder, check_hashes=True), pickle.loads(pickle.dumps(checking))):
        shards.read(shards.entries("busi", "train")[0], mirrored=False)
        with pytest.raises(DataError, match=f"^{tar} is damaged at {re.escape(entry.id)}: remove it and run"):
            shards.read(entry, mirrored=False)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Training images of patients with one, two or three images each."""
    path = tmp_path_factory.mktemp("patients")
    lines = ["image,prompts,label,patient"]
    for number in range(120):
        write_noise(path / f"{number}.png", number, side=8)
        lines.append(f"{number}.png,a scan,x,p{int((2 * number) ** 0.9)}")
    (path / "table.csv").write_text("\n".join(lines))
    databases: dict[str, Any] = {"table": ManifestFile(path=path / "table.csv")}
    prepare(databases, PrepareConfig(), path / "manifest.parquet", path)
    encode(path / "manifest.parquet", FakeEncoder(), SMALL_SHARDS, 8, path / "shards")
    return ShardSet.open(path / "shards")


@settings(max_examples=60, deadline=None)
@given(smaller=st.floats(1e-6, 1), larger=st.floats(1e-6, 1), seed=st.integers(0, 2**63))
def test_a_part_divides_no_patient_and_lies_within_a_larger_one(
    patients: ShardSet, smaller: float, larger: float, seed: int
) -> None:
    smaller, larger = sorted((smaller, larger))
    owners = [entry.patient for entry in patients.entries("table", "train")]
    few, many = patients.part("table", smaller, seed), patients.part("table", larger, seed)
    assert list(few) == sorted(set(few))
    assert set(few) <= set(many)
    assert len(few) > 0
    taken = Counter(owners[number] for number in few)
    assert all(owners.count(owner) == count for owner, count in taken.items()), "whole patients"
    # Enough, by less than one patient too many; a fraction is only as exact as floating point.
    assert -1e-5 < len(few) - smaller * len(owners) < max(Counter(owners).values())


def test_a_part_is_keyed_and_all_is_all(patients: ShardSet) -> None:
    size = len(patients.entries("table", "train"))
    assert patients.part("table", 1.0, 0).tolist() == list(range(size))
    assert patients.part("table", 0.3, 0).tolist() != patients.part("table", 0.3, 1).tolist()
    assert patients.part("table", 0.3, 0).tolist() == patients.part("table", 0.3, 0).tolist()
