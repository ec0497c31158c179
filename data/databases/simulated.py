"""The built-in database: simulated B-mode images, made when they are asked for. No evidence of clinical realism."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, model_validator

from data.databases.base import About, Database, Row
from data.durable import replacing
from data.processes import num_cores, processes_on_all_cores

ORGANS = {"breast": "breast", "cardiac": "heart", "fetal": "fetal head"}
# Neighbouring indices count as one patient, so that splitting by patient is at work here too.
IMAGES_PER_PATIENT = 2
# So few images are made by the time that other processes have begun.
FEW_IMAGES = 64
IMAGES_AT_ONCE = 4  # that a process is given
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
        for index, said in enumerate(self._made(folder)):
            image, mask = _files(folder, index)
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

    def _made(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Yield what the simulator said about each image, once that image and its mask are in the folder."""
        missing = [index for index in range(self.count) if not _files(folder, index)[0].is_file()]
        with ExitStack() as held:
            made: Iterator[dict[str, Any]] = map(partial(self._make, folder), missing)
            if len(missing) >= FEW_IMAGES and num_cores() > 1:
                pool = held.enter_context(processes_on_all_cores())
                made = pool.map(partial(self._make, folder), missing, chunksize=IMAGES_AT_ONCE)
            are_missing = set(missing)
            for index in range(self.count):
                yield next(made) if index in are_missing else _stored_facts(_files(folder, index)[0])

    def _make(self, folder: Path, index: int) -> dict[str, Any]:
        """Write an image and, before it, its mask, so that an image which exists has one; return what it shows."""
        from data.simulate import simulate

        image, mask = _files(folder, index)
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


def _files(folder: Path, index: int) -> tuple[Path, Path]:
    """Return where an image lies, and its mask."""
    return folder / f"{index:06d}.png", folder / f"{index:06d}_mask.png"


def _stored_facts(image: Path) -> dict[str, Any]:
    """Return what the simulator said about an image when it was made."""
    with Image.open(image, formats=["PNG"]) as picture:
        said: dict[str, Any] = json.loads(picture.info[CHUNK])
    return said
