"""How a saved model was trained: a JSON file in its folder."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

# Beside model_index.json.
RECORD_FILE = "sonoshard.json"
# In the record of a ControlNet: red, green and blue of each class of a mask, and of a hint that says nothing.
HINT_COLOURS = "hint_colours"


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return how the model in `folder` was trained; None where `save_pipeline` did not write one."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record


def record_sha256(folder: Path) -> str | None:
    """Return the SHA-256 of what says how a model was trained, and how far; None where nothing does."""
    file = folder / RECORD_FILE
    return sha256(file.read_bytes()).hexdigest() if file.is_file() else None
