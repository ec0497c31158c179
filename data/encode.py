"""From the manifest to latent shards: the VAE sees each image once, the text encoder each prompt; then both may go.

Safe to interrupt: run again, it goes on at the first unfinished shard and writes the same bytes.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from data.durable import replacing
from data.embeddings import ARRAY_FILE, write_embeddings
from data.errors import DataError
from data.hints import LEVELS
from data.manifest import ManifestRow
from data.manifest_slices import ManifestSlices
from data.preprocessing import Resize, hint_of, picture_of
from data.shard_index import (
    CONTENTS_FILE,
    MEMBERS,
    Contents,
    PlannedShard,
    ShardFacts,
    index_path,
    read_index,
    tar_path,
    write_index,
)
from data.shard_lock import writing

if TYPE_CHECKING:
    from torch import Tensor

# Every shard's index, in its database's folder.
INDEXES = "*/*-[0-9][0-9][0-9][0-9][0-9][0-9].parquet"

# B images, C latent channels, H W image height and width, P prompts, L prompt tokens, D text width


class Encoder(Protocol):
    """The frozen half of a Stable Diffusion model. `models` has one; the tests have a small one."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What the results depend on, by part: hashes of the weights of VAE, text encoder and tokenizer; versions."""

    def moments(self, images_BCHW: "Tensor") -> "Tensor":
        """Return mean, then log-variance, [B, 2 C, H/8, W/8] float32, of images [B, 3, H, W] float32 in [-1, 1]."""

    def embed(self, prompts: list[str]) -> "Tensor":
        """Return the text encoder's last states of prompts, [P, L, D] float32."""


class EncodeConfig(BaseModel):
    """How a manifest becomes latent shards."""

    model_config = ConfigDict(extra="forbid")

    resolutions: list[Annotated[int, Field(gt=0, multiple_of=8)]] | None = Field(
        None,
        min_length=1,
        description="Heights and widths in pixels to encode at, each into a folder of its own; a run trains on those of"
        " model.resolution. None: that of the model.",
    )
    resize: Resize = Field(
        "pad",
        description="How an image becomes square: pad (black borders; keeps the geometry, which is physical), crop "
        "(the middle), stretch. Masks go the same way.",
    )
    # What rounding does to the decoded image (benchmarks/moments.py, built-in model): float16 88 dB and at most 0.5
    # grey levels, bfloat16 70 dB and 3.5, where the VAE itself is at 24 dB. Beyond float16's range they are refused.
    moments_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float16", description="Stored precision of the VAE's mean and log-variance; 16 bits halve the shards."
    )
    samples_per_shard: int = Field(
        512, gt=0, description="Samples in a tar. At 512 pixels and float16, 512 samples are 68 MB."
    )
    batch_size: int = Field(4, gt=0, description="Images that go through the VAE at once; prompts: 16 times as many.")


@dataclass(frozen=True)
class EncodeReport:
    """What `encode` did: shards by name, made now or kept as they were."""

    out: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    num_samples: int

    def __str__(self) -> str:
        shards = f"{len(self.made)} shards made, {len(self.kept)} kept"
        return f"{shards}, {self.num_samples} samples: {self.out}"


def encode(
    manifest: Path,
    encoder: Encoder,
    config: EncodeConfig,
    resolution: int,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    part: int = 0,
    num_parts: int = 1,
) -> EncodeReport:
    """Make `out` hold the latent shards of `manifest` at `resolution` pixels; finished shards are kept.

    progress: called with the samples done and all there are. part, num_parts: of the shards, every num_parts-th from
    `part` on is made; the parts need not run at the same time, and part 0 embeds the prompts.
    A shard is made again when its rows have changed. Memory needed: one batch and the rows of one shard, whatever the
    manifest's size. Raises: DataError, before anything is written, if `out` holds shards that another encoder or other
    settings made; where another process writes the same shard.
    """
    if resolution % 8 or resolution <= 0:
        low = max(8, resolution // 8 * 8)
        raise DataError(f"resolution={resolution} is not a multiple of 8; nearest that work: {low}, {low + 8}")
    with ManifestSlices.open(manifest, config.samples_per_shard) as rows:
        return _encode(rows, encoder, config, resolution, out, progress, part, num_parts)


def _encode(
    stored: ManifestSlices,
    encoder: Encoder,
    config: EncodeConfig,
    resolution: int,
    out: Path,
    progress: Callable[[int, int], None] | None,
    part: int,
    num_parts: int,
) -> EncodeReport:
    contents = Contents(fingerprint(encoder, config, resolution), stored.palette, _planned(stored))
    with writing(out, CONTENTS_FILE, wait=True):
        _write_contents(out, contents)
    if part == 0:
        with writing(out, ARRAY_FILE):
            write_embeddings(
                out,
                stored.prompts(),
                lambda prompts: encoder.embed(prompts).float().cpu().numpy(),
                batch_size=16 * config.batch_size,
                fingerprint_sha256=contents.fingerprint_sha256,
            )

    mine = list(stored.sizes)[part::num_parts]
    num_samples = sum(stored.sizes[name] for name in mine)
    num_done = 0
    made, kept = [], []

    def count(samples: int) -> None:
        nonlocal num_done
        num_done += samples
        if progress is not None:
            progress(num_done, num_samples)

    for name in mine:
        with writing(out, f"{name}.tar"):
            if _is_finished(out, name, contents):
                kept.append(name)
                count(stored.sizes[name])
            else:
                _write_shard(out, name, stored.rows(name), contents, encoder, config, resolution, count)
                made.append(name)
    return EncodeReport(out, tuple(made), tuple(kept), num_samples)


def refuse_stale(shards: Path, manifest: Path, config: EncodeConfig) -> None:
    """Raise DataError unless the shards hold just the rows that `manifest` has now, each in the split it has now.

    Images that were withdrawn, or that another draw of the splits holds out, must not be trained on.
    """
    with ManifestSlices.open(manifest, config.samples_per_shard) as stored:
        planned = _planned(stored)
    if Contents.read(shards).shards != planned:
        raise DataError(f"{manifest} has changed since {shards} was encoded: run `sonoshard encode` again")


def fingerprint(encoder: Encoder, config: EncodeConfig, resolution: int) -> dict[str, str]:
    """Return everything that the bytes of a shard depend on besides the manifest's rows, by part."""
    preprocessing = {
        "resolution": str(resolution),
        "resize": config.resize,
        "moments_dtype": config.moments_dtype,
        "pillow": PIL.__version__,
    }
    assert not preprocessing.keys() & encoder.fingerprint.keys()
    return {**encoder.fingerprint, **preprocessing}


def _planned(stored: ManifestSlices) -> dict[str, PlannedShard]:
    """Return what tells of each shard whether it holds its rows: files by their hashes, so that folders may move."""
    return {name: _planned_shard(stored.rows(name), stored.palette) for name in stored.sizes}


def _planned_shard(rows: Sequence[ManifestRow], palette: Sequence[str]) -> PlannedShard:
    digest = hashlib.sha256()
    for row in rows:
        classes = {value: palette.index(name) for value, name in row.mask_classes.items()}
        facts = [_facts(row), row.masks_sha256, sorted(classes.items())]
        digest.update(json.dumps(facts, sort_keys=True).encode() + b"\n")
    return PlannedShard(len(rows), digest.hexdigest())


def _facts(row: ManifestRow) -> dict[str, Any]:
    """Return what KEY.json says of a sample. has_hint: whether the database has a mask for it, if an empty one."""
    names = ("id", "database", "split", "label", "prompts", "patient", "cluster", "crop", "licence", "flags")
    described = ("organ", "pathology", "view", "attributes")
    facts = {name: getattr(row, name) for name in (*names, *described)}
    return {**facts, "image_sha256": row.sha256, "has_hint": bool(row.masks)}


def _is_finished(out: Path, name: str, contents: Contents) -> bool:
    try:
        facts, _ = read_index(index_path(out, name))
    except (FileNotFoundError, DataError):
        return False
    tar = tar_path(out, name)
    return (
        facts.rows_sha256 == contents.shards[name].rows_sha256
        and facts.fingerprint_sha256 == contents.fingerprint_sha256
        and tar.is_file()
        and tar.stat().st_size == facts.tar_bytes
    )


def _write_contents(out: Path, contents: Contents) -> None:
    """Make the folder say what it must hold, and take out of it what it must not."""
    stored = Contents.read(out) if (out / CONTENTS_FILE).exists() else None
    if stored is not None:
        stored.refuse_other(contents.fingerprint, out, "encode into another folder, or remove this one")
    others = {index.parent.name for index in out.glob(INDEXES)} - {name.partition("/")[0] for name in contents.shards}
    if others:  # of a run, perhaps, that shares this folder, and of which the manifest knows nothing
        databases = ", ".join(sorted(others))
        raise DataError(
            f"{out} holds shards of {databases}, of which the manifest has no image: encode into another folder, or"
            f" remove {', '.join(str(out / name) for name in sorted(others))}"
        )
    if stored != contents:
        contents.write(out)
    _remove_unplanned(out, contents)


def _remove_unplanned(out: Path, contents: Contents) -> None:
    """Remove the shards of rows that are gone: who reads all tars of a folder would read them too."""
    for index in sorted(out.glob(INDEXES)):
        name = f"{index.parent.name}/{index.stem}"
        if name not in contents.shards:
            index.unlink()
            tar_path(out, name).unlink(missing_ok=True)


def _write_shard(
    out: Path,
    name: str,
    rows: Sequence[ManifestRow],
    contents: Contents,
    encoder: Encoder,
    config: EncodeConfig,
    resolution: int,
    count: Callable[[int], None],
) -> None:
    """Write a shard's tar, then its index; a kill between the two leaves it unfinished."""
    from webdataset import TarWriter

    samples: dict[str, dict[str, Any]] = {}
    shape: tuple[int, ...] = ()
    index_path(out, name).unlink(missing_ok=True)
    with replacing(tar_path(out, name)) as tar:
        with tar.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
            for start in range(0, len(rows), config.batch_size):
                batch = rows[start : start + config.batch_size]
                moments = _moments(batch, encoder, config, resolution)
                shape = moments.shape[1:]
                for row, of_row in zip(batch, moments, strict=True):
                    hint = hint_of(row, contents.palette, resolution, config.resize)
                    contents_of = [_png(hint), _json(_facts(row)), _npy(of_row)]
                    members = dict(zip(MEMBERS, contents_of, strict=True))
                    key = sample_key(row.id)
                    writer.write({"__key__": key, **members})
                    samples[key] = {
                        **_facts(row),
                        "key": key,
                        "likeness": bytes.fromhex(row.likeness),
                        "sha256": hashlib.sha256(b"".join(members[member] for member in MEMBERS)).hexdigest(),
                    }
                count(len(batch))
        for key, places in _places(tar).items():
            samples[key] |= places
        with tar.open("rb") as finished:
            tar_sha256 = hashlib.file_digest(finished, "sha256").hexdigest()
        facts = ShardFacts(
            fingerprint_sha256=contents.fingerprint_sha256,
            rows_sha256=contents.shards[name].rows_sha256,
            tar_bytes=tar.stat().st_size,
            tar_sha256=tar_sha256,
            moments_shape=shape,
            moments_dtype=config.moments_dtype,
        )
    write_index(index_path(out, name), list(samples.values()), facts)


def sample_key(id_: str) -> str:
    """Return a WebDataset key for an id: unique, readable, without the dots and slashes that would cut it."""
    readable = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in id_)
    return f"{readable[-48:]}-{hashlib.sha256(id_.encode()).hexdigest()[:12]}"


def _places(tar: Path) -> dict[str, dict[str, int]]:
    """Return for each key where in the tar its members' contents lie."""
    places: dict[str, dict[str, int]] = {}
    with tarfile.open(tar) as members:
        for member in members:
            key, _, extension = member.name.partition(".")
            kind = extension.split(".")[0]
            places.setdefault(key, {}).update({f"{kind}_offset": member.offset_data, f"{kind}_bytes": member.size})
    return places


def _moments(
    rows: Sequence[ManifestRow], encoder: Encoder, config: EncodeConfig, resolution: int
) -> NDArray[np.generic]:
    """Return the stored moments of images and mirror images, [B, 2, 2 C, H/8, W/8]."""
    import torch

    pictures = [picture_of(row, resolution, config.resize) for row in rows]
    images_BHWC = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    images_BCHW = images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
    # One after the other: the batch size is the user's word on memory.
    both = torch.stack([encoder.moments(images_BCHW), encoder.moments(images_BCHW.flip(-1))], dim=1).cpu()
    assert both.dtype == torch.float32
    assert both.shape[0] == len(rows)
    assert both.shape[3:] == (resolution // 8, resolution // 8)
    both = both.to(getattr(torch, config.moments_dtype))
    for row, of_row in zip(rows, both, strict=True):
        if not of_row.isfinite().all():
            raise DataError(
                f"the VAE's moments of {row.id} are not finite as {config.moments_dtype}: set"
                " encode.moments_dtype=float32; if it is, look at the image and at the base model's VAE"
            )
    # NumPy has no bfloat16: its bits are stored.
    return (both.view(torch.uint16) if both.dtype == torch.bfloat16 else both).numpy()


def _png(hint: Image.Image) -> bytes:
    hint.putpalette(LEVELS.tobytes())
    content = io.BytesIO()
    hint.save(content, format="PNG")
    return content.getvalue()


def _json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()


def _npy(array: NDArray[np.generic]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
