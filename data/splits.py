"""Training, validation and test: what must not be parted stays together, and what was drawn is never drawn again."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from data.errors import DataError

Split = Literal["train", "validation", "test"]
# Those that no model is trained on.
HELD_OUT: tuple[Split, ...] = ("validation", "test")
# Other databases' names of the splits.
SYNONYMS = {"val": "validation", "valid": "validation", "training": "train", "testing": "test"}
# Who shares a patient with a held-out image is held out too.
HELD_OUT_FIRST: tuple[Split, ...] = ("test", "validation", "train")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image that needs a split.

    ties: whatever it must not be parted over: rows that share a tie share a split (a patient, a file's hash).
    own: the split that its database gives. stored: the split that an earlier draw gave.
    """

    id: str
    database: str
    label: str
    ties: tuple[str, ...]
    own: Split | None = None
    stored: Split | None = None


class Assignment(NamedTuple):
    """A candidate's split, and the cluster that shares it: the first of its ids."""

    split: Split
    cluster: str


def known_split(name: str) -> Split:
    """Return the split that a database means by `name`. Raises: DataError if it is none."""
    lower = SYNONYMS.get(name.lower(), name.lower())
    for split in get_args(Split):
        if split == lower:
            return split
    raise DataError(f"split {name!r} is not known; needed train, validation, test or nothing")


def assign(candidates: Sequence[Candidate], fractions: Mapping[Split, float], seed: int) -> dict[str, Assignment]:
    """Return every candidate's assignment, by id; a pure function of the set of candidates, whatever their order.

    A cluster's split is the stored one, else its database's own (the most held-out of them), else drawn: label by
    label, in the order of a keyed hash, each cluster goes where most rows are due. So every label is shared out by
    `fractions`, and only what does not divide is carried to the next label of the database. Where a database's own
    split has no validation rows, they are drawn from its training rows.

    Raises: DataError if a cluster's rows have different stored splits.
    """
    clusters = _clusters(candidates)
    own_validation = {candidate.database for candidate in candidates if candidate.own == "validation"}
    assigned: dict[str, Assignment] = {}
    strata: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, members in clusters.items():
        first = members[0]
        strata[first.database][first.label].append(name)
        split = _stored(members) or _own(members, own_validation)
        if split is not None:
            assigned[name] = Assignment(split, name)
    for by_label in strata.values():
        due: dict[Split, float] = dict.fromkeys(HELD_OUT_FIRST, 0.0)
        for _, names in sorted(by_label.items()):
            # Those which have their split come first, so that the others make up for them.
            for name in sorted(names, key=lambda name: (name not in assigned, keyed_hash(name, seed))):
                members = clusters[name]
                if name in assigned and _own(members, own_validation):
                    continue  # its database's decision: no share of the drawn ones
                for split, fraction in _open_fractions(members, fractions).items():
                    due[split] += fraction * len(members)
                split = (
                    assigned[name].split if name in assigned else _most_due(due, _open_fractions(members, fractions))
                )
                due[split] -= len(members)
                assigned[name] = Assignment(split, name)
    return {member.id: assigned[name] for name, members in clusters.items() for member in members}


def keyed_hash(name: str, seed: int) -> bytes:
    """Return 16 bytes of `name` that nobody can tell from random ones without `seed`."""
    return hashlib.blake2b(name.encode(), digest_size=16, key=str(seed).encode()).digest()


def _clusters(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Return the candidates that ties connect, directly or over others, by the first of their ids, in its order."""
    from scipy.cluster.hierarchy import DisjointSet

    by_id = {candidate.id: candidate for candidate in sorted(candidates, key=lambda candidate: candidate.id)}
    assert len(by_id) == len(list(candidates)), "ids are unique"
    connected = DisjointSet(by_id)
    holders: dict[str, str] = {}
    for candidate in by_id.values():
        for tie in candidate.ties:
            connected.merge(candidate.id, holders.setdefault(tie, candidate.id))
    clusters: dict[str, list[Candidate]] = defaultdict(list)
    names: dict[str, str] = {}
    for name, candidate in by_id.items():
        clusters[names.setdefault(connected[name], name)].append(candidate)
    return dict(clusters)


def _stored(members: Sequence[Candidate]) -> Split | None:
    """Return the split that a cluster's rows were given before. Raises: DataError if it is not the same for all."""
    first: Candidate | None = None
    for member in members:
        if member.stored is None:
            continue
        if first is not None and member.stored != first.stored:
            raise DataError(
                f"{first.id} ({first.stored}) and {member.id} ({member.stored}) are now found to be of one patient, one"
                " file or alike, be it by way of a third image, but were split apart before: leave out the image that"
                " came between them, or remove the manifest to draw anew, and train again in another folder"
            )
        first = first or member
    return first.stored if first is not None else None


def _own(members: Sequence[Candidate], own_validation: set[str]) -> Split | None:
    """Return the split that the databases settle: a training row's only where there are validation rows too."""
    settled = {
        member.own for member in members if member.own in ("test", "validation") or member.database in own_validation
    }
    return next((split for split in HELD_OUT_FIRST if split in settled), None)


def _open_fractions(members: Sequence[Candidate], fractions: Mapping[Split, float]) -> dict[Split, float]:
    """Return the shares of the splits that a cluster may go to: not to test where its database says train."""
    test = 0.0 if any(member.own == "train" for member in members) else fractions["test"]
    return {"test": test, "validation": fractions["validation"], "train": 1 - test - fractions["validation"]}


def _most_due(due: Mapping[Split, float], allowed: Mapping[Split, float]) -> Split:
    """Return the allowed split with most rows due; in a tie validation, which every database needs."""
    in_tie: tuple[Split, ...] = ("validation", "test", "train")
    return max((split for split in in_tie if allowed[split] > 0), key=lambda split: due[split])
