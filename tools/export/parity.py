"""Whether the files of a bundle compute what torch computes: references from torch, measured with onnxruntime."""

# B batch, C latent channels, h w latent height and width, H W image height and width, L prompt tokens, D text width

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.hints import hint_colours, hint_images
from launch.training_data import Training
from models.base import latent_shape
from models.errors import ModelError
from models.sampling import guided, make_solver
from models.schedule import NoiseSchedule
from tools.export.networks import Graph
from tools.export.source import Source
from tools.export.stored_weights import Precision, read_weights

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


class Predictor:
    """What draws an image, whoever computes it: arrays in and out, by the names of the graphs."""

    def __init__(self, run: Callable[[str, Mapping[str, Array]], dict[str, Array]]) -> None:
        """run: computes a graph's outputs from its inputs."""
        self.run = run

    def predict(self, latents: Array, timestep: Array, text: Array, hint: Array | None) -> Array:
        """Return the prediction of the UNet, with its ControlNet where there is a hint."""
        inputs = {"latents": latents, "timestep": timestep, "text": text}
        if hint is None:
            return self.run("unet", inputs)["prediction"]
        residuals = self.run("controlnet", inputs | {"hint": hint})
        return self.run("unet_with_control", inputs | residuals)["prediction"]


def torch_predictor(graphs: Mapping[str, Graph]) -> Predictor:
    """Return what computes with torch."""

    def run(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        graph = graphs[name]
        with torch.no_grad():
            found = graph.module(*(torch.from_numpy(np.array(inputs[key])) for key in graph.inputs))
        outputs = (found,) if isinstance(found, Tensor) else found
        return {key: output.numpy() for key, output in zip(graph.outputs, outputs, strict=True)}

    return Predictor(run)


class OnnxPredictor(Predictor):
    """Computes with onnxruntime from the written files; one network is open at a time, or all of an image's."""

    def __init__(self, folder: Path, graphs: Mapping[str, Mapping[str, str]], precision: Precision) -> None:
        """graphs: "file" and "weights" of each, relative to folder."""
        super().__init__(self._run)
        self._folder, self._graphs, self._precision = folder, graphs, precision
        self._sessions: dict[str, Any] = {}

    def _run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if name not in self._sessions:
            self._sessions[name] = self._session(name)
        session = self._sessions[name]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def _session(self, name: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        graph = self._graphs[name]
        if self._precision != "fp32":
            values = {
                key: onnxruntime.OrtValue.ortvalue_from_numpy(array)
                for key, array in read_weights(self._folder / graph["weights"])
            }
            options.add_external_initializers(list(values), list(values.values()))
        return onnxruntime.InferenceSession(self._folder / graph["file"], options, providers=["CPUExecutionProvider"])


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


def example_mask(num_classes: int, side: int) -> NDArray[np.uint8]:
    """Return a mask of background and a square of each other class, as far as they fit, [side, side] class numbers."""
    mask = np.zeros((side, side), np.uint8)
    per_row = max(1, int(np.ceil(np.sqrt(max(1, num_classes - 1)))))
    cell = side // per_row
    for number in range(1, num_classes):
        row, column = divmod(number - 1, per_row)
        top, left = row * cell + cell // 8, column * cell + cell // 8
        mask[top : top + 3 * cell // 4, left : left + 3 * cell // 4] = number
    return mask


def mask_palette(source: Source, training: Training) -> list[dict[str, Any]]:
    """Return number, name and colour of each class that a mask may hold; none without a ControlNet.

    Raises: ModelError if nobody wrote down what the colours of the ControlNet's hints mean.
    """
    if not source.has_controlnet:
        return []
    written = dict((source.record or {}).get("hint_colours") or {})
    written.pop("no hint", None)
    colours = hint_colours(training.palette) | written
    colours.pop("no hint", None)
    if not colours:
        raise ModelError(
            f"{source.name} has a ControlNet, and no sonoshard.json that says what the colours of its masks mean "
            "(hint_colours); a bundle would not know how to draw a mask: export another form, or write that file"
        )
    return [
        {"number": number, "name": name, "colour": list(colour)}
        for number, (name, colour) in enumerate(colours.items())
    ]
