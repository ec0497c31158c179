"""DDTI: thyroid nodules, one XML a patient with findings and polygons."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal
from xml.etree import ElementTree

from data.databases.base import About, FolderDatabase, Row, some_names
from data.databases.derived import Derived, derived_png, first_fault
from data.databases.polygon import Polygon, fill_polygons
from data.errors import DataError
from data.images import decode

# The usual rule: the first group is under 5 % likely to be cancer, and is not biopsied.
PATHOLOGY = {"2": "benign", "3": "benign", "4a": "malignant", "4b": "malignant", "4c": "malignant", "5": "malignant"}
FINDINGS = ("composition", "echogenicity", "margins", "calcifications", "tirads")
WORDS = {"non": "none"}


class Ddti(FolderDatabase):
    """The folder with the XML files and the images beside them."""

    about: ClassVar[About] = About(
        title="DDTI, Digital Database of Thyroid Ultrasound Images",
        layout=("1.xml", "1_1.jpg", "1_2.jpg"),
        labels="benign: TI-RADS 2 and 3; malignant: 4a, 4b, 4c and 5; unknown: none given",
        masks="thyroid nodule, filled from the XML's polygons; none for an image without a mark",
        patients="the XML's number",
        licence="unclear",
        citation="Pedraza et al. 2015, doi:10.1117/12.2073532",
        faults=(
            "the label is a radiologist's suspicion, not histology: others put TI-RADS 4a with benign",
            "some polygons lack corners (github.com/ImprintLab/MedSegDiff/issues/11); below three, one is left out",
            "about 480 images of 560x360; copies with ready masks (1.PNG) have another layout and are refused",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = ("Ultrasound image of a {finding}",)
    attributes: ClassVar[tuple[str, ...] | None] = ("finding", *FINDINGS)
    needed: ClassVar[tuple[str, ...]] = ()

    kind: Literal["ddti"] = "ddti"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield the images by patient and number; those of one patient share the XML's findings."""
        self.check_layout()
        reports = self._reports()
        images = self._images(reports)
        for patient, numbered in sorted(images.items()):
            try:
                words, polygons = _read(reports[patient])
            except DataError as error:
                yield from (self._faulty(patient, image, str(error)) for _, image in sorted(numbered.items()))
            else:
                yield from self._patient(patient, reports[patient], words, polygons, numbered, workspace)

    def _patient(
        self,
        patient: int,
        report: Path,
        words: dict[str, str],
        polygons: Mapping[int, list[Polygon]],
        images: Mapping[int, Path],
        workspace: Path,
    ) -> Iterator[Row]:
        """Yield a patient's images. Raises: DataError if the report has an unknown TI-RADS or marks another image."""
        if words.get("tirads", "2") not in PATHOLOGY:
            known = ", ".join(PATHOLOGY)
            raise DataError(f"ddti: {report} has tirads '{words['tirads']}'; known are {known} and nothing")
        if alone := sorted(polygons.keys() - images.keys()):
            missing = f"{patient}_{alone[0]}.jpg"
            raise DataError(f"ddti: {report} marks image {alone[0]}; needed {missing} beside it: copy it anew")
        pathology = PATHOLOGY.get(words.get("tirads", ""))
        label = pathology or "unknown"
        attributes = words | {"finding": f"{pathology} thyroid nodule" if pathology else "thyroid nodule"}
        for number, image in sorted(images.items()):
            masks = [_mask(workspace, image, report, polygons[number])] if number in polygons else []
            yield Row(
                id=image.stem,
                image=image,
                prompts=self.fill_prompts(label=label, organ="thyroid", pathology=pathology, **attributes),
                label=label,
                masks=tuple(mask.path for mask in masks),
                mask_classes={1: "thyroid nodule"} if masks else {},
                organ="thyroid",
                pathology=pathology,
                attributes=attributes,
                patient=str(patient),
                licence=self.about.licence,
                fault=first_fault(*masks),
            )

    def _faulty(self, patient: int, image: Path, fault: str) -> Row:
        """Return the row of an image whose patient's XML file is damaged, so that no more is known of it."""
        return Row(id=image.stem, image=image, prompts=(), label="unknown", patient=str(patient), fault=fault)

    def _reports(self) -> dict[int, Path]:
        """Return the XML files by the patient's number."""
        reports: dict[int, Path] = {}
        for path in _files(self.root, (".xml",)):
            if re.fullmatch("[0-9]+", path.stem) and (other := reports.setdefault(int(path.stem), path)) != path:
                raise DataError(f"ddti: {other} and {path} have one number; needed one file of it: remove the other")
        return reports

    def _images(self, reports: Collection[int]) -> dict[int, dict[int, Path]]:
        """Return the images by the patient's and their own number; a patient of an XML file may have none."""
        images: dict[int, dict[int, Path]] = {patient: {} for patient in reports}
        for path in _files(self.root, (".jpg", ".jpeg")):
            match = re.fullmatch("([0-9]+)_([0-9]+)", path.stem)
            if match is None:
                raise DataError(f"ddti: {path} is not named like '1_1.jpg'")
            if int(match[1]) not in images:
                raise DataError(f"ddti: {path} has no findings; needed {match[1]}.xml beside it")
            if (other := images[int(match[1])].setdefault(int(match[2]), path)) != path:
                raise DataError(f"ddti: {other} and {path} have one number; needed one image of it: remove the other")
        if not any(images.values()):
            raise self.error(f"{self.root} has no '1.xml' with '1_1.jpg' (found {some_names(self.root)})")
        return images


def _files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files with one of the extensions, in any case, by name; hidden ones are left out."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in paths if path.suffix.lower() in suffixes)


def _read(report: Path) -> tuple[dict[str, str], dict[int, list[Polygon]]]:
    """Return what an XML file finds, in lower-case words, and its polygons by the number of the image."""
    words: dict[str, str] = {}
    polygons: dict[int, list[Polygon]] = defaultdict(list)
    try:
        case = ElementTree.parse(report).getroot()
        for name in FINDINGS:
            if word := (case.findtext(name) or "").strip().lower():
                words[name] = WORDS.get(word, word)
        for mark in case.iter("mark"):
            for region in json.loads((mark.findtext("svg") or "").strip() or "[]"):
                corners = [(float(point["x"]), float(point["y"])) for point in region["points"]]
                if not all(map(math.isfinite, chain.from_iterable(corners))):
                    raise ValueError("a corner is not finite")
                if len(corners) >= 3:
                    polygons[int(mark.findtext("image") or "")].append(corners)
    except (ElementTree.ParseError, OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"ddti: {report} cannot be read ({error}); needed XML with JSON polygons: copy it anew"
        ) from error
    return words, dict(polygons)


def _mask(workspace: Path, image: Path, report: Path, polygons: list[Polygon]) -> Derived:
    return derived_png(
        workspace / f"{image.stem}_mask.png",
        [report, image],
        lambda: fill_polygons(polygons, *decode(image)[0].size),
    )
