"""The step's own arithmetic; whole steps are in test_train.py and test_skip.py."""

import torch

from launch.step import with_bad_gradient_where_bad


def test_a_loss_that_overflowed_has_no_finite_gradient_and_others_keep_theirs() -> None:
    inputs = torch.tensor([3.0, 1e30, -0.1], requires_grad=True)
    losses = inputs.square()
    assert losses.isfinite().tolist() == [True, False, True]
    guarded = with_bad_gradient_where_bad(losses)
    assert torch.equal(guarded[[0, 2]], losses[[0, 2]])
    (plain,) = torch.autograd.grad(losses.sum(), inputs, retain_graph=True)
    assert plain.isfinite().all(), "the engine alone would not have noticed"
    (gradient,) = torch.autograd.grad(guarded.sum(), inputs)
    assert gradient[1].isnan()
    assert torch.equal(gradient[[0, 2]], plain[[0, 2]])
