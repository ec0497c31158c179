"""The formulas against plain references in float64, and their laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from models.merging.formulas import (
    Drop,
    Trim,
    add_differences,
    elected_mean,
    normalised,
    num_kept,
    slerp_shares,
    weighted_sum,
)

# Of float32 sums and products of numbers up to 10.
RTOL, ATOL = 1e-5, 1e-5

values = st.floats(-10, 10, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
shares = st.floats(0.015625, 10, width=32)


@st.composite
def models(draw: st.DrawFn, least: int = 1) -> list[Tensor]:
    """Vectors of one length, as many as there are models."""
    count, length = draw(st.integers(least, 4)), draw(st.integers(1, 12))
    return [torch.from_numpy(draw(arrays(np.float32, length, elements=values))) for _ in range(count)]


def weights_for(count: int, data: st.DataObject) -> list[float]:
    return normalised([data.draw(shares) for _ in range(count)])


@settings(deadline=None, derandomize=True)
@given(st.lists(shares, min_size=1, max_size=6))
def test_shares_sum_to_one_and_keep_their_relations(weights: list[float]) -> None:
    found = normalised(weights)
    assert math.fsum(found) == pytest.approx(1)
    assert found[0] * weights[-1] == pytest.approx(found[-1] * weights[0])


@settings(deadline=None, derandomize=True)
@given(models(), st.data())
def test_a_weighted_sum_is_the_plain_one_in_any_order(tensors: list[Tensor], data: st.DataObject) -> None:
    weights = weights_for(len(tensors), data)
    expected = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(weighted_sum(tensors, weights).double(), expected, rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(
        weighted_sum(tensors[::-1], weights[::-1]), weighted_sum(tensors, weights), rtol=RTOL, atol=ATOL, msg="symmetry"
    )
    same = weighted_sum([tensors[0]] * len(weights), weights)
    torch.testing.assert_close(same, tensors[0], rtol=RTOL, atol=ATOL, msg="a model merged with itself is itself")


@settings(deadline=None, derandomize=True)
@given(models(least=2), st.floats(0, 1))
def test_slerp_is_the_plain_formula_and_ends_at_its_ends(tensors: list[Tensor], t: float) -> None:
    a, b = (tensor.double() for tensor in tensors[:2])

    def at(position: float) -> Tensor:
        first, second = slerp_shares(float(a @ b), float(a @ a), float(b @ b), position)
        return first * a + second * b

    torch.testing.assert_close(at(0), a)
    torch.testing.assert_close(at(1), b)
    cosine = float(a @ b / (a.norm() * b.norm())) if a.norm() * b.norm() > 0 else 1.0
    if abs(cosine) < 0.999:
        angle = math.acos(cosine)
        expected = (a * math.sin((1 - t) * angle) + b * math.sin(t * angle)) / math.sin(angle)
        torch.testing.assert_close(at(t), expected, rtol=1e-9, atol=1e-9)
    backward, forward = slerp_shares(float(a @ b), float(b @ b), float(a @ a), 1 - t)
    torch.testing.assert_close(forward * a + backward * b, at(t), rtol=1e-9, atol=1e-9)


def test_slerp_keeps_the_length_where_the_mean_does_not() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    first, second = slerp_shares(0, 1, 1, 0.5)
    assert (first * a + second * b).norm() == pytest.approx(1)


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.0, -1.0])
def test_slerp_of_parallel_vectors_is_the_straight_mean(factor: float) -> None:
    assert slerp_shares(3 * factor, 3, 3 * factor**2, 0.25) == (0.75, 0.25)


@settings(deadline=None, derandomize=True)
@given(models(least=3), st.data())
def test_differences_are_added_and_none_changes_nothing(tensors: list[Tensor], data: st.DataObject) -> None:
    start, base, *others = tensors
    weights = [data.draw(st.floats(-2, 2)) for _ in others]
    expected = start.double() + sum(
        weight * (other.double() - base.double()) for weight, other in zip(weights, others, strict=True)
    )
    torch.testing.assert_close(add_differences(start, others, base, weights).double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(add_differences(start, [base, base], base, [0.3, -2.0]), start)
    torch.testing.assert_close(add_differences(base, others[:1], base, [1.0]), others[0], rtol=RTOL, atol=ATOL)


def trimmed(vector: Tensor, kept: int, piece: int = 100) -> Tensor:
    trim = Trim(vector.abs(), kept)
    return torch.cat([trim(part.clone()) for part in vector.split(piece)])


@settings(deadline=None, derandomize=True)
@given(arrays(np.float32, st.integers(1, 40), elements=st.integers(-4, 4).map(float)), st.data())
def test_trimming_keeps_just_the_largest_also_among_equals(array: np.ndarray, data: st.DataObject) -> None:
    vector = torch.from_numpy(array)
    kept = data.draw(st.integers(1, len(array)))
    order = sorted(range(len(array)), key=lambda place: (-abs(array[place]), place))
    expected = torch.zeros_like(vector)
    expected[order[:kept]] = vector[order[:kept]]
    assert torch.equal(trimmed(vector, kept), expected)
    assert torch.equal(trimmed(vector, kept, piece=data.draw(st.integers(1, 7))), expected)


def plain_election(tasks: list[Tensor], weights: list[float]) -> list[float]:
    """One element after another, as the paper says it."""
    found = []
    for elements in torch.stack(tasks).T.tolist():
        sign = np.sign(round(math.fsum(w * e for w, e in zip(weights, elements, strict=True)), 9))
        agreeing = [(w, e) for w, e in zip(weights, elements, strict=True) if np.sign(e) == sign and e != 0]
        found.append(sum(w * e for w, e in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0)
    return found


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 10), st.data())
def test_the_elected_mean_is_the_papers(count: int, length: int, data: st.DataObject) -> None:
    # Numbers that float32 adds without rounding: the sign of a sum near 0 would depend on it.
    numbers = arrays(np.float32, length, elements=st.integers(-4, 4).map(float))
    tasks = [torch.from_numpy(data.draw(numbers)) for _ in range(count)]
    weights = [data.draw(st.sampled_from([0.25, 0.5, 1.0])) for _ in range(count)]
    found = elected_mean(tasks, weights)
    torch.testing.assert_close(found, torch.tensor(plain_election(tasks, weights)), rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(elected_mean(tasks[::-1], weights[::-1]), found, msg="symmetry")
    torch.testing.assert_close(elected_mean([tasks[0]] * 3, [0.2, 0.5, 0.3]), tasks[0], msg="all agree")


def test_a_sign_against_the_others_does_not_count() -> None:
    tasks = [torch.tensor([4.0, 0.0, -1.0]), torch.tensor([2.0, 3.0, 1.0]), torch.tensor([-5.0, 0.0, 0.0])]
    assert elected_mean(tasks, [1.0, 1.0, 1.0]).tolist() == [3.0, 3.0, 0.0]


def test_what_dare_keeps_is_rescaled_and_its_mean_stays() -> None:
    vector = torch.full((200_000,), 3.0)
    found = Drop(0.25, 0, "a")(vector.clone())
    assert set(found.unique().tolist()) == {0.0, 12.0}
    # The share that is kept has a standard deviation of 0.001; five of them, times 12.
    assert float(found.mean()) == pytest.approx(3.0, abs=0.06)
    assert torch.equal(Drop(1.0, 0, "a")(vector.clone()), vector)


def test_dare_draws_by_seed_and_name_whatever_the_pieces() -> None:
    vector = torch.arange(1.0, 1001.0)
    whole = Drop(0.5, 7, "0", "conv_in.weight")(vector.clone())
    drop = Drop(0.5, 7, "0", "conv_in.weight")
    assert torch.equal(torch.cat([drop(part.clone()) for part in vector.split(333)]), whole)
    for other in (Drop(0.5, 8, "0", "conv_in.weight"), Drop(0.5, 7, "1", "conv_in.weight"), Drop(0.5, 7, "0", "b")):
        assert not torch.equal(other(vector.clone()), whole)


def test_a_share_of_elements_is_at_least_one() -> None:
    assert [num_kept(*pair) for pair in ((10, 0.2), (10, 0.01), (1, 0.2), (7, 1.0))] == [2, 1, 1, 7]
