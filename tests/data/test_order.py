"""The order is a pure function of seed and position: every sample once an epoch, shares as weighted."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.loader import BatchSlicing
from data.order import CYCLE, Order, Place, hash64, permutation

SIZES = st.dictionaries(st.sampled_from(["busi", "camus", "hc18"]), st.integers(1, 300), min_size=1)


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**63))
def test_every_sample_comes_once_an_epoch(sizes: dict[str, int], seed: int) -> None:
    order = Order(sizes, seed)
    seen = Counter(order.place(position) for position in range(2 * CYCLE))
    assert set(seen.values()) == {1}, "no sample twice in the same epoch of its database"
    for name, size in sizes.items():
        places = [place for place in seen if place.database == name]
        last = max(place.epoch for place in places)
        for epoch in range(last):
            assert sorted(p.sample for p in places if p.epoch == epoch) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(
    sizes=SIZES,
    seed=st.integers(0, 2**63),
    weights=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    world_sizes=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3),
    micro_size=st.sampled_from([1, 2]),
    steps_between_resumes=st.integers(1, 100),
)
def test_every_sample_comes_once_an_epoch_over_all_ranks_and_resumes(
    sizes: dict[str, int],
    seed: int,
    weights: list[float],
    world_sizes: list[int],
    micro_size: int,
    steps_between_resumes: int,
) -> None:
    """Each resume has another number of ranks; only what the step was is carried over."""
    global_size, num_steps = 8, 300
    named = dict(zip(sizes, weights, strict=False))
    seen: Counter[Place] = Counter()
    for attempt, first_step in enumerate(range(0, num_steps, steps_between_resumes)):
        world_size = world_sizes[attempt % len(world_sizes)]
        steps = range(first_step, min(first_step + steps_between_resumes, num_steps))
        for rank in range(world_size):
            order = Order(sizes, seed, named)
            slicing = BatchSlicing(global_size, micro_size, rank, world_size)
            for step, micro_batch in product(steps, range(slicing.accumulation_steps)):
                seen.update(map(order.place, slicing.positions(step, micro_batch)))
    assert set(seen.values()) == {1}
    assert Counter(place.database for place in seen) == Order(sizes, seed, named).dealt(num_steps * global_size)
    for name, size in sizes.items():
        epochs = Counter(place.epoch for place in seen if place.database == name)
        for epoch in range(max(epochs, default=0)):
            assert epochs[epoch] == size, "all of them, since none is there twice"


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**63), num_positions=st.integers(0, 3 * CYCLE))
def test_what_was_dealt_is_known_without_dealing(sizes: dict[str, int], seed: int, num_positions: int) -> None:
    order = Order(sizes, seed)
    dealt = Counter(order.place(position).database for position in range(num_positions))
    assert order.dealt(num_positions) == {name: dealt[name] for name in sizes}


def test_the_place_of_a_position_does_not_depend_on_what_was_asked_before() -> None:
    sizes = {"busi": 37, "camus": 500}
    forwards = [Order(sizes, 7).place(position) for position in range(3000)]
    fresh = Order(sizes, 7)
    backwards = [fresh.place(position) for position in reversed(range(3000))]
    assert forwards == backwards[::-1]


def test_another_seed_and_another_epoch_are_other_orders() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        order = Order({"busi": 100}, seed)
        return [order.place(position).sample for position in range(100 * number, 100 * (number + 1))]

    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 0) != epoch(0, 1)


@settings(max_examples=50, deadline=None)
@given(weights=st.dictionaries(st.sampled_from(["busi", "camus", "hc18"]), st.floats(1e-4, 1e4), min_size=1))
def test_shares_follow_the_weights(weights: dict[str, float]) -> None:
    order = Order(dict.fromkeys(weights, 50), 0, weights)
    dealt = Counter(order.place(position).database for position in range(5 * CYCLE))
    for name, weight in weights.items():
        assert dealt[name] == 5 * CYCLE * order.shares()[name]
        # Largest remainder is within one of the exact count; a database that would get none still gets one, which
        # the others then lack.
        assert order.shares()[name] == pytest.approx(weight / sum(weights.values()), abs=(len(weights) + 1) / CYCLE)


def test_an_empty_database_and_a_weight_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match=r"database busi has no training samples: check its split, or leave it out"):
        Order({"busi": 0}, 0)
    with pytest.raises(DataError, match=r"database camus has weight 0, needs more than 0"):
        Order({"busi": 5, "camus": 5}, 0, {"busi": 1.0, "camus": 0.0})


def test_hashes_and_permutations_are_the_same_for_ever() -> None:
    # A stored run resumes in the same order only while these stay as they are.
    assert hash64(0, 1, 2) == hash64(0, 1, 2) != hash64(0, 2, 1)
    assert (hash64(0), hash64(-1, 3)) == EXPECTED_HASHES
    assert permutation(10, 0).tolist() == EXPECTED_PERMUTATION
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))


def test_a_permutation_is_not_biased() -> None:
    first = np.array([permutation(8, seed)[0] for seed in range(4000)])
    counts = np.bincount(first, minlength=8)
    # Multinomial with mean 500 and standard deviation 21: five of them.
    assert np.abs(counts - 500).max() < 105


EXPECTED_HASHES = (7960286522194355700, 8612688766699759606)
EXPECTED_PERMUTATION = [8, 4, 0, 7, 3, 1, 2, 9, 5, 6]
