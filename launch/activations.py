"""How many bytes one forward and backward of a UNet needs beside its parameters, known before any is allocated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from distributed.live_bytes import PeakBytes
from launch.config import RunConfig
from launch.networks import Networks
from models.base import ModelConfig, latent_shape, noise_schedule, resolution_of, text_shape
from models.controlnet import ControlledUnet, empty_controlnet
from models.objective import ObjectiveConfig, denoising_loss
from models.schedule import NoiseSchedule
from models.stable_diffusion import apply_settings, empty_unet
from models.trained_part import LoraConfig, TrainedPart, train_only


def activation_bytes(
    config: ModelConfig,
    *,
    has_hints: bool = False,
    micro_size: int,
    dtype: torch.dtype,
    trains: TrainedPart = "all",
    lora: LoraConfig | None = None,
) -> int:
    """Return what `peak_bytes` would measure on this rank, in bytes, from the base's configs alone, in seconds.

    micro_size: samples; dtype: of parameters and activations; has_hints: of a ControlNet beside its frozen UNet.
    Checkpointing and attention are as `config` sets them. The attention is the CPU's fused kernel; CUDA's keep the
    same tensors for the backward pass. What is frozen needs no gradient, nor all that one would be computed from.
    Compiling is left out of it: it would keep other tensors, mostly fewer.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    networks = [empty_unet(config), *([empty_controlnet(config)] if has_hints else [])]
    train_only(networks[0], trains, lora)
    schedule = noise_schedule(config)
    # Fake tensors have a shape, a dtype and a device, and no memory.
    with FakeTensorMode():
        for network in networks:
            weights = {name: torch.empty(p.shape, dtype=dtype) for name, p in network.named_parameters()}
            network.load_state_dict(weights, assign=True)
            apply_settings(network.train(), config.model_copy(update={"compile": False}))
        return peak_bytes(
            ControlledUnet(networks[0].requires_grad_(False), networks[1]) if has_hints else networks[0],
            replace(schedule, alpha_bar_T=torch.empty(schedule.num_timesteps)),
            micro_size=micro_size,
            latent_shape=latent_shape(config),
            text_shape=text_shape(config),
            hint_pixels=resolution_of(config) if has_hints else None,
        )


def peak_bytes(
    unet: nn.Module,
    schedule: NoiseSchedule,
    *,
    micro_size: int,
    latent_shape: tuple[int, int, int],
    text_shape: tuple[int, int],
    hint_pixels: int | None = None,
) -> int:
    """Return the most bytes alive at once that one forward and backward of the objective makes, in bytes.

    In it: the micro batch (float32), activations kept for the backward pass, their gradients, and results of operators
    in passing; on CUDA, where the allocator counts, also what a kernel takes while it runs (cuDNN's workspace). Not in
    it: parameters; a parameter's gradient once it is whole, since what becomes of it then is the engine's matter
    (ZeRO-2 gives it away, ZeRO-1 keeps it). It is the peak of this sum, not what of it is alive at the peak of all: the
    bytes alive at any time are at most parameters + the gradients that the engine keeps + this.
    hint_pixels: height and width of the hint, where `unet` is a ControlledUnet.
    """
    device = next(unet.parameters()).device
    with gradients_dropped(unet), PeakBytes(device) as peak:
        latents_BCHW = torch.zeros(micro_size, *latent_shape, device=device)
        noise_BCHW = torch.zeros_like(latents_BCHW)
        timesteps_B = torch.zeros(micro_size, dtype=torch.int64, device=device)
        text_BLD = torch.zeros(micro_size, *text_shape, device=device)
        hint_B3HW = None
        if hint_pixels is not None:
            hint_B3HW = torch.zeros(micro_size, 3, hint_pixels, hint_pixels, device=device)
        inputs = (latents_BCHW, noise_BCHW, timesteps_B, text_BLD, hint_B3HW)
        denoising_loss(unet, schedule, ObjectiveConfig(), *inputs).mean().backward()
    return peak.bytes


def measured_activation_bytes(config: RunConfig, networks: Networks) -> int:
    """Return what `peak_bytes` measures for one micro batch of zeros, on the networks' device; 0 if unknown.

    A compiled UNet on a CPU is not measured: the count would keep it from being compiled.
    """
    device = next(networks.trained.parameters()).device
    if config.model.compile and device.type != "cuda":
        return 0
    schedule = noise_schedule(config.model)
    return peak_bytes(
        networks.denoiser(networks.trained),
        replace(schedule, alpha_bar_T=schedule.alpha_bar_T.to(device)),
        micro_size=config.batch.micro_size,
        latent_shape=latent_shape(config.model),
        text_shape=text_shape(config.model),
        hint_pixels=resolution_of(config.model) if networks.frozen_unet is not None else None,
    )


@contextmanager
def gradients_dropped(module: nn.Module) -> Iterator[None]:
    """Within it, each parameter's gradient dies in the backward pass as soon as it is whole."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in module.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
