"""The six graphs of a bundle as torch modules: their inputs, their outputs, and whose weights they use."""

# B batch, C latent channels, h w latent height and width, H W image height and width, L prompt tokens, D text width

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from models.base import latent_shape, text_shape
from models.controlnet import load_controlnet
from models.errors import ModelError
from models.stable_diffusion import load_part, load_text_encoder, load_vae
from tools.export.source import Source

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

BATCH = 2
# Latents of odd sides in the trace: a UNet then carries every level's size to its upsampling, and takes any size.
TRACED_SIDES = (17, 19)


class TextEncoder(nn.Module):
    """Tokens to the embedding of a prompt."""

    def __init__(self, network: CLIPTextModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Return the last hidden states, [B, L, D]."""
        hidden_BLD: Tensor = self.network(tokens_BL)[0]
        return hidden_BLD


class Unet(nn.Module):
    """What a solver asks at each step; with a ControlNet's residuals behind its inputs, where there are any."""

    def __init__(self, network: UNet2DConditionModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, latents_BChw: Tensor, timestep_B: Tensor, text_BLD: Tensor, *residuals: Tensor) -> Tensor:
        """Return the prediction, [B, C, h, w]. residuals: of the blocks on the way down, in order, then the middle."""
        prediction_BChw: Tensor = self.network(
            latents_BChw,
            timestep_B,
            text_BLD,
            down_block_additional_residuals=residuals[:-1] or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            return_dict=False,
        )[0]
        return prediction_BChw


class HintEmbedding(nn.Module):
    """The first layers of a ControlNet, which see the hint alone: computed once for an image, not at every step."""

    def __init__(self, network: nn.Module, *, is_blue_first: bool) -> None:
        super().__init__()
        self.network = network
        self._is_blue_first = is_blue_first

    def forward(self, hint_B3HW: Tensor) -> Tensor:
        """Return the embedding, [B, E, h, w]. hint_B3HW: red, green and blue in [0, 1]."""
        embedding_BEhw: Tensor = self.network(hint_B3HW.flip(1) if self._is_blue_first else hint_B3HW)
        return embedding_BEhw


class ControlNet(nn.Module):
    """What a hint adds to the UNet."""

    def __init__(self, network: ControlNetModel) -> None:
        """network: without its embedding of the hint, see `split_controlnet`."""
        super().__init__()
        self.network = network

    def forward(
        self, latents_BChw: Tensor, timestep_B: Tensor, text_BLD: Tensor, embedding_BEhw: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the residuals of the blocks on the way down, in order, then the middle."""
        down, mid = self.network(latents_BChw, timestep_B, text_BLD, controlnet_cond=embedding_BEhw, return_dict=False)
        return (*down, mid)


def split_controlnet(network: ControlNetModel) -> tuple[HintEmbedding, ControlNet]:
    """Return the embedding of hints, taken out of a ControlNet, and the rest, which takes what it gives."""
    is_blue_first = network.config.controlnet_conditioning_channel_order == "bgr"
    embedding = HintEmbedding(network.controlnet_cond_embedding, is_blue_first=is_blue_first)
    network.register_to_config(controlnet_conditioning_channel_order="rgb")
    network.controlnet_cond_embedding = nn.Identity()
    return embedding, ControlNet(network)


class VaeDecoder(nn.Module):
    """Latents to an image."""

    def __init__(self, network: AutoencoderKL) -> None:
        super().__init__()
        self.network = network

    def forward(self, latents_BChw: Tensor) -> Tensor:
        """Return the image, [B, 3, H, W], about [-1, 1]. latents_BChw: divided by the scaling factor."""
        image_B3HW: Tensor = self.network.decode(latents_BChw, return_dict=False)[0]
        return image_B3HW


class Value(NamedTuple):
    """An example of an input or output, and its sizes: numbers, or names where any size does."""

    example: Tensor
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """A network that becomes one graph. weights: name of the file of its weights; graphs may share it."""

    module: nn.Module
    weights: str
    inputs: dict[str, Value]
    outputs: dict[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class Networks:
    """All networks of a model in float32 on the CPU, and what turns prompts into tokens."""

    tokenizer: CLIPTokenizer
    text_encoder: TextEncoder
    unet: Unet
    vae_decoder: VaeDecoder
    hint_embedding: HintEmbedding | None
    controlnet: ControlNet | None

    @classmethod
    def load(cls, source: Source) -> Networks:
        """Load them. Raises: ModelError if the model is not whole, or pads its prompts with a mask."""
        from diffusers import UNet2DConditionModel

        config, dtype = source.config, torch.float32
        tokenizer, text_encoder = load_text_encoder(config, "cpu", dtype)
        if getattr(text_encoder.config, "use_attention_mask", False):
            raise ModelError(f"{source.name}: its text encoder masks padding, which the bundle's graph cannot say")
        unet = load_part(source.base, "unet", UNet2DConditionModel, dtype)
        hint_embedding, controlnet = None, None
        if source.has_controlnet:
            hint_embedding, controlnet = split_controlnet(load_controlnet(config, dtype, seed=0))
        networks = cls(
            tokenizer,
            TextEncoder(text_encoder),
            Unet(unet),
            VaeDecoder(load_vae(config, "cpu", dtype)),
            hint_embedding,
            controlnet,
        )
        for module in networks.modules():
            module.eval().requires_grad_(False)
        return networks

    def modules(self) -> list[nn.Module]:
        """Return those that there are."""
        modules = [self.text_encoder, self.unet, self.vae_decoder, self.hint_embedding, self.controlnet]
        return [module for module in modules if module is not None]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each file of weights by their names in diffusers and transformers."""
        files: dict[str, Any] = {
            "text_encoder": self.text_encoder,
            "unet": self.unet,
            "vae_decoder": self.vae_decoder,
            "hint_embedding": self.hint_embedding,
            "controlnet": self.controlnet,
        }
        stored = {name: module.network.state_dict() for name, module in files.items() if module is not None}
        stored["vae_decoder"] = {
            name: tensor
            for name, tensor in stored["vae_decoder"].items()
            if name.startswith(("decoder.", "post_quant"))
        }
        return stored

    def graphs(self, source: Source) -> dict[str, Graph]:
        """Return what is to be traced, by name, with examples of the inputs."""
        channels, _, _ = latent_shape(source.config)
        num_tokens, width = text_shape(source.config)
        pixels = source.base.latent_pixels
        height, width_h = TRACED_SIDES
        latents = Value(_noise(BATCH, channels, *TRACED_SIDES), ("batch", channels, "height", "width"))
        tokens = Value(torch.zeros(BATCH, num_tokens, dtype=torch.int64), ("batch", num_tokens))
        unet_inputs = {
            "latents": latents,
            "timestep": Value(torch.tensor([500.0, 20.0]), ("batch",)),
            "text": Value(_noise(BATCH, num_tokens, width), ("batch", num_tokens, width)),
        }
        image_shape = ("batch", 3, "image_height", "image_width")
        graphs = {
            "text_encoder": Graph(
                self.text_encoder, "text_encoder", {"tokens": tokens}, {"text": ("batch", num_tokens, width)}
            ),
            "unet": Graph(self.unet, "unet", unet_inputs, {"prediction": latents.shape}),
            "vae_decoder": Graph(self.vae_decoder, "vae_decoder", {"latents": latents}, {"image": image_shape}),
        }
        if self.controlnet is not None and self.hint_embedding is not None:
            hint = Value(torch.rand(BATCH, 3, height * pixels, width_h * pixels), image_shape)
            with torch.no_grad():
                embedded = self.hint_embedding(hint.example)
            embedding = Value(embedded, ("batch", embedded.shape[1], "height", "width"))
            graphs["hint_embedding"] = Graph(
                self.hint_embedding, "hint_embedding", {"hint": hint}, {"embedding": embedding.shape}
            )
            control_inputs = unet_inputs | {"embedding": embedding}
            with torch.no_grad():
                found = self.controlnet(*(value.example for value in control_inputs.values()))
            residuals = {
                name: Value(tensor, ("batch", tensor.shape[1], f"{name}_height", f"{name}_width"))
                for name, tensor in zip(residual_names(len(found)), found, strict=True)
            }
            outputs = {name: value.shape for name, value in residuals.items()}
            graphs["controlnet"] = Graph(self.controlnet, "controlnet", control_inputs, outputs)
            graphs["unet_with_control"] = Graph(
                self.unet, "unet", unet_inputs | residuals, {"prediction": latents.shape}
            )
        return graphs


def residual_names(count: int) -> list[str]:
    """Return the names of a ControlNet's outputs: residual_00 ..., then residual_mid."""
    return [*(f"residual_{number:02}" for number in range(count - 1)), "residual_mid"]


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
