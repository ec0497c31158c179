"""The laws of a split: nothing tied is parted, nothing drawn is drawn again, every label has its share."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.splits import Assignment, Candidate, Split, assign, known_split

FRACTIONS: dict[Split, float] = {"validation": 0.1, "test": 0.2}


def image(
    number: int, label: str = "a", ties: Sequence[str] = (), own: Split | None = None, stored: Split | None = None
) -> Candidate:
    return Candidate(id=f"d/{number:04d}", database="d", label=label, ties=tuple(ties), own=own, stored=stored)


def splits(assigned: dict[str, Assignment]) -> list[Split]:
    return [assigned[name].split for name in sorted(assigned)]


@st.composite
def databases(draw: st.DrawFn) -> list[Candidate]:
    """Images of two databases, some of them with patients, some equal files, some split by their database."""
    choices: list[Split | None] = [None, None, None, "train", "validation", "test"]
    own = st.sampled_from(choices)
    rows = draw(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 9), own), min_size=1, max_size=40))
    return [
        Candidate(
            id=f"{database}/{number}",
            database=str(database),
            label=str(label),
            ties=() if tie > 7 else (f"patient {database} {tie}", f"file {number % 13}"),
            own=own,
        )
        for number, (database, label, tie, own) in enumerate(rows)
    ]


@settings(max_examples=100, deadline=None)
@given(rows=databases(), seed=st.integers(0, 9))
def test_what_is_tied_is_never_parted(rows: list[Candidate], seed: int) -> None:
    assigned = assign(rows, FRACTIONS, seed)
    assert assigned.keys() == {row.id for row in rows}
    by_tie = defaultdict(set)
    for row in rows:
        for tie in row.ties:
            by_tie[tie].add(assigned[row.id])
    assert all(len(found) == 1 for found in by_tie.values())
    for name, assignment in assigned.items():
        assert assigned[assignment.cluster] == assignment, "a cluster is named for one of its own"
        assert assignment.cluster <= name


@settings(max_examples=100, deadline=None)
@given(rows=databases(), seed=st.integers(0, 9), data=st.data())
def test_the_order_of_the_rows_does_not_matter(rows: list[Candidate], seed: int, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    assert assign(shuffled, FRACTIONS, seed) == assign(rows, FRACTIONS, seed)


@settings(max_examples=100, deadline=None)
@given(rows=databases(), more=databases(), seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_what_was_drawn_stays(rows: list[Candidate], more: list[Candidate], seeds: tuple[int, int]) -> None:
    first = assign(rows, FRACTIONS, seeds[0])
    stored = [replace(row, stored=first[row.id].split) for row in rows]
    # New files of new patients, or of one old patient: not a bridge between two old clusters.
    new = [
        replace(row, id=f"{row.id}-new", ties=(*(f"new {tie}" for tie in row.ties), *rows[0].ties[:1])) for row in more
    ]
    second = assign([*new, *stored], {"validation": 0.4, "test": 0.1}, seeds[1])
    assert {row.id: second[row.id].split for row in rows} == {row.id: first[row.id].split for row in rows}


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    validation=st.floats(0.05, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 9),
)
def test_every_label_has_its_share(sizes: list[int], validation: float, test: float, seed: int) -> None:
    """Of single images the database's counts are within 1 of the exact share, each label's within 2.

    A label begins with what the one before it left, so that its error is the difference of two of the database's.
    The largest seen over 4,000 random databases: 0.77 and 1.36.
    """
    rows = [image(100 * label + i, label=str(label)) for label, size in enumerate(sizes) for i in range(size)]
    fractions: dict[Split, float] = {"validation": validation, "test": test}
    assigned = assign(rows, fractions, seed)
    shares = {**fractions, "train": 1 - validation - test}
    for label in {row.label for row in rows}:
        of_label = [row for row in rows if row.label == label]
        counts = Counter(assigned[row.id].split for row in of_label)
        assert all(abs(counts[split] - share * len(of_label)) < 2 for split, share in shares.items())
    counts = Counter(assignment.split for assignment in assigned.values())
    assert all(abs(counts[split] - share * len(rows)) < 1 for split, share in shares.items())


def test_new_images_make_up_for_the_stored_ones() -> None:
    stored = [image(number, stored="train") for number in range(80)]
    new = [image(number) for number in range(80, 120)]
    assert Counter(splits(assign([*stored, *new], FRACTIONS, 0))[80:]) == {"test": 24, "validation": 12, "train": 4}


def test_seeds_draw_differently() -> None:
    rows = [image(number) for number in range(40)]
    assert splits(assign(rows, FRACTIONS, 0)) != splits(assign(rows, FRACTIONS, 1))


def test_the_databases_own_split_is_kept() -> None:
    own: tuple[Split, ...] = ("train", "validation", "test", "train")
    assert splits(assign([image(number, own=split) for number, split in enumerate(own)], FRACTIONS, 0)) == list(own)


def test_validation_is_drawn_from_training_where_the_database_has_none() -> None:
    rows = [image(number, own="test" if number < 30 else "train") for number in range(130)]
    found = splits(assign(rows, FRACTIONS, 0))
    assert set(found[:30]) == {"test"}
    assert Counter(found[30:]) == {"validation": 10, "train": 90}


def test_a_patient_on_both_sides_is_held_out() -> None:
    rows = [image(0, own="train", ties=["p"]), image(1, own="test", ties=["p"]), image(2, own="validation")]
    assert splits(assign(rows, FRACTIONS, 0)) == ["test", "test", "validation"]


def test_stored_splits_that_now_contradict_are_refused() -> None:
    rows = [image(0, ties=["p"], stored="train"), image(1, ties=["p"]), image(2, ties=["p"], stored="test")]
    with pytest.raises(DataError) as refused:
        assign(rows, FRACTIONS, 0)
    assert str(refused.value) == (
        "d/0000 (train) and d/0002 (test) are now found to be of one patient, one file or alike, be it by way of a"
        " third image, but were split apart before: leave out the image that came between them, or remove the manifest"
        " to draw anew, and train again in another folder"
    )


@pytest.mark.parametrize(("name", "split"), [("train", "train"), ("VAL", "validation"), ("Test", "test")])
def test_names_of_splits(name: str, split: Split) -> None:
    assert known_split(name) == split


def test_an_unknown_split() -> None:
    with pytest.raises(DataError, match=r"^split 'fold1' is not known; needed train, validation, test or nothing$"):
        known_split("fold1")
