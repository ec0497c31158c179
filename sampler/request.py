"""What the page asks for, checked: nothing that comes over the network is taken as it is."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler.draw import Settings, Wish
from sampler.errors import SamplerError
from sampler.manifest import Manifest
from sampler.masks import read_mask
from sampler.noise import MAX_SEED
from sampler.solvers import SOLVERS

MAX_PROMPT = 2000
MAX_COUNT, MAX_STEPS, MAX_GUIDANCE = 16, 200, 50.0


def wishes_of(asked: Any, manifest: Manifest) -> tuple[list[Wish], Settings]:
    """Return the images and settings of a request's JSON. Raises: SamplerError."""
    if not isinstance(asked, dict):
        raise SamplerError("needed is a JSON object")
    prompt, negative = _text(asked, "prompt"), _text(asked, "negative")
    count = _number(asked, "count", 1, MAX_COUNT, whole=True)
    # JavaScript's whole numbers are exact up to here.
    seed = _number(asked, "seed", 0, min(MAX_SEED, 2**53 - 1) - MAX_COUNT, whole=True)
    settings = Settings(
        sampler=_text(asked, "sampler"),
        steps=int(_number(asked, "steps", 1, MAX_STEPS, whole=True)),
        guidance=float(_number(asked, "guidance", 1, MAX_GUIDANCE)),
        guidance_rescale=float(manifest.values["sampling"]["guidance_rescale"]),
    )
    if settings.sampler not in SOLVERS:
        raise SamplerError(f"there is no sampler {settings.sampler!r}; choose one of {', '.join(SOLVERS)}")
    mask_HW = mask_of(asked.get("mask"), manifest)
    return [Wish(prompt, negative, int(seed) + place, mask_HW) for place in range(int(count))], settings


def mask_of(encoded: Any, manifest: Manifest) -> NDArray[np.uint8] | None:
    """Return the class numbers of a PNG in base64, [H, W]; None of None. Raises: SamplerError."""
    if encoded is None:
        return None
    if not manifest.has_controlnet:
        raise SamplerError("the bundle has no ControlNet, so a mask cannot steer it")
    if not isinstance(encoded, str):
        raise SamplerError("the mask is no text in base64")
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise SamplerError("the mask is no text in base64") from error
    return read_mask(io.BytesIO(content), manifest.palette, manifest.resolution, name="the mask")


def _text(asked: Mapping[str, Any], key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str) or len(value) > MAX_PROMPT:
        raise SamplerError(f"{key} must be a text of at most {MAX_PROMPT} letters")
    return value


def _number(asked: Mapping[str, Any], key: str, least: float, most: float, *, whole: bool = False) -> float:
    value: Any = asked.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise SamplerError(f"{key} must be {kind} from {least:g} to {most:g}")
    return float(value) if not whole else int(value)
