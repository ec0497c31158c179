"""A generated image as a PNG that says what it is and how it was drawn."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sampler.draw import Settings, Wish
from sampler.manifest import Manifest

GENERATED = "Generated images. Not for diagnosis."
SIMULATED = "The model has seen simulated images only."


def picture_bytes(image_HW3: NDArray[np.uint8], wish: Wish, settings: Settings, manifest: Manifest, mask: str) -> bytes:
    """Return a PNG whose text chunks hold the settings. mask: the name of the mask's file, or ""."""
    info = PngInfo()
    for key, value in facts(wish, settings, manifest, mask).items():
        info.add_itxt(key, value)
    content = io.BytesIO()
    Image.fromarray(image_HW3).save(content, "PNG", pnginfo=info)
    return content.getvalue()


def facts(wish: Wish, settings: Settings, manifest: Manifest, mask: str) -> dict[str, str]:
    """Return what an image's file says of it; with the bundle, all that is needed to draw it again."""
    told = {
        "generated": f"yes. {GENERATED}",
        "prompt": wish.prompt,
        "negative_prompt": wish.negative,
        "seed": str(wish.seed),
        "mask": mask,
        "sampler": settings.sampler,
        "steps": str(settings.steps),
        "guidance": repr(settings.guidance),
        "guidance_rescale": repr(settings.guidance_rescale),
        "bundle": manifest.name,
        "bundle_sha256": manifest.sha256,
        "Software": "SonoShard sampler",
    }
    return told | ({"simulated": f"yes. {SIMULATED}"} if manifest.is_simulated else {})


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, also when the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
