"""Draw images: from a pipeline and prompts, or from a UNet, a VAE and embeddings that were made before."""

# N images, B those of one batch, C latent channels, H W height and width (of latents where C stands before them),
# L prompt tokens, D text width

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.errors import ModelError
from models.schedule import NoiseSchedule

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module

Sampler = Literal["dpmsolver++", "ddim"]


class SamplingConfig(BaseModel):
    """How images are drawn."""

    model_config = ConfigDict(extra="forbid")

    sampler: Sampler = Field(
        "dpmsolver++", description="Solver: DPM-Solver++(2M) on Karras' noise levels, or DDIM. Neither adds noise."
    )
    steps: int = Field(25, gt=0, description="Evaluations of the UNet for an image, a count.")
    guidance: float = Field(
        5.0, ge=1, description="Classifier-free guidance scale, a factor. 1: none, and half the work."
    )
    guidance_rescale: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How far guidance is kept from brightening the image, 0 to 1; 0.7 goes with zero terminal SNR.",
    )


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingConfig,
    *,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 8,
    hints_N3HW: Tensor | None = None,
) -> NDArray[np.uint8]:
    """Return one image for each prompt and its seed, uint8 [N, H, W, 3]; see `sample_from_embeddings`.

    A ControlNet's pipeline needs a hint for each of them too.
    """
    import torch

    from models.controlnet import ControlledUnet

    schedule = NoiseSchedule.from_scheduler_config(
        pipeline.scheduler.config, scaling_factor=pipeline.vae.config.scaling_factor
    )
    distinct = list(dict.fromkeys(["", *prompts]))
    with torch.no_grad():
        text_PLD, _ = pipeline.encode_prompt(distinct, pipeline.device, 1, do_classifier_free_guidance=False)
    controlnet = getattr(pipeline, "controlnet", None)
    return sample_from_embeddings(
        pipeline.unet if controlnet is None else ControlledUnet(pipeline.unet, controlnet),
        pipeline.vae,
        schedule,
        text_PLD[[distinct.index(prompt) for prompt in prompts]],
        text_PLD[0],
        seeds,
        settings,
        height=height,
        width=width,
        batch_size=batch_size,
        hints_N3HW=hints_N3HW,
    )


def sample_from_embeddings(
    unet: Module,
    vae: AutoencoderKL,
    schedule: NoiseSchedule,
    text_NLD: Tensor,
    empty_LD: Tensor,
    seeds: Sequence[int],
    settings: SamplingConfig,
    *,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 8,
    hints_N3HW: Tensor | None = None,
    before_step: Callable[[], object] | None = None,
) -> NDArray[np.uint8]:
    """Return one image for each embedding and its seed, uint8 [N, H, W, 3], without a text encoder in memory.

    The starting noise is drawn on the CPU in float32 from each image's own seed, so neither the batch nor the device
    nor the dtype changes which picture a seed stands for (beyond rounding).
    `empty_LD` is the embedding of the empty prompt. Height and width are in pixels; None: what the UNet was made for.
    hints_N3HW: a hint in [0, 1] for each image, where `unet` is a ControlledUnet; guidance keeps it on both sides.
    before_step: called before each evaluation of the UNet; what it raises ends the drawing.
    The UNet's mode is put back.
    Raises: ModelError if the size is no whole number of latents, ValueError if seeds and embeddings do not match.
    """
    import numpy as np
    import torch

    if len(seeds) != len(text_NLD):
        raise ValueError(f"{len(seeds)} seeds were given for {len(text_NLD)} embeddings; one for each is needed")
    latent_shape = _latent_shape(unet, vae, height, width)
    guide = None
    if settings.guidance != 1:
        guide = partial(guided, guidance=settings.guidance, rescale=settings.guidance_rescale)
    was_training = unet.training
    unet.eval()
    images: list[NDArray[np.uint8]] = []
    try:
        with torch.no_grad():
            for start in range(0, len(seeds), batch_size):
                stop = start + batch_size
                noise_BCHW = torch.stack([_noise(seed, latent_shape) for seed in seeds[start:stop]])
                solver = make_solver(schedule, settings.sampler)
                solver.set_timesteps(settings.steps, device=next(unet.parameters()).device)
                hint_B3HW = None if hints_N3HW is None else hints_N3HW[start:stop]
                latents_BCHW = _denoise(
                    unet, solver, noise_BCHW, text_NLD[start:stop], empty_LD, guide, hint_B3HW, before_step
                )
                images.append(decode_latents(vae, latents_BCHW / schedule.scaling_factor))
    finally:
        unet.train(was_training)
    height_px, width_px = (side * _latent_pixels(vae) for side in latent_shape[1:])
    return np.concatenate([np.empty((0, height_px, width_px, 3), np.uint8), *images])


def make_solver(schedule: NoiseSchedule, sampler: Sampler) -> Any:
    """Return the diffusers scheduler that solves this schedule's probability flow.

    Where the answer is known (a mixture of 24 narrow Gaussians, 25 steps against 1000), DPM-Solver++(2M) on Karras'
    levels ends 10 times closer than DDIM, and keeps the spread within a mode where DDIM loses a fifth: in an
    ultrasound image that spread is the speckle.
    Source: Lu et al. 2022 (arXiv:2211.01095); Karras et al. 2022 (arXiv:2206.00364), equation 5.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    # Where T holds no signal at all, the first step must be taken at T (Lin et al. 2023, arXiv:2305.08891, 3.3), and
    # Karras' levels, which begin at its noise-to-signal ratio, would spend most steps where nothing happens.
    spacing = {"timestep_spacing": "trailing"} if schedule.has_zero_terminal_snr else {}
    config = {**schedule.scheduler_config, **spacing, "prediction_type": schedule.prediction_type}
    if sampler == "ddim":
        # Latents are not within [-1, 1]. The last step ends without noise, as a bundle's sampler does, whatever the
        # base model's own scheduler says.
        return DDIMScheduler.from_config(config, clip_sample=False, steps_offset=1, set_alpha_to_one=True)
    return DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", use_karras_sigmas=not schedule.has_zero_terminal_snr
    )


def guided(without_BCHW: Tensor, with_BCHW: Tensor, guidance: float, rescale: float) -> Tensor:
    """Return the guided prediction of those without and with the prompt, [B, C, H, W].

    rescale: how far each sample's standard deviation is brought back to that of the prediction with the prompt, 0 to 1.
    Source: Ho & Salimans 2022 (arXiv:2207.12598), equation 6; Lin et al. 2023 (arXiv:2305.08891), section 3.4.
    """
    output_BCHW = without_BCHW + guidance * (with_BCHW - without_BCHW)
    if rescale == 0:
        return output_BCHW
    over = (1, 2, 3)
    rescaled_BCHW = output_BCHW * (with_BCHW.std(over, keepdim=True) / output_BCHW.std(over, keepdim=True))
    return rescale * rescaled_BCHW + (1 - rescale) * output_BCHW


def _denoise(
    unet: Module,
    solver: Any,
    noise_BCHW: Tensor,
    text_BLD: Tensor,
    empty_LD: Tensor,
    guide: Callable[[Tensor, Tensor], Tensor] | None,
    hint_B3HW: Tensor | None,
    before_step: Callable[[], object] | None,
) -> Tensor:
    """Return the latents at the end of the solver's timesteps. guide: None takes the prediction with the prompt."""
    import torch

    parameter = next(unet.parameters())
    device, dtype = parameter.device, parameter.dtype
    text_BLD = text_BLD.to(device, dtype)
    if guide is not None:
        text_BLD = torch.cat([empty_LD.to(device, dtype).expand_as(text_BLD), text_BLD])
    hint = () if hint_B3HW is None else (hint_B3HW.to(device, dtype).repeat(len(text_BLD) // len(hint_B3HW), 1, 1, 1),)
    latents_BCHW = noise_BCHW.to(device) * solver.init_noise_sigma
    for timestep in solver.timesteps:
        if before_step is not None:
            before_step()
        input_BCHW = solver.scale_model_input(latents_BCHW, timestep).to(dtype)
        if guide is None:
            output_BCHW = unet(input_BCHW, timestep, text_BLD, *hint).sample.float()
        else:
            both = unet(torch.cat([input_BCHW, input_BCHW]), timestep, text_BLD, *hint).sample.float()
            output_BCHW = guide(*both.chunk(2))
        latents_BCHW = solver.step(output_BCHW, timestep, latents_BCHW).prev_sample
    return latents_BCHW


def decode_latents(vae: AutoencoderKL, latents_BCHW: Tensor) -> NDArray[np.uint8]:
    """Return the images of latents as the VAE has them (not scaled), uint8 [B, H, W, 3]."""
    images_BCHW = vae.decode(latents_BCHW.to(vae.device, vae.dtype)).sample.float()
    levels_BHWC: Tensor = ((images_BCHW / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    array: NDArray[np.uint8] = levels_BHWC.cpu().numpy()
    return array


def _noise(seed: int, shape: tuple[int, int, int]) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def _latent_shape(unet: Any, vae: AutoencoderKL, height: int | None, width: int | None) -> tuple[int, int, int]:
    factor = _latent_pixels(vae)
    sides = []
    for name, pixels in (("height", height), ("width", width)):
        if pixels is not None and (pixels <= 0 or pixels % factor):
            raise ModelError(f"{name}={pixels} is not a multiple of {factor}, the pixels that one latent covers")
        sides.append(unet.config.sample_size if pixels is None else pixels // factor)
    return unet.config.in_channels, sides[0], sides[1]


def _latent_pixels(vae: AutoencoderKL) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))
