"""Shards are what the encoder said, byte for byte the same however often it was interrupted."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from data.databases import Busi, SimulatedDatabase
from data.encode import EncodeConfig, encode, sample_key
from data.errors import DataError
from data.images import decode
from data.manifest import Manifest, ManifestRow
from data.prepare import PrepareConfig, prepare
from data.shard_lock import writing
from data.shards import ShardSet
from tests.data.conftest import RESOLUTION, SMALL_SHARDS
from tests.data.fake_encoder import FINGERPRINT, FakeEncoder
from tests.data.noise_image import write_noise
from tests.data.peak_memory import peak_bytes
from tests.data.rows_fixture import write_rows


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def moments_of(row: ManifestRow, *, mirrored: bool) -> NDArray[np.float32]:
    """The fake encoder's word on an image, along another path than `encode` takes."""
    picture = ImageOps.pad(Image.open(row.image).convert("RGB"), (RESOLUTION, RESOLUTION))
    picture = ImageOps.mirror(picture) if mirrored else picture
    image_HWC = torch.tensor(np.array(picture)).float() / 127.5 - 1
    return FakeEncoder().moments(image_HWC.permute(2, 0, 1)[None])[0].numpy()


def simulated(folder: Path, count: int) -> Path:
    """The manifest of `count` simulated images."""
    databases = {"sim": SimulatedDatabase(count=count, size=64)}
    prepare(databases, PrepareConfig(), folder / "manifest.parquet", folder / "workspace")
    return folder / "manifest.parquet"


def test_every_image_is_encoded_with_its_mirror_image(busi_manifest: Path, busi_shards: Path) -> None:
    shards = ShardSet.open(busi_shards)
    rows = {row.id: row for row in Manifest.read(busi_manifest).rows}
    seen = []
    for split in ("train", "validation", "test"):
        entries = shards.entries("busi", split)
        for entry, cluster in zip(entries, entries.clusters(), strict=True):
            row = rows[entry.id]
            assert (row.split, row.label) == (split, entry.label)
            assert (row.sha256, row.cluster, row.patient) == (entry.image_sha256, cluster, entry.patient)
            for mirrored in (False, True):
                record = shards.read(entry, mirrored=mirrored)
                # Not exact: averages of another memory layout are summed in another order.
                np.testing.assert_allclose(record.moments, moments_of(row, mirrored=mirrored), atol=1e-6)
                assert shards.prompts[record.prompt_index] == row.prompts[0]
            seen.append(entry.id)
    assert sorted(seen) == sorted(rows)


def test_a_hint_is_the_mask_at_training_resolution(busi_manifest: Path, busi_shards: Path) -> None:
    shards = ShardSet.open(busi_shards)
    rows = {row.id: row for row in Manifest.read(busi_manifest).rows}
    for entry in shards.entries("busi", "train"):
        masks = [decode(path)[0].convert("L") for path in rows[entry.id].masks]
        union = np.maximum.reduce([np.asarray(mask) for mask in masks]) // 255
        expected = np.asarray(ImageOps.pad(Image.fromarray(union), (RESOLUTION, RESOLUTION), Image.Resampling.NEAREST))
        record, mirror_image = shards.read(entry, mirrored=False), shards.read(entry, mirrored=True)
        assert np.array_equal(record.hint, expected)
        assert np.array_equal(mirror_image.hint, expected[:, ::-1])
        assert expected.any() == (entry.label != "normal")
        assert set(np.unique(record.hint)) <= {0, shards.palette.index("lesion")}


def test_webdataset_alone_reads_the_shards(busi_manifest: Path, busi_shards: Path) -> None:
    tars = sorted(str(path) for path in busi_shards.glob("busi/*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    by_id = {sample["json"]["id"]: sample for sample in samples}
    rows = Manifest.read(busi_manifest).rows
    assert len(samples) == len(by_id) == len(rows)
    for row in rows:
        sample = by_id[row.id]
        assert not set(sample["__key__"]) & set("./")
        np.testing.assert_allclose(sample["moments.npy"][0], moments_of(row, mirrored=False), atol=1e-6)
        assert sample["hint.png"].size == (RESOLUTION, RESOLUTION)
        facts = sample["json"]
        assert (facts["label"], facts["split"], facts["database"]) == (row.label, row.split, "busi")
        assert facts["prompts"] == list(row.prompts)


def test_the_index_says_where_the_bytes_lie(busi_shards: Path) -> None:
    for tar in busi_shards.glob("busi/*.tar"):
        content = tar.read_bytes()
        for sample in pq.read_table(tar.with_suffix(".parquet")).to_pylist():
            facts = json.loads(content[sample["json_offset"] :][: sample["json_bytes"]])
            assert (facts["id"], facts["split"]) == (sample["id"], sample["split"])
            moments = np.load(io.BytesIO(content[sample["moments_offset"] :][: sample["moments_bytes"]]))
            assert moments.shape == (2, 8, RESOLUTION // 8, RESOLUTION // 8)
            assert content[sample["hint_offset"] :][:4] == b"\x89PNG"


def test_each_distinct_prompt_is_embedded_once_and_the_empty_one_too(busi_manifest: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    encode(busi_manifest, encoder, SMALL_SHARDS, RESOLUTION, tmp_path)
    labels = ("benign", "malignant", "normal")
    assert encoder.embedded == ["", *(f"Ultrasound image of {label} breast" for label in labels)]
    shards = ShardSet.open(tmp_path)
    assert list(shards.prompts) == encoder.embedded
    assert shards.text.shape == (4, 7, 5)
    assert shards.text.dtype == np.float32
    assert shards.text[shards.empty_prompt_index].max() == 0


def test_run_again_nothing_is_encoded(busi_manifest: Path, busi_shards: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(busi_shards, tmp_path / "shards"))
    before = files(out)
    encoder = FakeEncoder(fail_after=0)
    report = encode(busi_manifest, encoder, SMALL_SHARDS, RESOLUTION, out)
    assert (report.made, encoder.embedded) == ((), [])
    assert len(report.kept) == sum(name.endswith(".tar") for name in before)
    assert files(out) == before


@pytest.mark.parametrize("fail_after", [0, 2, 7, 13, 20, 35])
def test_an_interrupted_run_ends_in_the_same_bytes(
    busi_manifest: Path, busi_shards: Path, tmp_path: Path, fail_after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(busi_manifest, FakeEncoder(fail_after), SMALL_SHARDS, RESOLUTION, tmp_path)
    unfinished = files(tmp_path)
    with pytest.raises(DataError, match="run `sonoshard encode` again"):
        ShardSet.open(tmp_path)
    encoder = FakeEncoder()
    report = encode(busi_manifest, encoder, SMALL_SHARDS, RESOLUTION, tmp_path)
    assert len(report.kept) == sum(name.startswith("busi/") and name.endswith(".parquet") for name in unfinished)
    assert encoder.num_images < 36 or not report.kept, "finished shards are kept"
    assert files(tmp_path) == files(busi_shards)


def test_a_kill_before_the_index_leaves_the_shard_unfinished(
    busi_manifest: Path, busi_shards: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(busi_shards, tmp_path / "shards"))
    (out / "busi" / "train-000001.parquet").unlink()
    (out / "busi" / ".train-000002.tar.partial").write_bytes(b"half of a tar")
    (out / "busi" / "train-000002.tar").unlink()
    report = encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, out)
    assert report.made == ("busi/train-000001", "busi/train-000002")
    assert files(out) == files(busi_shards)


def test_a_new_tar_is_never_taken_for_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between a changed shard's tar and its index; then the change is taken back. All sizes are the same."""
    out, manifest = tmp_path / "shards", tmp_path / "manifest.parquet"

    def run(prompt: str) -> None:
        databases = {"sim": SimulatedDatabase(count=10, size=64, prompts=(prompt,))}
        prepare(databases, PrepareConfig(), manifest, tmp_path / "workspace")
        encode(manifest, FakeEncoder(), SMALL_SHARDS, 64, out)

    run("prompt a")
    before = files(out)
    with monkeypatch.context() as patch:
        patch.setattr("data.encode.write_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("prompt b")
    run("prompt a")
    assert files(out) == before


def test_parts_together_make_the_whole(busi_manifest: Path, busi_shards: Path, tmp_path: Path) -> None:
    for part in (2, 0, 1):
        encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path, part=part, num_parts=3)
    assert files(tmp_path) == files(busi_shards)


def test_progress_counts_every_sample(busi_manifest: Path, busi_shards: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path, lambda *done: seen.append(done))
        assert seen[-1] == (18, 18)
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        seen.clear()


def test_added_images_touch_only_the_last_shards(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    encode(simulated(tmp_path, 20), FakeEncoder(), SMALL_SHARDS, 64, out)
    before = files(out)
    report = encode(simulated(tmp_path, 30), FakeEncoder(), SMALL_SHARDS, 64, out)
    train = [name for name in report.kept if name.startswith("sim/train")]
    assert len(train) == 4, "16 training images in full shards of 4"
    assert all(files(out)[f"{name}.tar"] == before[f"{name}.tar"] for name in report.kept)
    fresh = tmp_path / "fresh"
    encode(tmp_path / "manifest.parquet", FakeEncoder(), SMALL_SHARDS, 64, fresh)
    assert files(out) == files(fresh)


def test_shards_of_images_that_are_gone_are_removed(busi_manifest: Path, tmp_path: Path) -> None:
    encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path)
    (tmp_path / "busi" / "notes.txt").write_text("not ours")
    larger = SMALL_SHARDS.model_copy(update={"samples_per_shard": 100})
    report = encode(busi_manifest, FakeEncoder(), larger, RESOLUTION, tmp_path)
    assert report.made == ("busi/train-000000",), "the others had one shard before"
    assert sorted(path.name for path in tmp_path.glob("busi/*.tar")) == [
        "test-000000.tar",
        "train-000000.tar",
        "validation-000000.tar",
    ]
    assert (tmp_path / "busi" / "notes.txt").exists()
    assert len(ShardSet.open(tmp_path).entries("busi", "train")) == 11


def test_shards_of_a_database_that_the_manifest_does_not_know_are_left(busi_manifest: Path, tmp_path: Path) -> None:
    encode(write_rows(tmp_path, 10), FakeEncoder(), SMALL_SHARDS, 64, tmp_path / "shards")
    before = files(tmp_path / "shards")
    with pytest.raises(
        DataError, match=r"holds shards of \w+, of which the manifest has no image: encode into another"
    ):
        encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, 64, tmp_path / "shards")
    assert files(tmp_path / "shards") == before


@pytest.mark.parametrize("part", FINGERPRINT)
def test_another_encoder_is_refused(busi_manifest: Path, busi_shards: Path, part: str) -> None:
    before = files(busi_shards)
    encoder = FakeEncoder(fingerprint={**FINGERPRINT, part: "another"})
    with pytest.raises(DataError) as refused:
        encode(busi_manifest, encoder, SMALL_SHARDS, RESOLUTION, busi_shards)
    assert str(refused.value) == (
        f"the shards in {busi_shards} were made with {part} {FINGERPRINT[part]}, needed another: "
        "encode into another folder, or remove this one"
    )
    assert files(busi_shards) == before


@pytest.mark.parametrize(
    ("changed", "resolution", "message"),
    [
        ({}, 72, "resolution 64, needed 72"),
        ({"resize": "crop"}, 64, "resize pad, needed crop"),
        ({"moments_dtype": "float16"}, 64, "moments_dtype float32, needed float16"),
    ],
)
def test_other_preprocessing_is_refused(
    busi_manifest: Path, busi_shards: Path, changed: dict[str, str], resolution: int, message: str
) -> None:
    config = SMALL_SHARDS.model_copy(update=changed)
    with pytest.raises(DataError, match=f"were made with {message}: encode into another folder"):
        encode(busi_manifest, FakeEncoder(), config, resolution, busi_shards)


def test_shards_without_their_fingerprint_are_not_trusted(busi_manifest: Path, tmp_path: Path) -> None:
    encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path)
    (tmp_path / "fingerprint.json").unlink()
    other = FakeEncoder(fingerprint={**FINGERPRINT, "vae": "v2"})
    assert encode(busi_manifest, other, SMALL_SHARDS, RESOLUTION, tmp_path).kept == ()


@pytest.mark.parametrize(("resolution", "nearest"), [(100, "96, 104"), (0, "8, 16"), (5, "8, 16")])
def test_a_resolution_that_does_not_fit(busi_manifest: Path, tmp_path: Path, resolution: int, nearest: str) -> None:
    message = f"^resolution={resolution} is not a multiple of 8; nearest that work: {nearest}$"
    with pytest.raises(DataError, match=message):
        encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, resolution, tmp_path)


def test_an_image_that_changed_since_it_was_prepared(busi_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(busi_root, tmp_path / "busi"))
    manifest = tmp_path / "manifest.parquet"
    prepare({"busi": Busi(root=root)}, PrepareConfig(), manifest, tmp_path)
    image = root / "normal" / "normal (1).png"
    shutil.copy(root / "normal" / "normal (2).png", image)
    message = f"{image} has changed since the manifest was made: run `sonoshard prepare` again"
    with pytest.raises(DataError, match=re.escape(message)):
        encode(manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path / "shards")


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_the_bytes_for_some_of_the_bits(
    busi_manifest: Path, busi_shards: Path, tmp_path: Path, dtype: str, bits: int
) -> None:
    config = EncodeConfig.model_validate({"moments_dtype": dtype, "samples_per_shard": 100})
    encode(busi_manifest, FakeEncoder(), config, RESOLUTION, tmp_path)
    exact, rounded = ShardSet.open(busi_shards), ShardSet.open(tmp_path)
    pairs = zip(exact.entries("busi", "train"), rounded.entries("busi", "train"), strict=True)
    for entry, small in pairs:
        assert entry.id == small.id
        for mirrored in (False, True):
            found = rounded.read(small, mirrored=mirrored).moments
            assert found.dtype == np.float32
            # Rounding to `bits` significant bits; half of the last one.
            np.testing.assert_allclose(found, exact.read(entry, mirrored=mirrored).moments, rtol=2.0**-bits, atol=1e-7)


def test_moments_that_overflow_are_not_stored(busi_manifest: Path, tmp_path: Path) -> None:
    class Loud(FakeEncoder):
        def moments(self, images_BCHW: Tensor) -> Tensor:
            return super().moments(images_BCHW) * 1e6

    config = EncodeConfig(moments_dtype="float16")
    with pytest.raises(DataError, match=r"moments of busi/.* are not finite as float16: set encode.moments_dtype=fl"):
        encode(busi_manifest, Loud(), config, RESOLUTION, tmp_path)


def test_memory_does_not_grow_with_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's, NumPy's and Arrow's bytes; torch's are of one batch, since nothing holds a tensor any longer."""
    config = EncodeConfig(batch_size=16, samples_per_shard=100)
    monkeypatch.setattr("data.manifest.ROW_GROUP_ROWS", 100)

    def peak(name: str, count: int) -> int:
        (tmp_path / name).mkdir()
        manifest = write_rows(tmp_path / name, count, num_prompts=50)
        return peak_bytes(lambda: encode(manifest, FakeEncoder(), config, 64, tmp_path / name / "shards"))

    peak("first", 8)  # what is imported or cached the first time
    few, many = peak("few", 300), peak("many", 1500)
    # A row as a Python object has 5,000 bytes, and its moments at 64 pixels 4,096. What stays of it: its number, twice
    # while they are grouped, and its part of what there is of each shard (names, a hash) and row group.
    assert (many - few) / 1200 < 100


def test_a_shard_is_written_by_one_process_at_a_time(busi_manifest: Path, busi_shards: Path, tmp_path: Path) -> None:
    """The other one has the first shard; this one cannot make it, but all parts that have other shards."""
    held = "import sys; from data.shard_lock import writing; from pathlib import Path"
    code = f"{held}\nwith writing(Path(sys.argv[1]), 'busi/test-000000.tar'): print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = f"{tmp_path}/busi/test-000000.tar is being written by another process: wait for it, or give each"
        with pytest.raises(DataError, match=f"^{re.escape(message)}"):
            encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path)
        report = encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path, part=1, num_parts=2)
        assert report.made == ("busi/train-000000", "busi/train-000002")
        other.communicate("\n")
    encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path)
    assert files(tmp_path) == files(busi_shards)


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.lockf", without_locks)
    told = pytest.raises(DataError, match="cannot be locked: Function not implemented; encode into another")
    with told, writing(tmp_path, "busi/test-000000.tar"):
        pass


def test_an_unfinished_part_is_counted(busi_manifest: Path, tmp_path: Path) -> None:
    encode(busi_manifest, FakeEncoder(), SMALL_SHARDS, RESOLUTION, tmp_path, part=1, num_parts=2)
    with pytest.raises(DataError) as refused:
        ShardSet.open(tmp_path)
    assert str(refused.value) == (
        f"3 of the 5 shards in {tmp_path} are missing or not whole, the first of them: {tmp_path}/busi/test-000000.tar"
        " is missing: run `sonoshard encode` again, all its parts"
    )


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.text(max_size=300), max_size=20, unique=True))
def test_keys_are_unique_and_plain(ids: list[str]) -> None:
    keys = [sample_key(id_) for id_ in ids]
    assert len(set(keys)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9-]{1,64}", key) for key in keys)


def test_class_numbers_beyond_the_colours_survive(tmp_path: Path) -> None:
    """Sixteen colours repeat over 256 classes; the numbers must not."""
    classes = {number: f"class {number:03d}" for number in range(1, 240)}
    mask = (np.arange(64 * 64) % 240).reshape(64, 64).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    cell = "|".join(f"{number}={name}" for number, name in classes.items())
    lines = ["image,prompts,label,masks,mask_classes"]
    for number in range(4):
        write_noise(tmp_path / f"x{number}.png", number, side=64)
        lines.append(f"x{number}.png,a,b,m.png,{cell}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    from data.databases import ManifestFile

    databases: dict[str, Any] = {"t": ManifestFile(path=tmp_path / "t.csv")}
    prepare(databases, PrepareConfig(validation_fraction=0.3), tmp_path / "manifest.parquet", tmp_path)
    encode(tmp_path / "manifest.parquet", FakeEncoder(), SMALL_SHARDS, 64, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    hint = shards.read(shards.entries("t", "train")[0], mirrored=False).hint
    names = np.array(shards.palette)[hint]
    assert np.array_equal(names, np.array(["background", *classes.values()])[mask])
