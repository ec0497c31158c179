"""The ejection fraction in words."""


def ejection_fraction_words(percent: float) -> str:
    """Return "reduced" up to 40 %, "mildly reduced" below 50 %, "preserved" from there on.

    Source: 2022 AHA/ACC/HFSA guideline for heart failure, doi:10.1161/CIR.0000000000001063, table 4 (without its
    symptoms; 40 to 41, which it leaves open, counts as mildly reduced).
    """
    if percent <= 40:
        return "reduced"
    return "mildly reduced" if percent < 50 else "preserved"
