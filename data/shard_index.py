"""The files of a folder of latent shards: what is in it, and the index beside each tar.

fingerprint.json            what encoded them, and the shards that there must be
text.npy, text.parquet      embeddings of all prompts and of the empty one
busi/train-000000.tar       WebDataset: KEY.hint.png, KEY.json, KEY.moments.npy for each sample
busi/train-000000.parquet   where in the tar each sample's members lie; written last: a tar without it is unfinished
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from data.durable import replacing
from data.errors import DataError
from data.hashed_table import read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 3
CONTENTS_FILE = "fingerprint.json"
EMPTY_PROMPT = ""
# The members of a sample, in the order that they have in the tar.
MEMBERS = ("hint.png", "json", "moments.npy")


@dataclass(frozen=True)
class PlannedShard:
    """A shard that there must be: `rows_sha256` tells the manifest's rows that belong in it."""

    num_samples: int
    rows_sha256: str


@dataclass(frozen=True)
class Contents:
    """What a folder of shards must hold.

    fingerprint: part -> hash, version or setting that the bytes depend on. palette: class names by number in the
    hints. shards: "database/split-number" -> what belongs in it.
    """

    fingerprint: Mapping[str, str]
    palette: tuple[str, ...]
    shards: Mapping[str, PlannedShard]

    @property
    def fingerprint_sha256(self) -> str:
        """The fingerprint as one hash, for the shards to carry."""
        return _hash(dict(self.fingerprint))

    def write(self, folder: Path) -> None:
        """Replace the folder's fingerprint.json."""
        about = {
            "version": VERSION,
            "fingerprint": dict(sorted(self.fingerprint.items())),
            "palette": self.palette,
            "shards": {name: asdict(shard) for name, shard in self.shards.items()},
        }
        with replacing(folder / CONTENTS_FILE) as path:
            path.write_text(json.dumps({**about, "sha256": _hash(about)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what the folder says that it holds. Raises: DataError if it is no folder of shards."""
        path = folder / CONTENTS_FILE
        if not path.is_file():
            raise DataError(f"{folder} holds no latent shards ({CONTENTS_FILE} is missing): run `sonoshard encode`")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["version"] != VERSION:
                raise DataError(f"{path} has version {about['version']}, needed {VERSION}: encode into another folder")
            if about.pop("sha256") != _hash(about):
                raise ValueError("of another content")
            return cls(
                fingerprint=dict(about["fingerprint"]),
                palette=tuple(about["palette"]),
                shards={name: PlannedShard(**shard) for name, shard in about["shards"].items()},
            )
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged: remove it and run `sonoshard encode` again") from error

    def refuse_other(self, expected: Mapping[str, str], folder: Path, mend: str) -> None:
        """Raise DataError, naming the part, if one of `expected` is not what the shards were made with."""
        for part, needed in expected.items():
            if (found := self.fingerprint.get(part, "nothing")) != needed:
                raise DataError(f"the shards in {folder} were made with {part} {found}, needed {needed}: {mend}")


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ShardFacts:
    """What the index says of its tar as a whole. moments_shape: [2 (image, mirror image), 2 C, h, w]."""

    fingerprint_sha256: str
    rows_sha256: str
    tar_bytes: int
    tar_sha256: str
    moments_shape: tuple[int, ...]
    moments_dtype: str


def tar_path(folder: Path, shard: str) -> Path:
    """Return where a shard's tar lies."""
    return folder / f"{shard}.tar"


def index_path(folder: Path, shard: str) -> Path:
    """Return where a shard's index lies."""
    return folder / f"{shard}.parquet"


def write_index(path: Path, samples: Sequence[Mapping[str, Any]], facts: ShardFacts) -> None:
    """Replace the index at `path`; samples: a mapping with the columns of the index for each sample of the tar."""
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist(list(samples), schema=_schema()), {"version": VERSION, **asdict(facts)})


def read_index(path: Path) -> tuple[ShardFacts, "pa.Table"]:
    """Return an index's facts and its rows.

    Raises: FileNotFoundError; DataError if a byte of it is not what was written.
    """
    about, table = read_table(path)
    if about.pop("version") != VERSION:
        raise DataError(f"{path} is of another version: remove it and run `sonoshard encode` again")
    return ShardFacts(**about | {"moments_shape": tuple(about["moments_shape"])}), table


def read_samples(paths: Sequence[Path], shards: Sequence[str]) -> "pa.Table":
    """Return the rows of several indexes, one after another, with the shard's name as a further column."""
    import pyarrow as pa

    tables = []
    for path, shard in zip(paths, shards, strict=True):
        _, table = read_index(path)
        tables.append(table.append_column("shard", pa.array([shard] * len(table)).dictionary_encode()))
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _schema() -> "pa.Schema":
    """Return the columns of an index; offset and bytes are of a member's content in the tar.

    likeness: the image's perceptual hashes, empty where the manifest has none.
    """
    import pyarrow as pa

    texts = ("key", "id", "database", "split", "label", "patient", "cluster", "image_sha256", "sha256")
    columns = {name: pa.string() for name in texts}
    places = {f"{member.split('.')[0]}_{what}": pa.int64() for member in MEMBERS for what in ("offset", "bytes")}
    others = {"likeness": pa.binary(), "prompts": pa.list_(pa.string()), "has_hint": pa.bool_()}
    return pa.schema({**columns, **others, **places})
