"""Writes configs/schema.json, from which an editor completes and explains the keys: python -m launch.schema"""

import json
from pathlib import Path

from launch.config import RunConfig

SCHEMA = Path(__file__).parent.parent / "configs" / "schema.json"

EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "Files that this one builds on, relative to it: its own keys go before theirs, lists as a whole.",
    "title": "Extends",
}


def schema_text() -> str:
    """Return the JSON schema of a configuration file."""
    schema = RunConfig.model_json_schema()
    schema["properties"] = {"extends": EXTENDS} | schema["properties"]
    # A file that extends another needs nothing of its own.
    del schema["required"]
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    print(f"wrote {SCHEMA}")
