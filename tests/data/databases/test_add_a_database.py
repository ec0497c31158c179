"""What docs/add-a-database.md shows is the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "add-a-database.md").read_text(encoding="utf-8")


def test_the_example_is_the_adapter() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert example in (ROOT / "data" / "databases" / "udiat.py").read_text(encoding="utf-8")


def test_what_there_is_to_build_with_is_there() -> None:
    table = GUIDE.split("What there is to build with")[1].split("Rules:")[0]
    named = re.findall(r"`(\w+)\.(\w+)`", table)
    assert named
    for module, name in named:
        assert f"def {name}(" in (ROOT / "data" / "databases" / f"{module}.py").read_text(encoding="utf-8")
