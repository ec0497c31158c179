"""BI-RADS categories."""

from data.databases.known_value import known_value

# ACR BI-RADS Atlas, 5th edition (2013).
CATEGORIES = ("0", "1", "2", "3", "4", "4a", "4b", "4c", "5", "6")


def birads(found: str, what: str) -> str:
    """Return a category in words, "BI-RADS 4a". Raises: DataError that says `what` it is, if it is none."""
    return f"BI-RADS {known_value(found, CATEGORIES, what)}"
