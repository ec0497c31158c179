"""The ejection fraction's words change where the guideline says."""

from pathlib import Path

import pytest

from data.databases.ejection_fraction import ejection_fraction_words


@pytest.mark.parametrize(
    ("percent", "words"),
    [("23.4", "reduced"), ("40", "reduced"), ("41", "mildly reduced"), ("49.9", "mildly reduced"), ("50", "preserved")],
)
def test_words(percent: str, words: str) -> None:
    assert ejection_fraction_words(percent, Path("unused")) == words
