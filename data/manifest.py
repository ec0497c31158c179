"""The manifest: a row an image over all databases, with hashes and splits; broken images and masks are found here."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.databases import AnyDatabase, Row
from data.durable import replacing
from data.errors import DataError
from data.images import decode, mask_values
from data.splits import Candidate, Split, assign, keyed_hash, known_split

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

VERSION = 2
# The mask classes that the built-in databases know, at numbers that never change; others are appended as they come.
PALETTE = ("background", "lesion", "left ventricle", "myocardium", "left atrium", "head")
METADATA_KEY = b"sonoshard"

OnFault = Literal["skip", "refuse"]


class MaskMismatchError(DataError):
    """A mask does not belong to its image: another size, or values that mean no class."""


class PrepareConfig(BaseModel):
    """How databases become a manifest."""

    model_config = ConfigDict(extra="forbid")

    on_undecodable: OnFault = Field(
        "refuse", description="An image or mask that cannot be decoded: leave its image out (skip), or stop (refuse)."
    )
    on_mask_mismatch: OnFault = Field(
        "refuse",
        description="A mask of another size than its image, or with values that mean no class: leave its image out "
        "(skip), or stop (refuse).",
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of a database's images, by patient, that are held out for validation."
    )
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of a database's images, by patient, that are held out for the end."
    )
    seed: int = Field(0, ge=0, description="Key of the draw of splits. It counts only for images not yet drawn.")

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(f"validation_fraction + test_fraction is {held_out:g}, needed less than 1")
        return self


@dataclass(frozen=True, kw_only=True)
class ManifestRow(Row):
    """A row of the manifest; its id is "database/id".

    sha256: of the image file. cluster: who shares its split. crop: the part of the image and its masks to train on,
    left, top, right and bottom in pixels (right and bottom exclusive); None: the whole.
    """

    database: str
    sha256: str
    masks_sha256: tuple[str, ...]
    width: int
    height: int
    cluster: str
    crop: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Drawn:
    """The split of an image that a manifest once had and has no more: it is remembered, should the image come back."""

    id: str
    database: str
    label: str
    ties: tuple[str, ...]
    split: Split


@dataclass(frozen=True)
class Manifest:
    """The rows, in the order that shards keep.

    palette: mask class names by number. drawn_with: the settings of the last draw. absent: splits of rows now gone.
    """

    rows: tuple[ManifestRow, ...]
    palette: tuple[str, ...]
    drawn_with: Mapping[str, float] = field(default_factory=dict)
    absent: tuple[Drawn, ...] = ()

    def write(self, path: Path) -> None:
        """Replace the Parquet file at `path`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {
            "version": VERSION,
            "palette": self.palette,
            "drawn_with": dict(self.drawn_with),
            "absent": [[drawn.id, drawn.database, drawn.label, drawn.ties, drawn.split] for drawn in self.absent],
        }
        schema = _schema().with_metadata({METADATA_KEY: json.dumps(about).encode()})
        table = pa.Table.from_pylist([_to_cells(row) for row in self.rows], schema=schema)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the manifest at `path`. Raises: DataError if there is none, or none of this version."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise DataError(f"there is no manifest {path}: run `sonoshard prepare` first")
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[METADATA_KEY])
        except (pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{path} is not a manifest of SonoShard: remove it and run `sonoshard prepare`") from error
        if about["version"] != VERSION:
            raise DataError(
                f"{path} has version {about['version']}, needed {VERSION}: remove it and run `sonoshard prepare`"
            )
        return cls(
            rows=tuple(_from_cells(cells) for cells in table.to_pylist()),
            palette=tuple(about["palette"]),
            drawn_with=about["drawn_with"],
            absent=tuple(
                Drawn(id_, database, label, tuple(ties), split) for id_, database, label, ties, split in about["absent"]
            ),
        )


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    skipped: id -> why it was left out. num_new: rows that the stored manifest did not have. num_duplicates: images
    whose file is the same as an earlier one's. contradicting: ids of duplicates that have different labels.
    """

    manifest: Path
    counts: Mapping[tuple[str, str, Split], int]
    skipped: Mapping[str, str]
    num_new: int
    num_duplicates: int
    contradicting: Sequence[str]

    @property
    def num_images(self) -> int:
        """Images in the manifest."""
        return sum(self.counts.values())

    def table(self) -> "pd.DataFrame":
        """Return the number of images, a row per database and label, a column per split, with sums."""
        import pandas as pd

        cells = pd.Series(dict(self.counts)).rename_axis(["database", "label", "split"])
        table = cells.unstack("split", fill_value=0).reindex(columns=["train", "validation", "test"], fill_value=0)
        table.loc[("all", ""), :] = table.sum()
        return table.astype(int).assign(all=lambda counts: counts.sum(axis=1))

    def __str__(self) -> str:
        lines = [self.table().to_string(), f"{self.num_images} images, {self.num_new} of them new: {self.manifest}"]
        if self.num_duplicates:
            lines.append(f"{self.num_duplicates} are copies of another file and share its split")
        if self.contradicting:
            lines.append(f"{len(self.contradicting)} copies have another label: {_some(self.contradicting)}")
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped:")
            lines += [f"  {id_}: {reason}" for id_, reason in self.skipped.items()]
        return "\n".join(lines)


def prepare(databases: Mapping[str, AnyDatabase], config: PrepareConfig, out: Path, workspace: Path) -> PrepareReport:
    """Write the manifest of `databases` to `out`; rows that it has already keep their split and their place.

    workspace: a folder for the files that databases make. Raises: DataError, with the old manifest untouched.
    """
    stored = Manifest.read(out) if out.exists() else Manifest(rows=(), palette=PALETTE)
    rows, skipped = _inspect(databases, config, workspace)
    rows = _with_splits(_in_order(rows, stored, config.seed), stored, config)
    _refuse_empty_splits(databases, rows, config)
    names = {name for row in rows for name in row.mask_classes.values()}
    palette = stored.palette + tuple(sorted(names - set(stored.palette)))
    if len(palette) > 256:
        raise DataError(f"the masks have {len(palette)} classes, needed at most 256 over all databases")
    drawn_with = config.model_dump(include={"validation_fraction", "test_fraction", "seed"})
    if stored.rows and stored.drawn_with != drawn_with:
        was = ", ".join(f"{name}={value:g}" for name, value in stored.drawn_with.items())
        warnings.warn(f"stored splits stay as drawn with {was}: the new ones are for new images only", stacklevel=2)
    Manifest(tuple(rows), palette, drawn_with, _absent(rows, stored)).write(out)
    return _report(rows, skipped, stored, out)


def _inspect(
    databases: Mapping[str, AnyDatabase], config: PrepareConfig, workspace: Path
) -> tuple[list[ManifestRow], dict[str, str]]:
    """Return the rows whose files are right, without splits of our own, and the reasons against the others."""
    rows: dict[str, ManifestRow] = {}
    undecodable: dict[str, str] = {}
    mismatched: dict[str, str] = {}
    for name, database in databases.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise DataError(f"a database is named {name!r}, needed letters, digits, - and _: it names a folder")
        for row in database.rows(workspace / name):
            id_ = f"{name}/{row.id}"
            if id_ in rows:
                raise DataError(f"{id_} comes twice: {rows[id_].image} and {row.image}; needed one id an image")
            try:
                rows[id_] = _inspect_row(id_, name, row)
            except MaskMismatchError as error:
                mismatched[id_] = str(error)
            except DataError as error:
                undecodable[id_] = str(error)
    num_seen = len(rows) + len(undecodable) + len(mismatched)
    _refuse(undecodable, "cannot be decoded", config.on_undecodable, "on_undecodable", num_seen)
    _refuse(mismatched, "have a mask that does not fit", config.on_mask_mismatch, "on_mask_mismatch", num_seen)
    return list(rows.values()), undecodable | mismatched


def _inspect_row(id_: str, database: str, row: Row) -> ManifestRow:
    """Return a row with hashes and size. Raises: DataError if one of its files is not what it should be."""
    image, sha256 = decode(row.image)
    masks_sha256 = []
    for path in row.masks:
        mask, mask_sha256 = decode(path)
        if mask.size != image.size:
            sizes = f"{mask.width}x{mask.height}, its image {image.width}x{image.height}"
            raise MaskMismatchError(f"{path} is {sizes} pixels")
        values = np.unique(mask_values(mask, row.mask_classes))
        if unknown := sorted(set(values.tolist()) - {0} - row.mask_classes.keys()):
            known = ", ".join(f"{value} {name}" for value, name in row.mask_classes.items())
            raise MaskMismatchError(f"{path} has the value {unknown[0]}, known are {known}")
        masks_sha256.append(mask_sha256)
    given = {column.name: getattr(row, column.name) for column in fields(Row)} | {"id": id_}
    found = {"sha256": sha256, "masks_sha256": tuple(masks_sha256), "width": image.width, "height": image.height}
    paths = {"image": row.image.absolute(), "masks": tuple(path.absolute() for path in row.masks)}
    return ManifestRow(**{**given, **found, **paths, "database": database, "cluster": id_})


def _refuse(faults: Mapping[str, str], what: str, setting: OnFault, name: str, num_seen: int) -> None:
    """Raise the DataError for `faults`, if there are any and the setting says so."""
    if faults and setting == "refuse":
        reason = next(iter(faults.values()))
        raise DataError(
            f"{len(faults)} of {num_seen} images {what}: {_some(list(faults))} ({reason}); "
            f"mend them, or set prepare.{name}=skip to leave them out"
        )


def _with_splits(rows: Sequence[ManifestRow], stored: Manifest, config: PrepareConfig) -> list[ManifestRow]:
    """Return the rows with split, cluster, and the flag `duplicate` on all but the first of equal files."""
    known: dict[str, Split] = {row.id: known_split(row.split or "") for row in stored.rows}
    known |= {drawn.id: drawn.split for drawn in stored.absent}
    candidates = [
        Candidate(
            id=row.id,
            database=row.database,
            label=row.label,
            ties=_ties(row),
            own=known_split(row.split) if row.split else None,
            stored=known.get(row.id),
        )
        for row in rows
    ]
    candidates += [
        Candidate(id=gone.id, database=gone.database, label=gone.label, ties=gone.ties, stored=gone.split)
        for gone in _absent(rows, stored)
    ]
    fractions: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    assigned = assign(candidates, fractions, config.seed)
    seen: set[str] = set()
    result = []
    for row in rows:
        flags = (*row.flags, "duplicate") if row.sha256 in seen else row.flags
        seen.add(row.sha256)
        split, cluster = assigned[row.id]
        result.append(replace(row, split=split, cluster=cluster, flags=flags))
    return result


def _ties(row: ManifestRow) -> tuple[str, ...]:
    """Return what a row must not be parted over: its patient, its file."""
    patient = (f"patient {row.database}/{row.patient}",) if row.patient is not None else ()
    return (*patient, f"file {row.sha256}")


def _absent(rows: Sequence[ManifestRow], stored: Manifest) -> tuple[Drawn, ...]:
    """Return the splits of all rows that a manifest ever had and `rows` has not."""
    present = {row.id for row in rows}
    gone = [
        Drawn(row.id, row.database, row.label, _ties(row), known_split(row.split or ""))
        for row in stored.rows
        if row.id not in present
    ]
    return tuple(sorted([*gone, *(d for d in stored.absent if d.id not in present)], key=lambda drawn: drawn.id))


def _in_order(rows: Sequence[ManifestRow], stored: Manifest, seed: int) -> list[ManifestRow]:
    """Return the stored rows in their places, then the new ones in the order of a keyed hash.

    So a shard is a mix of labels, and new images leave the shards before them as they are.
    """
    places = {row.id: place for place, row in enumerate(stored.rows)}
    return sorted(rows, key=lambda row: (places.get(row.id, len(places)), keyed_hash(row.id, seed)))


def _refuse_empty_splits(names: Mapping[str, AnyDatabase], rows: Sequence[ManifestRow], config: PrepareConfig) -> None:
    if not names:
        raise DataError("there are no databases; needed at least one under `databases`")
    for name in names:
        mine = [row for row in rows if row.database == name]
        if not mine:
            raise DataError(f"database {name} has no images left: look at what was skipped")
        for split in ("train", "validation"):
            if not any(row.split == split for row in mine):
                num_clusters = len({row.cluster for row in mine})
                raise DataError(
                    f"database {name} has no {split} images: {len(mine)} images of {num_clusters} patients or files "
                    f"at validation_fraction={config.validation_fraction:g} and "
                    f"test_fraction={config.test_fraction:g}; add images, or change the fractions"
                )


def _report(rows: Sequence[ManifestRow], skipped: Mapping[str, str], stored: Manifest, out: Path) -> PrepareReport:
    counts: dict[tuple[str, str, Split], int] = {}
    labels: dict[str, set[str]] = {}
    for row in rows:
        key = (row.database, row.label, known_split(row.split or ""))
        counts[key] = counts.get(key, 0) + 1
        labels.setdefault(row.sha256, set()).add(row.label)
    before = {row.id for row in stored.rows}
    return PrepareReport(
        manifest=out,
        counts=dict(sorted(counts.items())),
        skipped=skipped,
        num_new=sum(row.id not in before for row in rows),
        num_duplicates=sum("duplicate" in row.flags for row in rows),
        contradicting=[row.id for row in rows if len(labels[row.sha256]) > 1],
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _schema() -> "pa.Schema":
    import pyarrow as pa

    texts = pa.list_(pa.string())
    return pa.schema(
        {
            "id": pa.string(),
            "database": pa.string(),
            "image": pa.string(),
            "sha256": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "organ": pa.string(),
            "pathology": pa.string(),
            "view": pa.string(),
            "prompts": texts,
            "label": pa.string(),
            "masks": texts,
            "masks_sha256": texts,
            "mask_classes": pa.map_(pa.int32(), pa.string()),
            "attributes": pa.map_(pa.string(), pa.string()),
            "patient": pa.string(),
            "cluster": pa.string(),
            "crop": pa.list_(pa.int32()),
            "split": pa.string(),
            "licence": pa.string(),
            "flags": texts,
        }
    )


def _to_cells(row: ManifestRow) -> dict[str, Any]:
    cells = {column.name: getattr(row, column.name) for column in fields(row)}
    return cells | {"image": str(row.image), "masks": [str(path) for path in row.masks]}


def _from_cells(cells: Mapping[str, Any]) -> ManifestRow:
    values: dict[str, Any] = {name: tuple(cell) if isinstance(cell, list) else cell for name, cell in cells.items()}
    values |= {"image": Path(cells["image"]), "masks": tuple(Path(path) for path in cells["masks"])}
    return ManifestRow(
        **values | {"mask_classes": dict(cells["mask_classes"]), "attributes": dict(cells["attributes"])}
    )
