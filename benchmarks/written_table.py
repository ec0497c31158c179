"""Tables that a script writes into a page of docs/, between two comments that Markdown does not show."""

import re
from collections.abc import Sequence
from pathlib import Path


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def written(page: str, name: str) -> str:
    """Return what stands in a page between `<!-- NAME: ... -->` and `<!-- end of NAME -->`.

    Raises: ValueError if the page has no such pair, or several.
    """
    return _between(page, name)[2]


def rewritten(page: str, name: str, content: str) -> str:
    """Return the page with `content` between the two comments of `name`. Raises: ValueError as `written` does."""
    before, after, _ = _between(page, name)
    return f"{before}\n\n{content}\n\n{after}"


def write_into(path: Path, contents: dict[str, str]) -> None:
    """Replace the named parts of the page at `path`."""
    page = path.read_text(encoding="utf-8")
    for name, content in contents.items():
        page = rewritten(page, name, content)
    path.write_text(page, encoding="utf-8")


def _between(page: str, name: str) -> tuple[str, str, str]:
    begins = list(re.finditer(rf"<!-- {re.escape(name)}: [^\n]*-->", page))
    ends = list(re.finditer(rf"<!-- end of {re.escape(name)} -->", page))
    if len(begins) != 1 or len(ends) != 1 or ends[0].start() < begins[0].end():
        raise ValueError(
            f"needed one `<!-- {name}: ... -->` and after it one `<!-- end of {name} -->`, found {len(begins)} and"
            f" {len(ends)}"
        )
    return page[: begins[0].end()], page[ends[0].start() :], page[begins[0].end() : ends[0].start()].strip()
