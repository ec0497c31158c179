"""Draw images: from noise, prompts and masks to uint8 pictures."""

# B images of a batch, C latent channels, h w latent height and width, H W image height and width, L prompt tokens,
# D text width, E channels of an embedded hint

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampler.bundle import Bundle
from sampler.masks import hint_image
from sampler.networks import Array, Networks
from sampler.noise import noise
from sampler.schedule import Schedule
from sampler.solvers import make_solver
from sampler.text import Prompts

# Called after each step with the steps done and all of them; what it raises ends the drawing.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How images are drawn.

    steps: evaluations of the UNet. guidance: scale of classifier-free guidance; 1 is none, and half the work.
    guidance_rescale: how far guidance is kept from brightening the image, 0 to 1.
    """

    sampler: str
    steps: int
    guidance: float
    guidance_rescale: float


@dataclass(frozen=True)
class Wish:
    """An image to draw. mask_HW: its class numbers, uint8; None: the prompt alone decides."""

    prompt: str
    negative: str
    seed: int
    mask_HW: NDArray[np.uint8] | None = None


class Drawer:
    """A bundle ready to draw from."""

    def __init__(self, bundle: Bundle) -> None:
        values = bundle.manifest.values
        tokenizer, self._latent = values["tokenizer"], values["latent"]
        self.manifest = bundle.manifest
        self.networks = Networks(bundle)
        self.prompts = Prompts(bundle.path(tokenizer["file"]), tokenizer["length"], tokenizer["pad"])
        self._schedule = Schedule.from_manifest(values["schedule"], values["prediction_type"])
        self._text: dict[str, Array] = {}

    def draw(self, wishes: Sequence[Wish], settings: Settings, progress: Progress | None = None) -> NDArray[np.uint8]:
        """Return one image for each wish, drawn together, uint8 [B, H, W, 3].

        Its seed says what an image is, whatever it is drawn with. Either all wishes have a mask or none has.
        """
        side = self.manifest.resolution // self._latent["pixels"]
        shape = (self._latent["channels"], side, side)
        noise_BChw = np.stack([noise(wish.seed, shape) for wish in wishes])
        return self.decode(self.denoise(noise_BChw, wishes, settings, progress))

    def denoise(
        self, noise_BChw: Array, wishes: Sequence[Wish], settings: Settings, progress: Progress | None = None
    ) -> Array:
        """Return the latents, as the UNet sees them, that noise becomes, [B, C, h, w]."""
        is_guided = settings.guidance != 1
        text_BLD = self.text([wish.prompt for wish in wishes])
        if is_guided:
            text_BLD = np.concatenate([self.text([wish.negative for wish in wishes]), text_BLD])
        masks = [wish.mask_HW for wish in wishes if wish.mask_HW is not None]
        assert len(masks) in (0, len(wishes))
        hint_BEhw = None
        if masks:  # seen by layers that know no timestep, so once and not at every step
            hint_BEhw = self.embedded_hint(np.stack([hint_image(mask_HW, self.manifest.palette) for mask_HW in masks]))
            hint_BEhw = np.concatenate([hint_BEhw, hint_BEhw]) if is_guided else hint_BEhw
        solver = make_solver(self._schedule, settings.sampler, settings.steps)
        latents_BChw = noise_BChw
        for number, timestep in enumerate(solver.timesteps, 1):
            if is_guided:
                both = self.predict(np.concatenate([latents_BChw, latents_BChw]), timestep, text_BLD, hint_BEhw)
                without_BChw, with_BChw = np.split(both, 2)
                prediction_BChw = guided(without_BChw, with_BChw, settings.guidance, settings.guidance_rescale)
            else:
                prediction_BChw = self.predict(latents_BChw, timestep, text_BLD, hint_BEhw)
            latents_BChw = solver.step(prediction_BChw, latents_BChw)
            if progress is not None:
                progress(number, len(solver.timesteps))
        return latents_BChw

    def prepare_text(self, prompts: Sequence[str]) -> None:
        """Make the embeddings of prompts, and give back the text encoder's memory, which the UNet can use."""
        self.text(prompts)
        self.networks.close("text_encoder")

    def text(self, prompts: Sequence[str]) -> Array:
        """Return the embeddings of prompts, [B, L, D]; each is made once."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._text:
                tokens = self.prompts.tokens([prompt])
                self._text[prompt] = self.networks.run("text_encoder", {"tokens": tokens})["text"][0]
        return np.stack([self._text[prompt] for prompt in prompts])

    def forget_text(self) -> None:
        """Give back the memory of embeddings."""
        self._text.clear()

    def embedded_hint(self, hint_B3HW: Array) -> Array:
        """Return what the ControlNet sees of hints, [B, E, h, w]."""
        return self.networks.run("hint_embedding", {"hint": hint_B3HW})["embedding"]

    def predict(self, latents_BChw: Array, timestep: float, text_BLD: Array, hint_BEhw: Array | None) -> Array:
        """Return the UNet's answer, steered by the ControlNet where there is an embedded hint, [B, C, h, w]."""
        inputs = {
            "latents": latents_BChw,
            "timestep": np.full(len(latents_BChw), timestep, np.float32),
            "text": text_BLD,
        }
        if hint_BEhw is None:
            return self.networks.run("unet", inputs)["prediction"]
        residuals = self.networks.run("controlnet", {**inputs, "embedding": hint_BEhw})
        return self.networks.run("unet_with_control", {**inputs, **residuals})["prediction"]

    def decode(self, latents_BChw: Array) -> NDArray[np.uint8]:
        """Return the images of latents as the UNet has them, uint8 [B, H, W, 3]; one at a time, which needs least."""
        factor = np.float32(self._latent["scaling_factor"])
        images = [self.networks.run("vae_decoder", {"latents": one[None] / factor})["image"][0] for one in latents_BChw]
        levels_B3HW = np.rint(np.clip(np.stack(images) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(levels_B3HW, 1, -1))


def guided(without_BChw: Array, with_BChw: Array, guidance: float, rescale: float) -> Array:
    """Return the guided prediction of those without and with the prompt, [B, C, h, w].

    rescale: how far each image's standard deviation is brought back to that of the prediction with the prompt, 0 to 1.
    Source: Ho & Salimans 2022 (arXiv:2207.12598), equation 6; Lin et al. 2023 (arXiv:2305.08891), section 3.4.
    """
    output_BChw = without_BChw + guidance * (with_BChw - without_BChw)
    if rescale == 0:
        return output_BChw
    over = (1, 2, 3)
    ratio_B111 = with_BChw.std(over, keepdims=True) / output_BChw.std(over, keepdims=True)
    return rescale * (output_BChw * ratio_B111) + (1 - rescale) * output_BChw
