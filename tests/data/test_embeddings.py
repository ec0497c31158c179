"""Embeddings: encoded once, copied over when prompts come and go, never taken for those of other prompts."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.embeddings import check_embeddings, read_embeddings, write_embeddings
from data.errors import DataError

TEXTS = st.lists(st.text(max_size=8), unique=True, max_size=12)


class Embedding:
    """Distinct values for distinct prompts; counts what it was asked for."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._fail_after = fail_after

    def __call__(self, prompts: list[str]) -> NDArray[np.float32]:
        self.asked += prompts
        if self._fail_after is not None and len(self.asked) > self._fail_after:
            raise KeyboardInterrupt
        return np.stack([value_of(prompt) for prompt in prompts])


def value_of(prompt: str) -> NDArray[np.float32]:
    letters = np.frombuffer(prompt.encode("utf-32-le"), dtype=np.uint32).astype(np.float32)
    return np.resize(np.append(letters, -1), (7, 5)).astype(np.float32)


def write(folder: Path, prompts: list[str], embed: Embedding, fingerprint: str = "f") -> None:
    column = pa.array(sorted({"", *prompts}))
    write_embeddings(folder, column, embed, batch_size=3, fingerprint_sha256=fingerprint)


def refuse_other_values(folder: Path, prompts: list[str]) -> None:
    found, array = read_embeddings(folder)
    assert list(found) == sorted({"", *prompts})
    assert all(np.array_equal(array[found.index(prompt)], value_of(prompt)) for prompt in found)
    check_embeddings(folder)


@settings(max_examples=40, deadline=None)
@given(first=TEXTS, second=TEXTS)
def test_only_new_prompts_are_embedded(
    tmp_path_factory: pytest.TempPathFactory, first: list[str], second: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("text")
    for before, prompts in (([], first), (["", *first], second)):
        embed = Embedding()
        write(folder, prompts, embed)
        assert sorted(embed.asked) == sorted({"", *prompts} - set(before))
        refuse_other_values(folder, prompts)
    again = Embedding()
    write(folder, second, again)
    assert again.asked == []


def test_another_encoders_embeddings_are_not_kept(tmp_path: Path) -> None:
    write(tmp_path, ["a"], Embedding(), "one")
    embed = Embedding()
    write(tmp_path, ["a"], embed, "other")
    assert embed.asked == ["", "a"]


@pytest.mark.parametrize("fail_after", [0, 4, 5, 9, 12])
def test_an_interrupted_change_leaves_what_was_there_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_after: int
) -> None:
    """Batches of three prompts, saved after every second."""
    folder, other_folder = tmp_path / "text", tmp_path / "other"
    monkeypatch.setattr("data.embeddings.SAVE_EVERY_BATCHES", 2)
    prompts = list("abcdefghijklmnopq")
    write(folder, ["a", "b"], Embedding())
    with pytest.raises(KeyboardInterrupt):
        write(folder, prompts, Embedding(fail_after))
    refuse_other_values(folder, ["a", "b"])
    # Of other prompts, or by another encoder, nothing is gone on with.
    shutil.copytree(folder, other_folder)
    other = Embedding()
    write(other_folder, [*prompts, "r"], other)
    assert len(other.asked) == 16
    again = Embedding()
    write(folder, prompts, again)
    # 15 new ones: 3 of them are in the first six rows, which are saved once the seventh begins.
    assert len(again.asked) == {0: 15, 4: 12, 5: 12, 9: 6, 12: 6}[fail_after]
    refuse_other_values(folder, prompts)
    assert sorted(path.name for path in folder.iterdir()) == ["text.npy", "text.parquet"]
    fresh = folder.with_name("fresh")
    write(fresh, prompts, Embedding())
    assert all((fresh / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("name", ["text.npy", "text.parquet"])
def test_any_flipped_byte_is_found_and_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, list("abc"), Embedding())
    path = tmp_path / name
    content = path.read_bytes()
    for place in range(0, len(content), 41):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(DataError, match=f"^{path} is damaged: remove it and run `sonoshard encode` again$"):
            check_embeddings(tmp_path)
    path.write_bytes(content)
    check_embeddings(tmp_path)


def test_an_array_of_other_prompts_is_found_by_its_size_or_its_hash(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, ["a", "b"], Embedding())
    write(other, ["a", "c"], Embedding())
    (other / "text.npy").replace(one / "text.npy")
    with pytest.raises(DataError, match=r"text\.npy is damaged"):
        check_embeddings(one)
    write(other, ["a", "b", "c"], Embedding())
    (other / "text.npy").replace(one / "text.npy")
    with pytest.raises(DataError, match=r"text\.npy has \d+ bytes, needed"):
        read_embeddings(one)


def test_the_disk_has_room_for_all_before_the_first_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)  # without it, a full disk would be a SIGBUS
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, ["a"], Embedding())


def test_a_prompt_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, ["a"], Embedding())
    prompts, _ = read_embeddings(tmp_path)
    assert "a" in prompts
    assert "b" not in prompts
    with pytest.raises(ValueError, match="no embedding of 'b'"):
        prompts.index("b")
