"""Whether the files of a bundle compute what torch computes: references from torch, measured with onnxruntime."""

# B batch, C latent channels, h w latent height and width, H W image height and width, L prompt tokens, D text width

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.hints import hint_images
from models.base import latent_shape
from models.errors import ModelError
from models.sampling import guided, make_solver
from models.schedule import NoiseSchedule
from tools.export.masks import example_mask
from tools.export.predictors import Predictor
from tools.export.source import Source
from tools.export.stored_weights import Precision

Array = NDArray[Any]

# Enough to add up what a step gets wrong; the noise levels between are the sampler's affair. At 256 pixels a step of
# Stable Diffusion 1.5 takes 2 s, at 512 over 10.
IMAGE_STEPS, GUIDANCE = 12, 5.0
MAX_PARITY_PIXELS = 256
TIMESTEP = 500.0
# Largest difference that is let through: a share of the largest number in the reference; of an image, grey levels.
# fp32: ten to a hundred times what the order of sums makes (2e-6 measured, 1e-4 in latents at full size).
# fp16 and int8: four times and more what the built-in model and full-size random weights measured (7e-4 and 1e-2 of
# the prediction), since every model differs, and still far below what a wrong graph or a wrong scale does.
LIMITS: dict[Precision, dict[str, float]] = {
    "fp32": {"text": 1e-4, "prediction": 1e-4, "latents": 1e-3, "image_levels": 2},
    "fp16": {"text": 5e-3, "prediction": 5e-3, "latents": 2e-2, "image_levels": 12},
    "int8": {"text": 5e-2, "prediction": 5e-2, "latents": 2.5e-1, "image_levels": 80},
}


@dataclass(frozen=True)
class Parity:
    """What was measured: the largest absolute differences, and those that are let through, by what is compared."""

    errors: dict[str, float | None]
    limits: dict[str, float | None]
    mean_levels: float

    def refuse(self, name: str) -> None:
        """Raise ModelError, naming the first, if a difference is not within its limit."""
        for what, error in self.errors.items():
            limit = self.limits[what]
            if error is not None and limit is not None and not error <= limit:  # not a number is refused too
                raise ModelError(
                    f"{name}: the exported graphs do not compute what torch computes ({what} differs by {error:.3g}, "
                    f"at most {limit:.3g} is right); nothing was written: use a higher --precision, or report this"
                )


def references(
    predictor: Predictor,
    source: Source,
    schedule: NoiseSchedule,
    tokens: Mapping[str, Array],
    prompt: str,
    num_classes: int,
) -> dict[str, Array]:
    """Return the content of parity.npz: inputs drawn from a fixed seed, and what torch makes of them.

    num_classes: of the masks that a ControlNet takes, each of which is a square in its mask; 0 without one. tokens: of
    "prompt" and of the "empty" one, [1, L] each.
    """
    draw = np.random.default_rng(0)
    channels, height, _ = latent_shape(source.config)
    pixels = source.base.latent_pixels
    side = min(height, MAX_PARITY_PIXELS // pixels)
    noise = draw.standard_normal((1, channels, side, side), dtype=np.float32)
    found: dict[str, Array] = {
        "tokens": tokens["prompt"],
        "text": predictor.run("text_encoder", {"tokens": tokens["prompt"]})["text"],
        "latents": draw.standard_normal((1, channels, side, side), dtype=np.float32),
        "timestep": np.array([TIMESTEP], np.float32),
    }
    inputs = (found["latents"], found["timestep"], found["text"])
    found["prediction"] = predictor.predict(*inputs, None)
    if num_classes:
        mask = example_mask(num_classes, side * pixels)
        found["hint"] = hint_images(mask[None])
        found["prediction_with_control"] = predictor.predict(*inputs, found["hint"])
        found["image_mask"] = mask
    found |= {
        "image_prompt": np.array(prompt),
        "noise": noise,
        "image_steps": np.array(IMAGE_STEPS),
        "image_guidance": np.array(GUIDANCE, np.float64),
    }
    return found | drawn(predictor, schedule, found, tokens)


def measure(
    predictor: Predictor,
    schedule: NoiseSchedule,
    found: Mapping[str, Array],
    tokens: Mapping[str, Array],
    precision: Precision,
) -> Parity:
    """Return how far `predictor` is from the references."""
    text = predictor.run("text_encoder", {"tokens": found["tokens"]})["text"]
    inputs = (found["latents"], found["timestep"], found["text"])
    ours = {"text": text, "prediction": predictor.predict(*inputs, None)}
    if "hint" in found:
        ours["prediction_with_control"] = predictor.predict(*inputs, found["hint"])
    image = drawn(predictor, schedule, found, tokens)
    differences = {name: np.abs(array - found[name]) for name, array in ours.items()}
    differences["latents"] = np.abs(image["image_latents"] - found["image_latents"])
    differences["image_levels"] = np.abs(image["image"].astype(np.int16) - found["image"].astype(np.int16))
    keys = ("text", "prediction", "prediction_with_control", "latents", "image_levels")
    errors = {key: float(differences[key].max()) if key in differences else None for key in keys}
    return Parity(errors, limits(found, precision), float(differences["image_levels"].mean()))


def limits(found: Mapping[str, Array], precision: Precision) -> dict[str, float | None]:
    """Return the largest differences that are let through."""
    shares = LIMITS[precision]
    largest = {"latents": "image_latents"}
    result: dict[str, float | None] = {}
    for key in ("text", "prediction", "prediction_with_control", "latents"):
        name = largest.get(key, key)
        share = shares[key.removesuffix("_with_control")]
        result[key] = share * float(np.abs(found[name]).max()) if name in found else None
    return result | {"image_levels": shares["image_levels"]}


def drawn(
    predictor: Predictor, schedule: NoiseSchedule, found: Mapping[str, Array], tokens: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the latents and the image that `found` describes, drawn with diffusers' solver."""
    texts = [predictor.run("text_encoder", {"tokens": tokens[name]})["text"] for name in ("empty", "prompt")]
    text_2LD = np.concatenate(texts)
    hint = found.get("hint")
    hints = None if hint is None else np.concatenate([hint, hint])
    solver = make_solver(schedule, "dpmsolver++")
    solver.set_timesteps(int(found["image_steps"]))
    latents = torch.from_numpy(found["noise"]) * solver.init_noise_sigma
    for timestep in solver.timesteps:
        scaled = solver.scale_model_input(latents, timestep)
        both = torch.cat([scaled, scaled]).numpy()
        prediction = predictor.predict(both, np.full(2, float(timestep), np.float32), text_2LD, hints)
        without, with_prompt = torch.from_numpy(prediction).chunk(2)
        output = guided(without, with_prompt, float(found["image_guidance"]), 0.0)
        latents = solver.step(output, timestep, latents).prev_sample
    decoded = predictor.run("vae_decoder", {"latents": (latents / schedule.scaling_factor).numpy()})["image"][0]
    levels = np.rint(np.clip(decoded / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    return {"image_latents": latents.numpy(), "image": np.moveaxis(levels, 0, -1)}
