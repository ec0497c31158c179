"""The manifest: one row per image over all databases, with hashes, flags and splits, in one Parquet file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from data.databases import Row
from data.durable import replacing
from data.errors import DataError
from data.splits import Split, known_split

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 3
# The mask classes of all databases that have an adapter, at numbers that never change, so that a ControlNet trained on
# one reads the hints of another; those of manifest files are appended as they come.
PALETTE = (
    "background",
    "lesion",
    *("left ventricle", "myocardium", "left atrium"),
    "head",
    *("thyroid nodule", "thyroid gland"),
    *("chocolate cyst", "serous cystadenoma", "teratoma", "theca cell tumor"),
    *("simple cyst", "normal ovary", "mucinous cystadenoma", "high-grade serous cystadenoma"),
)
METADATA_KEY = b"sonoshard"
# So many rows are read at a time, some 1 MB as Arrow's columns.
ROW_GROUP_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class ManifestRow(Row):
    """A row of the manifest; its id is "database/id".

    sha256: of the image file. likeness: its perceptual hashes. patient: with the name under which patients are known.
    cluster: who shares its split. crop: the part of the image and its masks to train on, left, top, right and bottom in
    pixels (right and bottom exclusive); None: the whole.
    """

    database: str
    sha256: str
    masks_sha256: tuple[str, ...]
    width: int
    height: int
    cluster: str
    likeness: str = ""
    crop: tuple[int, int, int, int] | None = None

    @property
    def key(self) -> str:
        """Names the image by its content too: another file under the same id is another image."""
        return f"{self.id}@{self.sha256}"


@dataclass(frozen=True)
class Drawn:
    """The split of an image that a manifest once had and has no more.

    It is remembered, should the image come back under this or another id, or one that is like it, or of its patient.
    """

    id: str
    database: str
    label: str
    patient: str | None
    sha256: str
    likeness: str
    split: Split

    @classmethod
    def of(cls, row: ManifestRow) -> Self:
        """Return what is remembered of a row that has its split."""
        split = known_split(row.split or "")
        return cls(row.id, row.database, row.label, row.patient, row.sha256, row.likeness, split)

    @property
    def key(self) -> str:
        """As of a row."""
        return f"{self.id}@{self.sha256}"


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
            "absent": [asdict(drawn) for drawn in self.absent],
        }
        schema = _schema().with_metadata({METADATA_KEY: json.dumps(about).encode()})
        table = pa.Table.from_pylist([_to_cells(row) for row in self.rows], schema=schema)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, row_group_size=ROW_GROUP_ROWS, compression="zstd")

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
            rows=tuple(row_from_cells(cells) for cells in table.to_pylist()),
            palette=tuple(about["palette"]),
            drawn_with=about["drawn_with"],
            absent=tuple(Drawn(**drawn) for drawn in about["absent"]),
        )


def _schema() -> "pa.Schema":
    import pyarrow as pa

    texts = pa.list_(pa.string())
    return pa.schema(
        {
            "id": pa.string(),
            "database": pa.string(),
            "image": pa.string(),
            "sha256": pa.string(),
            "likeness": pa.string(),
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
    cells = {column.name: getattr(row, column.name) for column in fields(row) if column.name != "fault"}
    return cells | {"image": str(row.image), "masks": [str(path) for path in row.masks]}


def row_from_cells(cells: Mapping[str, Any]) -> ManifestRow:
    """Return the row that a line of the Parquet file holds."""
    values: dict[str, Any] = {name: tuple(cell) if isinstance(cell, list) else cell for name, cell in cells.items()}
    values |= {"image": Path(cells["image"]), "masks": tuple(Path(path) for path in cells["masks"])}
    return ManifestRow(
        **values | {"mask_classes": dict(cells["mask_classes"]), "attributes": dict(cells["attributes"])}
    )
