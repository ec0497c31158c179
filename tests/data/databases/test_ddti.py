"""The layout of DDTI is read as it is, and refused when it is another one."""

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.databases import Ddti, Row
from data.errors import DataError
from data.prepare import PrepareConfig, prepare
from tests.data.databases.fixtures import ddti
from tests.data.databases.made_by_rows import faults_of, mask_of, times

LAYOUT = "needed 1.xml, 1_1.jpg, 1_2.jpg: set root, or see `sonoshard databases ddti`"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ddti.write_ddti(tmp_path_factory.mktemp("ddti"))


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "DDTI"))


def rows_of(root: Path, workspace: Path) -> dict[str, Row]:
    return {row.id: row for row in Ddti(root=root).rows(workspace)}


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        rows_of(root, root.parent / "workspace")
    return str(refused.value)


def fault(root: Path) -> str:
    """Return why the images of the third patient, and no others, cannot be used."""
    faults = faults_of(rows_of(root, root.parent / "workspace").values())
    assert list(faults) == ["3_1", "3_2"]
    assert faults["3_1"] == faults["3_2"]
    return faults["3_1"]


def edit(root: Path, old: str, new: str) -> Path:
    report = root / "3.xml"
    assert old in report.read_text()
    report.write_text(report.read_text().replace(old, new))
    return report


def test_rows(written: Path, tmp_path: Path) -> None:
    rows = rows_of(written, tmp_path)
    assert list(rows)[:3] == ["1_1", "1_2", "2_1"]
    assert Counter(row.label for row in rows.values()) == {"benign": 4, "malignant": 10, "unknown": 2}
    third = rows["3_2"]
    assert third.prompts == ("Ultrasound image of a malignant thyroid nodule",)
    assert (third.organ, third.pathology, third.patient, third.split) == ("thyroid", "malignant", "3", None)
    assert third.mask_classes == {1: "thyroid nodule"}
    assert third.attributes == {
        "finding": "malignant thyroid nodule",
        "composition": "solid",
        "echogenicity": "hypoechogenicity",
        "margins": "well defined",
        "calcifications": "none",
        "tirads": "4a",
    }


def test_without_tirads(written: Path, tmp_path: Path) -> None:
    row = rows_of(written, tmp_path)["7_1"]
    assert (row.label, row.pathology, "tirads" in row.attributes) == ("unknown", None, False)
    assert row.prompts == ("Ultrasound image of a thyroid nodule",)


def test_polygons_are_filled(written: Path, tmp_path: Path) -> None:
    for row in rows_of(written, tmp_path).values():
        patient, number = (int(part) for part in row.id.split("_"))
        if row.id != ddti.NO_MARK:
            true, read = ddti.mask(patient, number), mask_of(row) == 1
            assert not (true & ~read).any()
            # Where a row is much longer than the next, the edge between their ends lies outside of both.
            assert np.count_nonzero(read & ~true) < 0.15 * np.count_nonzero(true), row.id


def test_an_image_without_a_mark_has_no_mask(written: Path, tmp_path: Path) -> None:
    row = rows_of(written, tmp_path)[ddti.NO_MARK]
    assert (row.masks, row.mask_classes) == ((), {})


def test_masks_are_made_once_and_after_a_change(root: Path, tmp_path: Path) -> None:
    rows_of(root, tmp_path / "workspace")
    before = times(tmp_path / "workspace")
    rows_of(root, tmp_path / "workspace")
    assert len(before) == 15
    assert times(tmp_path / "workspace") == before
    edit(root, "</case>", " </case>")
    rows_of(root, tmp_path / "workspace")
    changed = {path.name for path, time in times(tmp_path / "workspace").items() if time != before[path]}
    assert changed == {"3_1_mask.png", "3_2_mask.png"}


def test_another_layout(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    assert refusal(tmp_path) == f"ddti: {tmp_path} has no '1.xml' with '1_1.jpg' (found image/); {LAYOUT}"


def test_an_image_without_findings(root: Path) -> None:
    (root / "3.xml").unlink()
    message = refusal(root)
    assert message in [f"ddti: {root}/3_{n}.jpg has no findings; needed 3.xml beside it" for n in (1, 2)]


def test_an_image_with_another_name(root: Path) -> None:
    stray = (root / "3_1.jpg").rename(root / "3-1.jpg")
    assert refusal(root) == f"ddti: {stray} is not named like '1_1.jpg'"


def test_a_mark_without_an_image(root: Path) -> None:
    (root / "3_2.jpg").unlink()
    message = f"ddti: {root}/3.xml marks image 2; needed 3_2.jpg beside it: copy it anew"
    assert refusal(root) == message


def test_unknown_tirads(root: Path) -> None:
    report = edit(root, "<tirads>4a", "<tirads>9")
    assert refusal(root) == f"ddti: {report} has tirads '9'; known are 2, 3, 4a, 4b, 4c, 5 and nothing"


def test_a_damaged_xml(root: Path) -> None:
    report = edit(root, "</case>", "")
    assert fault(root).startswith(f"ddti: {report} cannot be read (no element found")
    assert fault(root).endswith("; needed XML with JSON polygons: copy it anew")


@pytest.mark.parametrize(("old", "new"), [('[{"points"', '[{"points'), ('"points"', '"dots"'), ('"x"', '"z"')])
def test_damaged_polygons(root: Path, old: str, new: str) -> None:
    report = edit(root, old, new)
    assert fault(root).startswith(f"ddti: {report} cannot be read (")


def test_a_corner_that_is_nowhere(root: Path) -> None:
    report = root / "3.xml"
    report.write_text(re.sub(r'"x": ?[0-9.]+', '"x": NaN', report.read_text(), count=1))
    assert fault(root) == (
        f"ddti: {report} cannot be read (a corner is not finite); needed XML with JSON polygons: copy it anew"
    )


def test_a_damaged_image_is_a_fault_of_its_own(root: Path) -> None:
    image = root / "3_1.jpg"
    image.write_bytes(b"<html>")
    faults = faults_of(rows_of(root, root.parent / "workspace").values())
    assert faults == {"3_1": f"{image} cannot be decoded: no PNG, JPEG, BMP or TIFF"}


def test_a_damaged_xml_is_skipped_with_its_images_whatever_the_prompts(root: Path) -> None:
    edit(root, "</case>", "")
    config = PrepareConfig(on_undecodable="skip")
    database = Ddti(root=root, prompts=("{finding} on the {organ}",))
    report = prepare({"ddti": database}, config, root.parent / "manifest.parquet", root.parent / "workspace")
    assert list(report.skipped) == ["ddti/3_1", "ddti/3_2"]
    assert report.num_images == 14


def test_extensions_may_be_in_any_case(root: Path) -> None:
    (root / "3_1.jpg").rename(root / "3_1.JPG")
    (root / "3.xml").rename(root / "3.XML")
    (root / "._4_1.jpg").touch()
    assert len(rows_of(root, root.parent / "workspace")) == 16


@pytest.mark.parametrize("name", ["3_1.JPG", "03_1.jpg", "3_01.jpg"])
def test_two_images_of_a_number(root: Path, name: str) -> None:
    shutil.copy(root / "3_1.jpg", root / name)
    first, second = sorted((root / "3_1.jpg", root / name))
    assert refusal(root) == f"ddti: {first} and {second} have one number; needed one image of it: remove the other"


def test_two_xml_files_of_a_number(root: Path) -> None:
    shutil.copy(root / "3.xml", root / "03.xml")
    message = f"ddti: {root}/03.xml and {root}/3.xml have one number; needed one file of it: remove the other"
    assert refusal(root) == message


def test_a_superscript_is_no_number(root: Path) -> None:
    shutil.copy(root / "3.xml", root / "\u00b2.xml")
    assert len(rows_of(root, root.parent / "workspace")) == 16
    shutil.copy(root / "3_1.jpg", root / "3_\u00b2.jpg")
    assert refusal(root) == f"ddti: {root}/3_\u00b2.jpg is not named like '1_1.jpg'"
