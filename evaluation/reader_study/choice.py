"""Which held-out images a reader study shows: as many of each database and label as there can be."""

from collections.abc import Iterable, Sequence

import numpy as np

from data.manifest import ManifestRow


def choose_rows(rows: Iterable[ManifestRow], num_images: int, random: np.random.Generator) -> list[ManifestRow]:
    """Return `num_images` of the rows, fewer where there are fewer, drawn at random.

    The databases take turns, and in a database its labels, so that their numbers differ by one at most unless one runs
    out; in a label the patients take turns, since two images of one patient tell readers less than those of two.
    """
    labels: dict[str, dict[str, list[ManifestRow]]] = {}
    for row in rows:
        labels.setdefault(row.database, {}).setdefault(row.label, []).append(row)
    of_databases = [
        _in_turns([_patients_in_turns(of_label, random) for of_label in of_database.values()])
        for of_database in labels.values()
    ]
    return _in_turns(of_databases)[:num_images]


def _patients_in_turns(rows: Sequence[ManifestRow], random: np.random.Generator) -> list[ManifestRow]:
    of_patients: dict[str, list[ManifestRow]] = {}
    for place in random.permutation(len(rows)):
        of_patients.setdefault(rows[place].cluster, []).append(rows[place])
    return _in_turns(list(of_patients.values()))


def _in_turns(queues: Sequence[Sequence[ManifestRow]]) -> list[ManifestRow]:
    """Return the first of every queue, then the second of each that has one, and so on."""
    turns = sorted((turn, number) for number, queue in enumerate(queues) for turn in range(len(queue)))
    return [queues[number][turn] for turn, number in turns]
