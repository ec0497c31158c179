"""MMOTU: ovarian tumours of eight kinds, named in lists that are the authors' split too."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from data.databases.base import About, FolderDatabase, Row
from data.databases.class_mask import class_mask, from_painted
from data.databases.known_value import known_value
from data.databases.named_files import named_files
from data.databases.table import read_text
from data.errors import DataError

# By their numbers in the lists.
LABELS = (
    "chocolate cyst",
    "serous cystadenoma",
    "teratoma",
    "theca cell tumor",
    "simple cyst",
    "normal ovary",
    "mucinous cystadenoma",
    "high-grade serous cystadenoma",
)
LISTS = {"train_cls.txt": "train", "val_cls.txt": "validation"}


class Mmotu(FolderDatabase):
    """`OTU_2d` as it is downloaded; the contrast images of `OTU_3d` are another matter."""

    about: ClassVar[About] = About(
        title="MMOTU, Multi-Modality Ovarian Tumor Ultrasound, its B-mode images",
        layout=("images/1.JPG", "annotations/1_binary.PNG", "train_cls.txt with lines like 1.JPG  0", "val_cls.txt"),
        labels=f"1,469: {', '.join(f'{number} {label}' for number, label in enumerate(LABELS))}",
        masks="what is painted in _binary.PNG, as a class of the label's name",
        patients="not told; the authors' split (1,000 and 469) is kept as train and validation: there is no test",
        licence="unclear: CC BY 4.0 at mirrors",
        citation="Zhao et al. 2022, arXiv:2207.06799",
        faults=(
            "the numbers of the classes are read as the order of the authors' code, as other loaders do; 5 is normal",
            "annotations/1.PNG, in a colour a class, and doubled 1_binary_binary.PNG are not read",
            "several images of one patient may be on both sides of the authors' split",
            "some images are colour Doppler, or have callipers and text",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = (
        "Ultrasound image of the ovary, {label}",
        "Ovarian ultrasound, {label}",
    )
    needed: ClassVar[tuple[str, ...]] = ("images/", "annotations/", *LISTS)

    kind: Literal["mmotu"] = "mmotu"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield images in the order of the lists; their masks are made in `workspace`."""
        self.check_layout()
        listed = [entry for name in LISTS for entry in self._listed(name)]
        names = [name for name, _, _ in listed]
        images = named_files(self.root / "images", names, self.root / "*_cls.txt")
        mask_names = [f"{name}_binary" for name in names]
        masks = named_files(self.root / "annotations", mask_names, self.root / "*_cls.txt", only=r"\d+_binary")
        for name, label, split in listed:
            mask = class_mask(workspace / "masks" / f"{name}.png", masks[f"{name}_binary"], from_painted)
            pathology = "normal" if label == "normal ovary" else label
            yield Row(
                id=name,
                image=images[name],
                prompts=self.fill_prompts(label=label, organ="ovary", pathology=pathology),
                label=label,
                masks=(mask.path,),
                mask_classes={1: label},
                organ="ovary",
                pathology=pathology,
                split=split,
                licence=self.about.licence,
                fault=mask.fault,
            )

    def _listed(self, name: str) -> Iterator[tuple[str, str, str]]:
        """Yield the images of a list: name without extension, label, split."""
        path = self.root / name
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                image, class_ = line.split()
            except ValueError:
                raise DataError(f"{path} has line {number} {line!r}, needed the like of '1.JPG  0'") from None
            numbers = [str(number) for number in range(len(LABELS))]
            yield (
                Path(image).stem,
                LABELS[int(known_value(class_, numbers, f"{path}: the class of {image}"))],
                LISTS[name],
            )
