"""The counter of live bytes against cases counted by hand, on real tensors and on fake ones."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from distributed.live_bytes import LiveBytes

NUMEL = 1000
VECTOR = 4 * NUMEL  # bytes, float32
SCALAR = 4


@pytest.fixture(params=["real", "fake"], autouse=True)
def tensors(request: pytest.FixtureRequest) -> Iterator[None]:
    with FakeTensorMode() if request.param == "fake" else nullcontext():
        yield


def test_a_storage_counts_once_and_until_its_last_view_dies() -> None:
    with LiveBytes() as live:
        first = torch.zeros(NUMEL)
        view = first.view(10, 100)[2:]
        first.add_(1)
        assert live.present == VECTOR
        del first
        assert live.present == VECTOR
        del view
        assert live.present == 0
        second = torch.zeros(NUMEL // 2, dtype=torch.bfloat16)
        assert live.present == VECTOR // 4
    del second
    assert live.present == 0, "it dies outside too"
    assert live.peak == VECTOR


def test_what_was_made_before_does_not_count() -> None:
    before = torch.zeros(NUMEL)
    with LiveBytes() as live:
        view = before.view(10, 100)
        before.mul_(2)
        torch.add(before, 1, out=view.view(-1))
        assert live.peak == 0
        after = before + 1
        assert live.present == after.nbytes == VECTOR


def test_several_results_and_a_resize_are_seen() -> None:
    with LiveBytes() as live:
        values, indices = torch.zeros(10, 100).max(dim=1)
        assert live.present == values.nbytes + indices.nbytes
        values.resize_(NUMEL)
        assert live.present == VECTOR + indices.nbytes
    assert live.peak == VECTOR + 10 * (4 + 8)


def test_the_backward_pass_is_seen() -> None:
    weight, factor = torch.ones(NUMEL, requires_grad=True), torch.ones(NUMEL)
    with LiveBytes() as live:
        loss = (weight * factor).exp().sum()
        assert live.peak == 2 * VECTOR, "the product and its exp, before the product dies"
        assert live.present == VECTOR + SCALAR, "exp keeps its result; the product keeps its factors, made before"
        loss.backward()
        assert weight.grad is not None
        assert live.present == VECTOR + SCALAR, "the gradient and the loss"
    assert live.peak == 2 * VECTOR + 2 * SCALAR, "exp's result, the gradient of its input, the loss, its gradient"


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_is_seen(use_reentrant: bool) -> None:
    def segment(x: Tensor) -> Tensor:
        return x.sin().sin()  # each keeps its input

    peaks = {}
    for is_checkpointed, num_kept in ((False, 5), (True, 2)):
        start = torch.ones(NUMEL, requires_grad=True)
        with LiveBytes() as live:
            x = start
            for _ in range(3):
                x = checkpoint(segment, x, use_reentrant=use_reentrant) if is_checkpointed else segment(x)
            loss = x.sum()
            del x
            assert live.present == num_kept * VECTOR + SCALAR, "all inputs but the first / those of segments 2 and 3"
            loss.backward()
            assert live.present == VECTOR + SCALAR, "the gradient and the loss"
        peaks[is_checkpointed] = live.peak
    # Not checkpointed: at the last sine's backward its input's cosine and gradient join the five inputs.
    assert peaks[False] == 7 * VECTOR + 2 * SCALAR
    assert peaks[True] < peaks[False]
