"""Cells of tables that may hold a few values only."""

from collections.abc import Collection

from data.errors import DataError

YES, NO = ("yes", "true", "1"), ("no", "false", "0")


def known_value(found: str, known: Collection[str], what: str) -> str:
    """Return `found` in lower case. Raises: DataError that says `what` it is, if it is none of `known`."""
    value = found.lower()
    if value not in known:
        raise DataError(f"{what} is {found!r}, needed one of: {', '.join(known)}")
    return value


def is_yes(found: str, what: str) -> bool:
    """Return whether a cell says yes; an empty one says no. Raises: DataError if it says something else."""
    return known_value(found or "no", (*YES, *NO), what) in YES
