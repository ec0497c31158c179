"""TN3K: thyroid nodules, split by their authors; TG3K: the gland without nodules, beside it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from data.databases.base import About, FolderDatabase, Row
from data.databases.table import read_lines
from data.errors import DataError

LABELS = {"0": "benign", "1": "malignant"}


class Tn3k(FolderDatabase):
    """The folder that holds `tn3k`, and may hold `tg3k`."""

    about: ClassVar[About] = About(
        title="TN3K, thyroid nodules; with TG3K, thyroid glands, if asked for",
        layout=(
            "tn3k/trainval-image/0000.jpg",
            "tn3k/trainval-mask/0000.jpg",
            "tn3k/label4trainval.csv",
            "tn3k/{test-image,test-mask,label4test.csv}",
            "tg3k/{thyroid-image,thyroid-mask}/0000.jpg (with gland)",
        ),
        labels="trainval: benign 1,905, malignant 974; test: 614 (0 benign, 1 malignant); TG3K: thyroid 3,585",
        masks="thyroid nodule; TG3K: thyroid gland (JPEG, cut at 128)",
        patients="not told (3,493 images of 2,421): near-duplicates share a split",
        licence="unclear: MIT on one mirror",
        citation="Gong et al. 2023, doi:10.1016/j.compbiomed.2022.106389",
        faults=(
            "some downloads lack the CSV files; the authors point to github.com/chenghui-666/ACL for them",
            "TG3K is frames of 16 videos and does not tell which: neighbours look alike, so none of them is for test",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = ("Ultrasound image of a {finding}",)
    attributes: ClassVar[tuple[str, ...] | None] = ("finding",)
    needed: ClassVar[tuple[str, ...]] = tuple(
        f"tn3k/{name}" for p in ("trainval", "test") for name in (f"{p}-image/", f"{p}-mask/", f"label4{p}.csv")
    )

    kind: Literal["tn3k"] = "tn3k"
    gland: bool = Field(False, description="Also give the images of TG3K, from `tg3k` beside `tn3k`; label: thyroid.")

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield TN3K's images by part and number, then TG3K's if `gland` says so."""
        self.check_layout()
        for part, split in (("trainval", "train"), ("test", "test")):
            labels = _labels(self.root / f"tn3k/label4{part}.csv")
            for image, mask in self._pairs(f"tn3k/{part}-image", f"tn3k/{part}-mask", labels):
                yield self._row(f"{part}/{image.stem}", image, mask, labels[image.name], "thyroid nodule", split)
        if self.gland:
            for image, mask in self._pairs("tg3k/thyroid-image", "tg3k/thyroid-mask"):
                yield self._row(f"tg3k/{image.stem}", image, mask, "thyroid", "thyroid gland", "train")

    def _pairs(self, images: str, masks: str, labels: Iterable[str] | None = None) -> list[tuple[Path, Path]]:
        """Return the images of a folder with their masks, by name; the labels' names are the same."""
        names = {folder: {path.name for path in (self.root / folder).glob("*.jpg")} for folder in (images, masks)}
        names |= {"the CSV of labels": set(labels)} if labels is not None else {}
        if not names[images]:
            raise self.error(f"{self.root / images} has no '0000.jpg'")
        for place, others in names.items():
            if odd := sorted(names[images] ^ others):
                has, lacks = (images, place) if odd[0] in names[images] else (place, images)
                raise DataError(f"tn3k: {odd[0]} is in {has}, but not in {lacks}; needed in both: copy it anew")
        return [(self.root / images / name, self.root / masks / name) for name in sorted(names[images])]

    def _row(self, id_: str, image: Path, mask: Path, label: str, mask_class: str, split: str) -> Row:
        pathology = label if label in LABELS.values() else None
        finding = f"{pathology} thyroid nodule" if pathology else "thyroid"
        return Row(
            id=id_,
            image=image,
            prompts=self.fill_prompts(label=label, organ="thyroid", pathology=pathology, finding=finding),
            label=label,
            masks=(mask,),
            mask_classes={255: mask_class},
            organ="thyroid",
            pathology=pathology,
            attributes={"finding": finding},
            split=split,
            licence=self.about.licence,
        )


def _labels(table: Path) -> dict[str, str]:
    """Return the labels by file name of a CSV of names and 0 or 1; it has no header, but one does not harm."""
    labels: dict[str, str] = {}
    for number, cells in read_lines(table):
        if number == 1 and len(cells) == 2 and "." not in cells[0]:
            continue
        if len(cells) != 2 or cells[1] not in LABELS:
            raise DataError(f"tn3k: {table} line {number} is '{','.join(cells)}'; needed a name and 0 or 1: 0000.jpg,0")
        name, label = cells[0], LABELS[cells[1]]
        if labels.setdefault(name, label) != label:
            raise DataError(
                f"tn3k: {table} line {number} says that {name} is {label}, a line above that it is {labels[name]}; "
                "needed one label: copy it anew"
            )
    return labels
