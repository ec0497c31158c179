"""Run a bundle's parity.npz again: does this machine give what torch gave when the bundle was exported?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampler.bundle import Bundle
from sampler.draw import Drawer, Settings, Wish
from sampler.errors import SamplerError


@dataclass(frozen=True)
class Check:
    """The largest difference to torch of one quantity (of "..._mean" the mean one), and the limit of the bundle."""

    name: str
    error: float
    limit: float

    @property
    def is_kept(self) -> bool:
        """Whether the error is within the limit; what is not a number is not."""
        return self.error <= self.limit


def run_selftest(bundle: Bundle) -> list[Check]:
    """Return what was found for each quantity in parity.npz. Raises: SamplerError if the file lacks what is needed."""
    parity = bundle.manifest.values["parity"]
    path = bundle.path(parity["file"])
    try:
        with np.load(path, allow_pickle=False) as opened:
            known = {name: opened[name] for name in opened.files}
        errors = _errors(Drawer(bundle), known)
        return [Check(name, error, float(parity["limits"][name])) for name, error in errors.items()]
    except (KeyError, OSError) as error:
        raise SamplerError(f"{path} lacks what a selftest needs ({error}); export the model again") from error


def _errors(drawer: Drawer, known: dict[str, NDArray[np.generic]]) -> dict[str, float]:
    text = drawer.networks.run("text_encoder", {"tokens": known["tokens"]})["text"]
    errors = {"text": _largest(text, known["text"])}
    timestep = float(np.asarray(known["timestep"], np.float64).ravel()[0])
    latents, embedded = known["latents"].astype(np.float32), known["text"].astype(np.float32)
    errors["prediction"] = _largest(drawer.predict(latents, timestep, embedded, None), known["prediction"])
    if "prediction_with_control" in known:
        hint = drawer.embedded_hint(known["hint"].astype(np.float32))
        steered = drawer.predict(latents, timestep, embedded, hint)
        errors["prediction_with_control"] = _largest(steered, known["prediction_with_control"])
    mask = known["image_mask"].astype(np.uint8) if "image_mask" in known else None
    wish = Wish(str(known["image_prompt"].ravel()[0]), "", 0, mask)
    settings = Settings(
        "dpmsolver++", int(known["image_steps"].ravel()[0]), float(known["image_guidance"].ravel()[0]), 0
    )
    found = drawer.denoise(known["noise"].astype(np.float32), [wish], settings)
    errors["latents"] = _largest(found, known["image_latents"])
    image = _difference(drawer.decode(found)[0], known["image"])
    return errors | {"image_levels": float(image.max()), "image_levels_mean": float(image.mean())}


def _largest(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    return float(_difference(found, expected).max())


def _difference(found: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
    if found.shape != expected.shape:
        raise SamplerError(f"parity.npz holds shape {expected.shape} where this bundle gives {found.shape}")
    return np.abs(found.astype(np.float64) - expected.astype(np.float64))


def table(checks: list[Check]) -> str:
    """Return what was found, as a table."""
    lines = [f"{'difference to torch':<28} {'found':>12} {'limit':>12}"]
    for check in checks:
        verdict = "ok" if check.is_kept else "TOO LARGE"
        lines.append(f"{check.name.replace('_', ' '):<28} {check.error:>12.3g} {check.limit:>12.3g}  {verdict}")
    return "\n".join(lines)
