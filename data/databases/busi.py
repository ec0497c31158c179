"""BUSI: breast ultrasound in one folder per class, masks beside the images."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from data.databases.base import About, FolderDatabase, Row, some_names
from data.errors import DataError

LABELS = ("benign", "malignant", "normal")


class Busi(FolderDatabase):
    """`Dataset_BUSI_with_GT` as it is downloaded."""

    about: ClassVar[About] = About(
        title="BUSI, Breast Ultrasound Images Dataset",
        layout=("benign/benign (1).png", "benign/benign (1)_mask.png", "malignant/...", "normal/..."),
        labels="benign 437, malignant 210, normal 133 (the folder)",
        masks="lesion; several of one image are united",
        patients="not told: near-duplicates share a split",
        licence="unclear: mirrors differ",
        citation="Al-Dhabyani et al. 2020, doi:10.1016/j.dib.2019.104863",
        faults=(
            "235 duplicates and 8 lesions in both classes (Pawlowska et al. 2023, doi:10.1016/j.dib.2023.109247): "
            "see prepare.quality.rules",
            "about 70 images of the axilla, 295 with text, callipers or other overlays (same source)",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = ("Ultrasound image of {label} breast",)
    needed: ClassVar[tuple[str, ...]] = tuple(f"{label}/" for label in LABELS)

    kind: Literal["busi"] = "busi"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield images by label and number; all masks of an image belong to it."""
        self.check_layout()
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
                    licence=self.about.licence,
                )

    def _files(self, label: str) -> tuple[dict[int, Path], dict[int, list[Path]]]:
        """Return the images and masks of a label by the number in their names."""
        name = re.compile(rf"{label} \(([0-9]+)\)(_mask(_[0-9]+)?)?(?i:\.png)")
        images: dict[int, Path] = {}
        masks: dict[int, list[Path]] = defaultdict(list)
        folder = self.root / label
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() != ".png" or path.name.startswith("."):
                continue
            match = name.fullmatch(path.name)
            if match is None:
                raise DataError(f"busi: {path} is not named like '{label} (1).png' or '{label} (1)_mask.png'")
            if match[2]:
                masks[int(match[1])].append(path)
            elif (other := images.setdefault(int(match[1]), path)) != path:
                raise DataError(f"busi: {other} and {path} have one number; needed one image of it: remove the other")
        if not images:
            raise self.error(f"{folder} has no '{label} (1).png' (found {some_names(folder)})")
        if alone := sorted(masks.keys() - images.keys()):
            raise DataError(f"busi: {masks[alone[0]][0]} belongs to no image; needed '{label} ({alone[0]}).png'")
        return images, masks
