"""Which part of the UNet trains: all of it, its cross-attention, or low-rank changes to its attention; and back again.

What trains are the parameters that require a gradient; the engine leaves the others as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.base import ModelConfig
from models.stable_diffusion import load_unet

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Tensor

TrainedPart = Literal["all", "cross_attention", "lora"]

# Beside model_index.json: the changes alone, by the name that diffusers' load_lora_weights looks for.
LORA_FILE = "pytorch_lora_weights.safetensors"
# The projections of every attention, to itself and to the prompt, as in diffusers' own training script.
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
# peft's name for an adapter that is given none; it is part of the parameters' names.
ADAPTER = "default"


class LoraConfig(BaseModel):
    """Low-rank changes B A to the attention's projections, which alone train (LoRA, arXiv:2106.09685)."""

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(
        16, gt=0, description="Rows of A and columns of B: each projection [m, n] gets rank * (m + n) parameters."
    )
    alpha: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="The change is alpha / rank * B A. None: as rank, so B A itself."
    )

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def train_only(
    unet: UNet2DConditionModel, trains: TrainedPart, lora: LoraConfig | None = None, *, seed: int = 0
) -> None:
    """Freeze all of `unet` but what `trains`; with "lora" add that to it, in its dtype and on its device.

    cross_attention: all four projections of the attention to the prompt, keys and values as in Custom Diffusion
    (Kumari et al. 2023, arXiv:2212.04488) and queries and output too. lora: None stands for its defaults; A is drawn
    from `seed`, the same on every rank and after a resume, as U(-1, 1) / sqrt(n) [rank, n], and B is 0, as in peft.
    The UNet may be on the meta device: then A stays without values.
    """
    if trains == "lora":
        _add_lora(unet, lora or LoraConfig(), seed)
    elif trains == "cross_attention":
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_("attn2" in name.split("."))


def whole_weights(
    config: ModelConfig, trained: Mapping[str, Tensor], trains: TrainedPart, lora: LoraConfig | None = None
) -> dict[str, Tensor]:
    """Return every weight of the UNet by its name, float32: `trained` (float32, CPU) put into the base of `config`.

    The base is read anew in float32, whatever was trained in. With "lora" the changes are folded into it, by peft.
    """
    import torch

    if trains == "all":
        return dict(trained)
    unet = load_unet(config.model_copy(update={"compile": False}), torch.float32)
    train_only(unet, trains, lora)
    _, unexpected = unet.load_state_dict(dict(trained), strict=False)
    assert not unexpected, f"{unexpected[0]} is no parameter of {config.base}"
    if trains == "lora":
        unet.fuse_lora()
        unet.unload_lora()
    return {name: parameter.detach() for name, parameter in unet.named_parameters()}


def lora_files(trained: Mapping[str, Tensor], trains: TrainedPart, lora: LoraConfig | None = None) -> dict[str, bytes]:
    """Return the changes as a file that diffusers' `load_lora_weights` reads, by its name; {} unless "lora" trains.

    Its B hold the scale: readers disagree on where alpha stands, and agree on what is meant where there is none.
    """
    from safetensors.torch import save

    if trains != "lora":
        return {}
    scale = (lora or LoraConfig()).scale
    tensors = {
        f"unet.{name.replace(f'.{ADAPTER}.', '.')}": weights * (scale if ".lora_B." in name else 1)
        for name, weights in trained.items()
    }
    return {LORA_FILE: save(tensors, {"format": "pt"})}


def _add_lora(unet: UNet2DConditionModel, lora: LoraConfig, seed: int) -> None:
    import peft
    import torch

    settings: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.scale * lora.rank, "target_modules": LORA_TARGETS}
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(**settings), ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in unet.named_parameters():
        if ".lora_A." in name and not parameter.is_meta:
            # Drawn in float32 on the CPU: the same for every dtype and device, to rounding.
            drawn = torch.rand(parameter.shape, generator=generator).mul_(2).sub_(1)
            parameter.data.copy_(drawn / math.sqrt(parameter.shape[1]))
