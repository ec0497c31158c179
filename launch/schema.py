"""Writes configs/schema.json, from which an editor completes and explains the keys: python -m launch.schema"""

import json
from pathlib import Path

from launch.config import RunConfig

SCHEMA = Path(__file__).parent.parent / "configs" / "schema.json"


def schema_text() -> str:
    """Return the JSON schema of a configuration file."""
    return json.dumps(RunConfig.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    print(f"wrote {SCHEMA}")
