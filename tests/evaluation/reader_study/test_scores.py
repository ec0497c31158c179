"""Scores of a reader study: readers of whom the result is known, agreement, files that are wrong."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from io import StringIO
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import norm

from data.errors import DataError
from evaluation import intervals
from evaluation.intervals import Interval, share
from evaluation.reader_study.agreement import agreements, cohen_kappa, fleiss_kappa
from evaluation.reader_study.answers import Answers, read_all_answers, read_answers
from evaluation.reader_study.discrimination import detection, resampled, score_reader
from evaluation.reader_study.key import KeyRow, read_key, write_key
from evaluation.reader_study.page import COLUMNS
from evaluation.reader_study.scores import print_scores, score_study, write_scores

NUM = 40
KEY = [
    KeyRow("5tudy", f"image{place:03}", "generated" if place % 2 else "real", "", "", "") for place in range(2 * NUM)
]
IS_GENERATED_N = np.array([row.kind == "generated" for row in KEY])
Reader = Callable[[str], int]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 40)


def perfect(kind: str) -> int:
    return 1 if kind == "generated" else 6


def inverted(kind: str) -> int:
    return 7 - perfect(kind)


def lazy(_: str) -> int:
    return 5


def random_reader(seed: int) -> Reader:
    random = np.random.default_rng(seed)
    return lambda _: int(random.integers(1, 7))


def answers_of(reader: Reader, name: str = "A") -> Answers:
    confidence_N = np.array([reader(row.kind) for row in KEY])
    return Answers(name, confidence_N, np.full(len(KEY), 3.0))


def lines_of(reader: Reader, name: str = "A") -> list[list[str]]:
    """The cells of a file of answers, its head first, as the page writes them."""
    lines = [list(COLUMNS)]
    for order, row in enumerate(KEY, start=1):
        confidence = reader(row.kind)
        answer = "generated" if confidence <= 3 else "real"
        lines.append(["5tudy", name, "7.5", str(order), row.image, answer, str(confidence), "2.5", 'a "b", c'])
    return lines


def write(path: Path, lines: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(lines)
    return path


# Log-linear rates keep d' of a reader who is always right finite: (40 + 0.5) / (40 + 1) of each kind.
BEST = 2 * norm.ppf((NUM + 0.5) / (NUM + 1))


@pytest.mark.parametrize(
    ("reader", "accuracy", "sensitivity", "specificity", "d_prime", "auc"),
    [(perfect, 1, 1, 1, BEST, 1), (inverted, 0, 0, 0, -BEST, 0), (lazy, 0.5, 0, 1, 0, 0.5)],
)
def test_planted_readers(
    reader: Reader, accuracy: float, sensitivity: float, specificity: float, d_prime: float, auc: float
) -> None:
    score = score_reader(answers_of(reader), IS_GENERATED_N)
    assert (score.accuracy.value, score.sensitivity.value, score.specificity.value) == (
        *(accuracy, sensitivity, specificity),
    )
    assert score.d_prime.value == pytest.approx(d_prime)
    assert score.auc.value == auc
    for estimate in (score.accuracy, score.sensitivity, score.specificity, score.d_prime, score.auc):
        assert estimate.low <= estimate.value <= estimate.high
    # All of one answer is a habit, and not to be mistaken for skill.
    assert score.bias == pytest.approx(BEST / 2 if reader is lazy else 0, abs=1e-12)


def test_a_reader_who_guesses_is_near_chance() -> None:
    scores = [score_reader(answers_of(random_reader(seed)), IS_GENERATED_N, seed) for seed in range(10)]
    # Of ten 95 % intervals, one may miss; two or more do so in 9 % of such tens, not at these seeds.
    for name, truth in (("accuracy", 0.5), ("d_prime", 0.0)):
        found = [getattr(score, name) for score in scores]
        assert sum(of.low <= truth <= of.high for of in found) >= 9, name
        assert abs(np.mean([of.value for of in found]) - truth) < 0.1, name
    assert abs(np.mean([score.auc.value for score in scores]) - 0.5) < 0.05


def test_confidence_counts_in_auc_alone() -> None:
    """A reader whose every answer says real, but surely so only of real ones, orders the images well."""
    score = score_reader(answers_of(lambda kind: 6 if kind == "real" else 4), IS_GENERATED_N)
    assert (score.accuracy.value, score.d_prime.value, score.auc.value) == (0.5, 0, 1)


@pytest.mark.parametrize("d_prime", [0.0, 1.0])
def test_intervals_hold_the_truth_as_often_as_they_say(d_prime: float) -> None:
    random = np.random.default_rng(0)
    rates = np.asarray(norm.cdf([d_prime / 2, -d_prime / 2]))
    held = {"d'": 0, "share": 0}
    for _ in range(400):
        hits, false_alarms = random.binomial(NUM, rates)
        of_d_prime, of_share = detection(hits, NUM, false_alarms, NUM)[0], share(hits, NUM)
        held["d'"] += of_d_prime.low <= d_prime <= of_d_prime.high
        held["share"] += of_share.low <= rates[0] <= of_share.high
    # 95 % of 400 draws have a standard error of 1.1 %; counts of 40 are too coarse for exactly 95 %.
    assert all(0.92 <= count / 400 <= 0.985 for count in held.values()), held


def test_resampled_intervals_hold_the_truth_about_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 200)
    random = np.random.default_rng(0)
    held = 0
    for seed in range(150):
        values_N = random.normal(size=2 * NUM) + 3 * IS_GENERATED_N
        estimate = resampled(lambda places, of=values_N: float(of[places].mean()), IS_GENERATED_N, seed)  # type: ignore[misc]
        held += estimate.low <= 1.5 <= estimate.high
        # The difference of the kinds, 3, is no part of the spread: 1 / sqrt(80) times 2 times 1.96 is 0.44.
        assert 0.25 < estimate.high - estimate.low < 0.65
    # The percentile interval is a little narrow, and 150 draws have a standard error of 1.8 %.
    assert 0.88 <= held / 150 <= 0.99


def test_wilson_intervals_are_those_published() -> None:
    def bounds(count: int, of: int) -> tuple[float, float]:
        found = share(count, of)
        return found.low, found.high

    # Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3.
    assert bounds(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert bounds(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert bounds(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def fleiss_by_pairs(says_NR: NDArray[np.bool_]) -> float:
    """The same by its meaning: how often two readers agree, against two draws from all answers."""
    pairs = list(permutations(range(says_NR.shape[1]), 2))
    observed = np.mean([[row[one] == row[other] for one, other in pairs] for row in says_NR])
    share_generated = says_NR.mean()
    by_chance = share_generated**2 + (1 - share_generated) ** 2
    return float((observed - by_chance) / (1 - by_chance))


def test_fleiss_kappa() -> None:
    random = np.random.default_rng(0)
    says_NR = random.random((50, 4)) < random.random((50, 1))
    assert fleiss_kappa(says_NR) == pytest.approx(fleiss_by_pairs(says_NR), abs=1e-12)
    same = np.repeat(says_NR[:, :1], 3, axis=1)
    assert fleiss_kappa(same) == pytest.approx(1)
    assert math.isnan(fleiss_kappa(np.ones((50, 3), bool)))


def test_agreement_of_planted_readers() -> None:
    of_readers = [
        *(answers_of(perfect, "perfect"), answers_of(perfect, "again"), answers_of(inverted, "inverted")),
        *(answers_of(lazy, "lazy"), answers_of(lazy, "idle")),
    ]
    found = {of.readers: of.kappa for of in agreements(of_readers, IS_GENERATED_N)}
    assert len(found) == 11
    assert found["perfect", "again"] == Interval(value=1, low=1, high=1)
    assert found["perfect", "inverted"].value == -1
    assert found["perfect", "lazy"].value == 0
    assert all(map(math.isnan, found["lazy", "idle"].model_dump().values()))
    assert cohen_kappa(np.array([True, True]), np.array([True, True])) is math.nan
    everyone = found["perfect", "again", "inverted", "lazy", "idle"]
    assert everyone.low <= everyone.value <= everyone.high
    guessing = [answers_of(random_reader(seed), str(seed)) for seed in (1, 2, 3)]
    # The standard error of a kappa of guesses is 1 / sqrt(80), 0.11.
    assert all(
        abs(of.kappa.value) < 0.33 and of.kappa.low < of.kappa.high for of in agreements(guessing, IS_GENERATED_N)
    )
    assert len(agreements(of_readers[:2], IS_GENERATED_N)) == 1
    assert agreements(of_readers[:1], IS_GENERATED_N) == []


def test_from_files_to_table_and_json(tmp_path: Path) -> None:
    write_key(tmp_path / "key.csv", KEY)
    readers = {"Dr. [A]": perfect, "B": random_reader(0), "C": lazy, "D": lazy}
    paths = [
        # The order of lines tells nothing.
        write(tmp_path / f"{place}.csv", [lines_of(reader, name)[0], *lines_of(reader, name)[:0:-1]])
        for place, (name, reader) in enumerate(readers.items())
    ]
    scores = score_study(tmp_path / "key.csv", paths, seed=3)
    assert scores.model_dump_json() == score_study(tmp_path / "key.csv", paths, seed=3).model_dump_json()
    assert [score.reader for score in scores.readers] == list(readers)
    assert scores.readers[0].accuracy.value == 1
    assert scores.readers[0].median_seconds == 2.5
    write_scores(tmp_path / "scores.json", scores)
    written = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert written["num_real"] == written["num_generated"] == NUM
    assert written["readers"][2]["d_prime"]["value"] == 0
    assert [of["kappa"] for of in written["agreement"] if of["readers"] == ["C", "D"]] == [
        dict.fromkeys(("value", "low", "high"))
    ]
    console = Console(width=80, file=StringIO())
    print_scores(scores, console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.startswith("Dr. [A]"))
    assert row.split()[2:] == ["100", "100", "100", "4.5", "0.0", "1.00", "2.5"]
    assert "Fleiss, all readers" in text
    assert "near 50 %" in text


def without(lines: list[list[str]], column: str) -> list[list[str]]:
    place = lines[0].index(column)
    return [line[:place] + line[place + 1 :] for line in lines]


def changed(lines: list[list[str]], number: int, column: str, value: str) -> list[list[str]]:
    lines[number][lines[0].index(column)] = value
    return lines


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: changed(lines, 1, "study", "other"), "answers study other, the key is of study 5tudy"),
        (lambda lines: [*lines, lines[4]], "line 82: image image003 is answered twice"),
        (lambda lines: lines[:-2], r"no answer to 2 of 80 images \(the first: image078\)"),
        (lambda lines: lines[:1], "no answer to 80 of 80 images"),
        (lambda lines: [[*line, "x"] for line in lines], "unknown column 'x', needed study,reader"),
        (lambda lines: [[";".join(line)] for line in lines], "unknown column 'study;reader"),
        (lambda lines: without(lines, "confidence"), "has no column 'confidence'"),
        (lambda _: [], "has no column 'study'"),
        (lambda lines: changed(lines, 0, "years", "reader"), "has a column twice|has no column 'years'"),
        (lambda lines: changed(lines, 7, "image", "strange"), "line 8: image strange is not in study 5tudy"),
        (lambda lines: changed(lines, 2, "confidence", "7"), "line 3: confidence=7, needed 1 to 6"),
        (lambda lines: changed(lines, 2, "answer", "real"), "answer=real but confidence=1 means generated"),
        (lambda lines: changed(lines, 2, "seconds", "nan"), "line 3: seconds=nan, needed a number from 0"),
        (lambda lines: changed(lines, 2, "seconds", "soon"), "line 3: seconds=soon"),
        (lambda lines: changed(lines, 2, "reader", "B"), "line 3 is of reader B: give one file for each reader"),
        (lambda lines: [*lines[:3], lines[3][:-1], *lines[4:]], "line 4 has 8 cells, needed 9"),
    ],
)
def test_wrong_answers_are_refused(
    tmp_path: Path, damage: Callable[[list[list[str]]], list[list[str]]], message: str
) -> None:
    path = write(tmp_path / "answers.csv", damage(lines_of(perfect)))
    with pytest.raises(DataError, match=message) as raised:
        read_answers(path, KEY)
    assert "\n" not in str(raised.value)


def test_files_that_are_none_of_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no answers"):
        read_answers(tmp_path / "absent.csv", KEY)
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="no CSV file of answers"):
        read_answers(tmp_path / "picture.csv", KEY)
    one, other = (write(tmp_path / f"{name}.csv", lines_of(perfect)) for name in "ab")
    with pytest.raises(DataError, match=r"b\.csv and .*a\.csv are both of reader A"):
        read_all_answers([one, other], KEY)


def test_answers_saved_again_by_a_spreadsheet(tmp_path: Path) -> None:
    path = write(tmp_path / "answers.csv", lines_of(perfect))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_answers(path, KEY).reader == "A"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no whole key"),
        (KEY[::2], "no whole key: needed real and generated images"),
        ([*KEY, KEY[0]], "each once"),
        ([*KEY, KEY[0]._replace(study="other")], "of study other"),
        ([KeyRow("5tudy", "a", "fake", "", "", "")], "fake, needed one study"),  # type: ignore[arg-type]
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, rows: list[KeyRow], message: str) -> None:
    write_key(tmp_path / "key.csv", rows)
    with pytest.raises(DataError, match=message):
        read_key(tmp_path / "key.csv")


def test_a_key_is_read_as_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no key .* make the study first"):
        read_key(tmp_path / "key.csv")
    write_key(tmp_path / "key.csv", KEY)
    assert read_key(tmp_path / "key.csv") == KEY
    (tmp_path / "key.csv").write_text("something,else\n", encoding="utf-8")
    with pytest.raises(DataError, match="is no key of a reader study"):
        read_key(tmp_path / "key.csv")
