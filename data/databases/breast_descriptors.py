"""The descriptors of BrEaST's table, in words."""

from collections.abc import Mapping

from data.databases.birads import birads

# Attribute -> its column.
DESCRIPTORS = {
    "tissue": "Tissue_composition",
    "signs": "Signs",
    "symptoms": "Symptoms",
    "shape": "Shape",
    "margin": "Margin",
    "echogenicity": "Echogenicity",
    "posterior": "Posterior_features",
    "halo": "Halo",
    "calcifications": "Calcifications",
    "skin": "Skin_thickening",
    "interpretation": "Interpretation",
    "birads": "BIRADS",
    "diagnosis": "Diagnosis",
}
UNSAID = ("", "no", "not applicable", "not available")
# What a cell means in words, where it is no words by itself.
WORDS = {
    ("posterior", "combined"): "posterior enhancement and shadowing",
    ("posterior", "enhancement"): "posterior enhancement",
    ("posterior", "shadowing"): "posterior shadowing",
    ("halo", "yes"): "echogenic halo",
    ("skin", "yes"): "skin thickening",
    ("calcifications", "in a mass"): "calcifications in a mass",
    ("calcifications", "intraductal"): "intraductal calcifications",
    ("calcifications", "indefinable"): "indefinable calcifications",
}


def in_words(row: Mapping[str, str], what: str) -> dict[str, str]:
    """Return what a row of the table says, by attribute, without what does not apply or is not known.

    Raises: DataError that says `what` it is, if its BI-RADS category is none.
    """
    cells = {name: row[column].lower() for name, column in DESCRIPTORS.items()}
    said = {name: _words(name, cell) for name, cell in cells.items() if cell not in UNSAID}
    return said | ({"birads": birads(said["birads"], what)} if "birads" in said else {})


def _words(name: str, cell: str) -> str:
    """Return a cell in words: "not circumscribed - spiculated&angular" is "spiculated and angular"."""
    words = cell.removeprefix("not circumscribed - ").replace("&", " and ").replace(":", ", ")
    return WORDS.get((name, cell), words)
