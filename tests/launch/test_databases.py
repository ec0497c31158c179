"""`sonoshard databases`: a line on each kind, and all that is known of one."""

import pytest

from launch.databases import WIDTH, describe, kinds, listing
from launch.errors import ConfigError


def test_every_kind_is_listed() -> None:
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines[: len(kinds())]] == sorted(kinds())


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_all_that_is_known_of_a_kind_is_told(kind: str) -> None:
    about, told = kinds()[kind].about, " ".join(describe(kind).split())
    for text in (
        about.title,
        *about.layout,
        about.labels,
        about.patients,
        about.licence,
        about.citation,
        *about.faults,
    ):
        assert " ".join(text.split()) in told
    assert max(map(len, describe(kind).splitlines()[1:])) <= WIDTH


def test_another_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"^no kind of database is named 'bussi', did you mean busi\? \(known: breast, "
    ):
        describe("bussi")
