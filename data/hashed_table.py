"""Parquet files that carry a hash of themselves, so that a flipped bit is found wherever it is."""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.durable import replacing
from data.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY = b"sonoshard"
# The hash is of the file with zeros in the hash's own place.
NO_HASH = "0" * 64
HASH = re.compile(rb'"file_sha256": "([0-9a-f]{64})"')
ENCODE_AGAIN = "run `sonoshard encode` again"


def write_table(path: Path, table: "pa.Table", about: Mapping[str, Any]) -> None:
    """Replace the Parquet file at `path`. about: what it says of itself as a whole, as JSON."""
    import pyarrow.parquet as pq

    metadata = {METADATA_KEY: json.dumps({**about, "file_sha256": NO_HASH})}
    stream = io.BytesIO()
    # Arrow's own schema, which the file has too, repeats the metadata in base64: the pattern is found once.
    pq.write_table(table.replace_schema_metadata(metadata), stream, compression="zstd")
    content = stream.getvalue()
    ((start, end),) = [match.span(1) for match in HASH.finditer(content)]
    digest = hashlib.sha256(content).hexdigest().encode()
    with replacing(path) as temporary:
        temporary.write_bytes(content[:start] + digest + content[end:])


def read_table(path: Path) -> tuple[dict[str, Any], "pa.Table"]:
    """Return what a file says of itself, and its table.

    Raises: FileNotFoundError; DataError if a byte of it is not what was written.
    """
    import pyarrow.parquet as pq

    content = path.read_bytes()
    found = HASH.search(content)
    if found is None or _hash_with_zeros(content, *found.span(1)) != found[1].decode():
        raise DataError(f"{path} is damaged: remove it and {ENCODE_AGAIN}")
    table = pq.ParquetFile(io.BytesIO(content)).read()  # `pq.read_table` imports pandas
    about = json.loads(table.schema.metadata[METADATA_KEY])
    del about["file_sha256"]
    return about, table.replace_schema_metadata(None)


def _hash_with_zeros(content: bytes, start: int, end: int) -> str:
    digest = hashlib.sha256(content[:start])
    digest.update(NO_HASH.encode())
    digest.update(content[end:])
    return digest.hexdigest()
