"""The step's own arithmetic; whole steps are in test_train.py and test_skip.py."""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from data.loader import Batch
from launch.step import Objective, with_bad_gradient_where_bad
from models.objective import ObjectiveConfig
from models.schedule import NoiseSchedule


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


class Asked(nn.Module):
    """Notes what it is asked, and answers with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> SimpleNamespace:
        self.noisy, self.timesteps = noisy, timesteps
        return SimpleNamespace(sample=torch.zeros_like(noisy))


def test_the_objectives_settings_reach_the_unet() -> None:
    schedule = NoiseSchedule.from_scheduler_config(DDPMScheduler().config, scaling_factor=1)
    generator = np.random.default_rng(0)
    shape = (3, 4, 8, 8)
    batch = Batch(
        latents_BChw=np.zeros(shape, dtype=np.float32),
        noise_BChw=generator.standard_normal(shape, dtype=np.float32),
        offset_BC=generator.standard_normal(shape[:2], dtype=np.float32),
        timestep_B=np.array([0.1, 0.5, 0.9]),
        text_BLD=np.zeros((3, 2, 4), dtype=np.float32),
        ids=("a", "b", "c"),
        is_dropped=(False,) * 3,
        is_repeat=(False,) * 3,
    )
    config = ObjectiveConfig(noise_offset=0.3, timesteps="logit_normal", timesteps_mean=1.0)
    plain, changed = Asked(), Asked()
    Objective(schedule, config.for_validation, torch.device("cpu")).losses(plain, batch)
    Objective(schedule, config, torch.device("cpu")).losses(changed, batch)
    assert plain.timesteps.tolist() == [100, 500, 900]
    # The sigmoid of 1 + the normal quantile of 0.1, 0.5 and 0.9: -0.28, 1, 2.28.
    assert changed.timesteps.tolist() == [430, 731, 907]
    share = (1 - schedule.alpha_bar(changed.timesteps)).sqrt()[:, None, None, None]
    noise = torch.from_numpy(batch.noise_BChw + 0.3 * batch.offset_BC[:, :, None, None])
    # The latents are zero, so that the input is noise alone; float32 products.
    torch.testing.assert_close(changed.noisy, share * noise, rtol=1e-5, atol=1e-6)
