"""The built-in database: simulated B-mode images, made when they are asked for. No evidence of clinical realism."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, model_validator

from data.databases.base import About, Database, Row
from data.durable import replacing

ORGANS = {"breast": "breast", "cardiac": "heart", "fetal": "fetal head"}
# Neighbouring indices count as one patient, so that splitting by patient is at work here too.
IMAGES_PER_PATIENT = 2
# The PNG text chunk with what the simulator said about an image: no third file an image.
CHUNK = "sonoshard"


class SimulatedDatabase(Database):
    """Images of `data.simulate` as PNG files, a pure function of these settings and the index."""

    about: ClassVar[About] = About(
        title="Simulated B-mode images, made when they are asked for; no evidence of clinical realism",
        layout=("nothing on disk: data/simulate makes the images by preset, seed and index",),
        labels="breast: benign, malignant, normal; cardiac: end-systole, end-diastole; fetal: the plane",
        masks="breast: lesion; cardiac: left ventricle, myocardium, left atrium; fetal: head",
        patients=f"{IMAGES_PER_PATIENT} neighbouring indices count as one",
        licence="Apache-2.0",
        citation="this repository",
    )

    kind: Literal["simulated"] = "simulated"
    preset: Literal["breast", "cardiac", "fetal"] = Field("breast", description="The organ that is simulated.")
    count: int = Field(gt=0, description="Images to make.")
    size: int = Field(256, ge=64, le=512, description="Width and height of an image, pixels.")
    seed: int = Field(0, ge=0, description="Seed of the simulator; index i of seed s is always the same image.")
    scanner: Literal["linear", "trapezoid"] = Field(
        "linear", description="The simulated vendor's format of a breast image; other presets have `linear` only."
    )

    @model_validator(mode="after")
    def _scanner_fits_preset(self) -> Self:
        if self.scanner != "linear" and self.preset != "breast":
            raise ValueError(f"scanner {self.scanner} with preset {self.preset}, needed linear: others are for breast")
        return self

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield the images 0 to count - 1, each made when it is not in the workspace yet."""
        from data.simulate import MASK_CLASSES

        folder = workspace / f"{self.preset}-{self.scanner}-{self.size}-seed{self.seed}"
        classes = {number: name for number, name in MASK_CLASSES[self.preset].items() if number != 0}
        for index in range(self.count):
            image, mask = folder / f"{index:06d}.png", folder / f"{index:06d}_mask.png"
            said = _stored_facts(image) or self._make(index, image, mask)
            pathology = said["label"] if self.preset == "breast" else None
            organ = ORGANS[self.preset]
            filled = self.fill_prompts(label=said["label"], organ=organ, pathology=pathology, view=said["view"])
            yield Row(
                id=f"{index:06d}",
                image=image,
                prompts=filled or (said["prompt"],),
                label=said["label"],
                masks=(mask,),
                mask_classes=classes,
                organ=organ,
                pathology=pathology,
                view=said["view"],
                patient=f"{index // IMAGES_PER_PATIENT:06d}",
                licence="Apache-2.0",
                flags=("simulated",),
            )

    def _make(self, index: int, image: Path, mask: Path) -> dict[str, Any]:
        """Write an image and, before it, its mask, so that an image which exists has one."""
        from data.simulate import simulate

        made = simulate(self.preset, self.seed, index, self.size, scanner=self.scanner)
        view = None if self.preset == "breast" else str(made.facts["subtype"])
        said = {"label": made.label, "prompt": made.prompt, "view": view}
        chunk = PngInfo()
        chunk.add_text(CHUNK, json.dumps(said))
        with replacing(mask) as path:
            Image.fromarray(made.mask).save(path, format="PNG")
        with replacing(image) as path:
            Image.fromarray(made.image).save(path, format="PNG", pnginfo=chunk)
        return said


def _stored_facts(image: Path) -> dict[str, Any] | None:
    """Return what the simulator said about an image when it was made; None if there is no such image."""
    if not image.is_file():
        return None
    with Image.open(image, formats=["PNG"]) as picture:
        said: dict[str, Any] = json.loads(picture.info[CHUNK])
    return said
