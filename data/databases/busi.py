"""BUSI: breast ultrasound in one folder a class, masks beside the images.

Source: Al-Dhabyani et al. 2020 (doi:10.1016/j.dib.2019.104863). Its known faults (duplicates, lesions in two classes,
burned-in text) are listed by Pawlowska et al. 2023 (doi:10.1016/j.dib.2023.109247).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from data.databases.base import Database, Row, UserPath, some_names
from data.errors import DataError

LABELS = ("benign", "malignant", "normal")
LAYOUT = "benign/, malignant/ and normal/ with 'benign (1).png', 'benign (1)_mask.png' and so on"


class Busi(Database):
    """`Dataset_BUSI_with_GT` as it is downloaded: 437 benign, 210 malignant, 133 normal; no patients given."""

    default_prompts: ClassVar[tuple[str, ...]] = ("Ultrasound image of {label} breast",)

    kind: Literal["busi"] = "busi"
    root: UserPath = Field(description="The folder with benign/, malignant/ and normal/ in it.")

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield images by label and number; all masks of an image belong to it."""
        self._check_layout()
        for label in LABELS:
            images, masks = self._files(label)
            for number, image in sorted(images.items()):
                if number not in masks and label != "normal":
                    raise DataError(f"busi: {image} has no mask; needed {image.stem}_mask.png beside it")
                yield Row(
                    id=image.stem,
                    image=image,
                    prompts=self.fill_prompts(label=label, organ="breast", pathology=label),
                    label=label,
                    masks=tuple(sorted(masks[number])),
                    mask_classes={255: "lesion"} if masks[number] else {},
                    organ="breast",
                    pathology=label,
                    licence="unclear: mirrors differ",
                )

    def _check_layout(self) -> None:
        if not self.root.is_dir():
            raise DataError(f"busi: there is no folder {self.root}; needed one with {LAYOUT}: set root")
        missing = [label for label in LABELS if not (self.root / label).is_dir()]
        if missing:
            found = f"found {some_names(self.root)}"
            raise DataError(f"busi: {self.root} lacks {', '.join(missing)} ({found}); needed {LAYOUT}: set root")

    def _files(self, label: str) -> tuple[dict[int, Path], dict[int, list[Path]]]:
        """Return the images and masks of a label by the number in their names."""
        name = re.compile(rf"{label} \((\d+)\)(_mask(_\d+)?)?\.png")
        images: dict[int, Path] = {}
        masks: dict[int, list[Path]] = defaultdict(list)
        folder = self.root / label
        for path in folder.glob("*.png"):
            match = name.fullmatch(path.name)
            if match is None:
                raise DataError(f"busi: {path} is not named like '{label} (1).png' or '{label} (1)_mask.png'")
            if match[2]:
                masks[int(match[1])].append(path)
            else:
                images[int(match[1])] = path
        if not images:
            raise DataError(f"busi: {folder} has no '{label} (1).png' (found {some_names(folder)}); needed {LAYOUT}")
        if alone := sorted(masks.keys() - images.keys()):
            raise DataError(f"busi: {masks[alone[0]][0]} belongs to no image; needed '{label} ({alone[0]}).png'")
        return images, masks
