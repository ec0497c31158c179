"""Whether the files of a bundle compute what torch computes: references from torch, measured with the sampler."""

# B batch, C latent channels, h w latent height and width, H W image height and width, L prompt tokens, D text width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.base import latent_shape
from models.errors import ModelError
from models.sampling import guided, make_solver
from models.schedule import NoiseSchedule
from sampler.bundle import open_bundle
from sampler.errors import SamplerError
from sampler.selftest import run_selftest
from tools.export.masks import example_mask, hints_of
from tools.export.source import Source
from tools.export.stored_weights import Precision
from tools.export.torch_predictor import TorchPredictor

Array = NDArray[Any]

# Enough to add up what a step gets wrong; the noise levels between are the sampler's affair. At 256 pixels a step of
# Stable Diffusion 1.5 takes 2 s, at 512 over 10.
IMAGE_STEPS, GUIDANCE = 12, 5.0
MAX_PARITY_PIXELS = 256
TIMESTEP = 500.0
# Difference that is let through: a share of the largest number in the reference; of an image, grey levels, the largest
# and on average. Each is a few times the most that was measured on the built-in model with and without a ControlNet
# (benchmarks/sampler.py shows it), on a small random one and, of text and prediction, on Stable Diffusion 1.5 with
# random weights. Measured were, in the order below, of
# fp32: 4e-7, 1e-6, 2.5e-5, 1 level, 0.0001 levels: sums in another order, which depends on the processor too.
# fp16: 7e-4, 8e-4, 4e-4, 1 level, 0.013 levels.
# int8: 1e-2, 1e-2, 1.1e-2, 8 levels, 0.6 levels: more is a picture of its own, and --precision fp16 the better choice.
LIMITS: dict[Precision, dict[str, float]] = {
    "fp32": {"text": 1e-5, "prediction": 1e-5, "latents": 1e-4, "image_levels": 2, "image_levels_mean": 0.05},
    "fp16": {"text": 3e-3, "prediction": 3e-3, "latents": 5e-3, "image_levels": 4, "image_levels_mean": 0.25},
    "int8": {"text": 3e-2, "prediction": 3e-2, "latents": 4e-2, "image_levels": 24, "image_levels_mean": 2},
}


@dataclass(frozen=True)
class Parity:
    """What was measured: the largest absolute differences, and those that are let through, by what is compared."""

    errors: Mapping[str, float | None]
    limits: Mapping[str, float | None]

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
    predictor: TorchPredictor,
    source: Source,
    schedule: NoiseSchedule,
    tokens: Mapping[str, Array],
    prompt: str,
    palette: Sequence[Mapping[str, Any]],
) -> dict[str, Array]:
    """Return the content of parity.npz: inputs drawn from a fixed seed, and what torch makes of them.

    palette: the manifest's, of a ControlNet: each class is a square in the mask. tokens: of "prompt" and of the "empty"
    one, [1, L] each.
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
    if palette:
        mask = example_mask(len(palette), side * pixels)
        found["hint"] = hints_of(mask, palette)
        found["prediction_with_control"] = predictor.predict(*inputs, found["hint"])
        found["image_mask"] = mask
    found |= {
        "image_prompt": np.array(prompt),
        "noise": noise,
        "image_steps": np.array(IMAGE_STEPS),
        "image_guidance": np.array(GUIDANCE, np.float64),
    }
    return found | drawn(predictor, schedule, found, tokens)


def measure(folder: Path, name: str) -> Parity:
    """Return how far the bundle in a folder is from its references, as its own sampler finds.

    Raises: ModelError if the sampler refuses it; `name` is what the model is called.
    """
    try:
        with open_bundle(folder) as bundle:
            checks = run_selftest(bundle)
            limits: Mapping[str, float | None] = bundle.manifest.values["parity"]["limits"]
    except SamplerError as error:
        raise ModelError(f"{name}: the sampler cannot use what was exported ({error}); nothing was written") from error
    found = {check.name: check.error for check in checks}
    return Parity({what: found.get(what) for what in limits}, limits)


def limits(found: Mapping[str, Array], precision: Precision) -> dict[str, float | None]:
    """Return the largest differences that are let through."""
    shares = LIMITS[precision]
    largest = {"latents": "image_latents"}
    result: dict[str, float | None] = {}
    for key in ("text", "prediction", "prediction_with_control", "latents"):
        name = largest.get(key, key)
        share = shares[key.removesuffix("_with_control")]
        result[key] = share * float(np.abs(found[name]).max()) if name in found else None
    return result | {key: shares[key] for key in ("image_levels", "image_levels_mean")}


def drawn(
    predictor: TorchPredictor, schedule: NoiseSchedule, found: Mapping[str, Array], tokens: Mapping[str, Array]
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
