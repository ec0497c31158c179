"""EchoNet-Dynamic: the two traced frames of each video of the heart."""

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data.databases.base import About, FolderDatabase, Row
from data.databases.derived import Derived, derived_png, first_fault
from data.databases.ejection_fraction import ejection_fraction_words
from data.databases.polygon import Polygon, area, fill_polygons
from data.databases.table import read_rows
from data.databases.video import read_frame
from data.errors import DataError
from data.images import decode

TRACINGS = "VolumeTracings.csv"
COORDINATES = ("X1", "Y1", "X2", "Y2")
SPLITS = {"TRAIN": "train", "VAL": "validation", "TEST": "test"}


class Echonet(FolderDatabase):
    """`EchoNet-Dynamic` as it is downloaded."""

    about: ClassVar[About] = About(
        title="EchoNet-Dynamic, apical four-chamber videos",
        layout=("Videos/0X1A0A263B22CCD966.avi", "FileList.csv", TRACINGS),
        labels="four-chamber diastole, four-chamber systole: one frame each of 10,030 videos",
        masks="left ventricle (its cavity), between the traced lines",
        patients="one per video",
        licence="research use agreement, non-commercial",
        citation="Ouyang et al. 2020, doi:10.1038/s41586-020-2145-8",
        faults=(
            "a few videos have no tracings, or of one frame only: they are left out",
            "which frame is diastole is not told: the one of the larger tracing is",
            "some tracings cross themselves (github.com/echonet/dynamic/issues/20): they are filled as they are",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = (
        "A cardiac ultrasound image, in a {chambers} chamber view, at the end of {phase}",
    )
    attributes: ClassVar[tuple[str, ...] | None] = ("chambers", "phase", "ejection_fraction")
    needed: ClassVar[tuple[str, ...]] = ("Videos/", "FileList.csv", TRACINGS)

    kind: Literal["echonet"] = "echonet"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield two frames per traced video, as pictures that are made in the workspace."""
        self.check_layout()
        table = self.root / "FileList.csv"
        tracings = _tracings(self.root / TRACINGS)
        for listed in read_rows(table, ("FileName", "EF", "Split")):
            name = listed["FileName"].removesuffix(".avi")
            video = self.root / "Videos" / f"{name}.avi"
            if not video.is_file():
                raise DataError(f"echonet: {table} names {name}; needed {video}: copy it anew")
            if listed["Split"] not in SPLITS:
                raise DataError(f"echonet: {table} has Split '{listed['Split']}'; known are {', '.join(SPLITS)}")
            frames = tracings.get(name, {})
            if len(frames) < 2:
                continue
            by_area = sorted(frames, key=lambda number: area(frames[number]))
            for phase, number in (("diastole", by_area[-1]), ("systole", by_area[0])):
                label, id_ = f"four-chamber {phase}", f"{name}_{number:04d}"
                attributes = {
                    "chambers": "four",
                    "phase": phase,
                    "ejection_fraction": ejection_fraction_words(listed["EF"], table),
                }
                tracing = frames[number]
                image = derived_png(
                    workspace / f"{id_}.png", [video], partial(read_frame, video, number), also_from=[number, tracing]
                )
                mask = derived_png(
                    workspace / f"{id_}_mask.png",
                    [video],
                    partial(_mask, image, tracing),
                    also_from=[number, tracing],
                )
                yield Row(
                    id=id_,
                    image=image.path,
                    prompts=self.fill_prompts(label=label, organ="heart", view="four-chamber", **attributes),
                    label=label,
                    masks=(mask.path,),
                    mask_classes={1: "left ventricle"},
                    organ="heart",
                    view="four-chamber",
                    attributes=attributes,
                    patient=name,
                    split=SPLITS[listed["Split"]],
                    licence=self.about.licence,
                    fault=first_fault(image, mask),
                )


def _tracings(table: Path) -> dict[str, dict[int, Polygon]]:
    """Return the polygons by video and frame, from lines across the ventricle; a frame's first is its long axis."""
    lines: dict[str, dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in read_rows(table, ("FileName", *COORDINATES, "Frame")):
        try:
            line = [float(row[name]) for name in COORDINATES]
            if not all(map(math.isfinite, line)):
                raise ValueError(f"{', '.join(map(str, line))}")
            lines[row["FileName"].removesuffix(".avi")][int(row["Frame"])].append(line)
        except ValueError as error:
            raise DataError(
                f"echonet: {table} has, for {row['FileName']}, a cell that is no number: {error}"
            ) from error
    return {
        name: {frame: _between(across) for frame, (_, *across) in frames.items() if len(across) >= 2}
        for name, frames in lines.items()
    }


def _between(lines: list[list[float]]) -> Polygon:
    """Return the polygon down one end of the lines and up the other."""
    return [(x, y) for x, y, _, _ in lines] + [(x, y) for _, _, x, y in reversed(lines)]


def _mask(image: Derived, polygon: Polygon) -> NDArray[np.uint8]:
    if image.fault is not None:
        raise DataError(image.fault)
    return fill_polygons([polygon], *decode(image.path)[0].size)
