"""The ejection fraction in words."""

from pathlib import Path

from data.errors import DataError


def ejection_fraction_words(percent: str, source: Path) -> str:
    """Return "reduced" up to 40 %, "mildly reduced" below 50 %, "preserved" from there on.

    Source: 2022 AHA/ACC/HFSA guideline for heart failure, doi:10.1161/CIR.0000000000001063: up to 40, 41 to 49, from
    50 on (without its symptoms; between 40 and 41 is mildly reduced here).
    Raises: DataError, with the name of the file `source`, if `percent` is no number.
    """
    try:
        value = float(percent)
    except ValueError as error:
        raise DataError(f"{source} has the ejection fraction '{percent}', needed a number of percent") from error
    return "reduced" if value <= 40 else "mildly reduced" if value < 50 else "preserved"
