"""Which sample stands at which position of a stage: a pure function, so that no loader has a state to save.

Positions count samples from the beginning of a stage. Those of global step k are k * global_size up to
(k + 1) * global_size, whatever the number of ranks, the micro batch and the resumes on the way.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError

# Databases are mixed in cycles of this many positions, so that a share is exact to 1/1024 over every cycle.
CYCLE = 1024


class Place(NamedTuple):
    """A sample of a database: number `sample` of its training entries, in the `epoch`-th pass over them."""

    database: str
    sample: int
    epoch: int


def hash64(*keys: int) -> int:
    """Return 64 well-mixed bits of integers, the same on every machine and in every version of Python and NumPy.

    Source: the splitmix64 finaliser, Steele, Lea & Flood 2014 (doi:10.1145/2660193.2660195).
    """
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = int(_mix(np.uint64(state ^ (key & 0xFFFF_FFFF_FFFF_FFFF))))
    return state


def permutation(length: int, *keys: int) -> NDArray[np.int64]:
    """Return a permutation of range(length) keyed by integers: the order of the hashes of its elements."""
    seed = np.uint64(hash64(*keys))
    return np.argsort(_mix(np.arange(length, dtype=np.uint64) ^ seed), kind="stable")


class Order:
    """The order of a stage: databases mixed by weight, each in a new keyed permutation every epoch."""

    def __init__(self, sizes: Mapping[str, int], seed: int, weights: Mapping[str, float] | None = None) -> None:
        """Order databases of `sizes` training samples; weights are relative shares (None: as the sizes are).

        Raises: DataError if a database is empty or has no share.
        """
        self._names = sorted(sizes)
        self.sizes = dict(sizes)
        self._seed = seed
        shares = {name: float((weights or sizes)[name]) for name in self._names}
        for name in self._names:
            if sizes[name] < 1:
                raise DataError(f"database {name} has no training samples: check its split, or leave it out")
            if shares[name] <= 0:
                raise DataError(f"database {name} has weight {shares[name]:g}, needs more than 0: or leave it out")
        self._counts = _cycle_counts([shares[name] for name in self._names])
        self._permutation = lru_cache(maxsize=4 * len(self._names))(self._permute)
        self._cycle = lru_cache(maxsize=4)(self._deal_cycle)

    def place(self, position: int) -> Place:
        """Return the sample at `position` (counted from 0)."""
        cycle, offset = divmod(position, CYCLE)
        databases, ranks = self._cycle(cycle)
        number = int(databases[offset])
        name = self._names[number]
        epoch, index = divmod(cycle * self._counts[number] + int(ranks[offset]), self.sizes[name])
        return Place(name, int(self._permutation(number, epoch)[index]), epoch)

    def shares(self) -> dict[str, float]:
        """Return the fraction of positions that each database gets."""
        return {name: count / CYCLE for name, count in zip(self._names, self._counts, strict=True)}

    def dealt(self, num_positions: int) -> dict[str, int]:
        """Return how many of the first `num_positions` each database gets."""
        cycles, rest = divmod(num_positions, CYCLE)
        in_rest = np.bincount(self._cycle(cycles)[0][:rest], minlength=len(self._names))
        counts = zip(self._names, self._counts, in_rest, strict=True)
        return {name: cycles * in_cycle + int(further) for name, in_cycle, further in counts}

    def _permute(self, number: int, epoch: int) -> NDArray[np.int64]:
        return permutation(self.sizes[self._names[number]], self._seed, number, epoch)

    def _deal_cycle(self, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each offset of a cycle the database's number, and how often it came before in the cycle."""
        dealt = np.repeat(np.arange(len(self._names)), self._counts)[permutation(CYCLE, self._seed, -1, cycle)]
        ranks = np.empty(CYCLE, dtype=np.int64)
        for number, count in enumerate(self._counts):
            ranks[dealt == number] = np.arange(count)
        return dealt, ranks


def _cycle_counts(shares: list[float]) -> list[int]:
    """Return whole counts that sum to CYCLE, nearest to the shares (largest remainder), at least 1 each."""
    exact = np.array(shares) / sum(shares) * CYCLE
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while counts.sum() != CYCLE:
        surplus = counts - exact
        number = np.argmin(surplus) if counts.sum() < CYCLE else np.argmax(np.where(counts > 1, surplus, -np.inf))
        counts[number] += 1 if counts.sum() < CYCLE else -1
    return [int(count) for count in counts]


def _mix(values: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        z = np.asarray(values, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
