"""The layout of BUS-UCLM is read as it is, and refused when it is another one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.databases import BusUclm, Row
from data.errors import DataError
from data.prepare import PrepareConfig, prepare
from tests.data.databases.fixtures.bus_uclm import SEED, write_bus_uclm
from tests.data.databases.fixtures.pictures import lesion, pictures
from tests.data.databases.fixtures.row_mask import row_mask
from tests.data.databases.made_by_rows import faults_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bus_uclm(tmp_path)


def rows_of(root: Path) -> dict[str, Row]:
    return {row.id: row for row in BusUclm(root=root).rows(root.parent / "workspace")}


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        rows_of(root)
    return str(refused.value)


def in_table(root: Path, old: str, new: str) -> Path:
    table = root / "INFO.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    return table


def test_rows_are_frames_of_patients(root: Path) -> None:
    rows = rows_of(root)
    assert Counter(row.label for row in rows.values()) == {"normal": 6, "benign": 6, "malignant": 6}
    assert list(rows)[:3] == ["ALWI_000", "ALWI_001", "ANAT_000"]
    assert Counter(row.patient for row in rows.values())["ALWI"] == 2
    assert len({row.patient for row in rows.values()}) == 9
    first = rows["ANAT_000"]
    assert first.prompts == ("Ultrasound image of benign breast",)
    assert (first.organ, first.pathology, first.patient, first.split) == ("breast", "benign", "ANAT", None)


def test_doppler_marks_and_combined_are_flags(root: Path) -> None:
    flags = {id_: row.flags for id_, row in rows_of(root).items() if row.flags}
    assert flags == {"ANAT_000": ("doppler",), "BEGI_001": ("marks",), "CAMA_000": ("marks", "combined")}


def test_green_and_red_are_lesions(root: Path) -> None:
    rows = list(rows_of(root).values())
    for row, made in zip(rows, pictures([row.label for row in rows], SEED), strict=True):
        expected = lesion(made) if row.label != "normal" else np.zeros_like(lesion(made))
        assert np.array_equal(row_mask(row), expected)


def test_a_mask_that_was_a_jpeg_is_read(root: Path) -> None:
    path = root / "masks" / "JOPA_000.png"
    exact = row_mask(rows_of(root)["JOPA_000"])
    with Image.open(path) as mask:
        mask.save(root / "noisy.jpg", quality=60)
    with Image.open(root / "noisy.jpg") as noisy:
        noisy.save(path)
    row = rows_of(root)["JOPA_000"]
    # Colour is stored at half the size in JPEG: 0.33 % of the pixels changed, all on the outline.
    assert (row_mask(row) != exact).mean() < 0.005
    assert (exact.any(), row.flags) == (True, ())


def test_a_mask_of_the_other_colour_is_flagged(root: Path) -> None:
    in_table(root, "ANAT_000.png;Benign", "ANAT_000.png;Malignant")
    in_table(root, "ALWI_000.png;Normal", "ALWI_000.png;Benign")
    rows = rows_of(root)
    assert rows["ANAT_000"].flags == ("doppler", "contradictory")
    assert rows["ALWI_000"].flags == ("contradictory",)
    assert rows["ALWI_001"].flags == ()


def test_a_broken_mask_is_left_for_prepare_to_find(root: Path) -> None:
    broken = root / "masks" / "ANAT_000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = PrepareConfig(on_undecodable="skip", validation_fraction=0.2, test_fraction=0.2)
    report = prepare({"uclm": BusUclm(root=root)}, config, root.parent / "manifest.parquet", root.parent / "workspace")
    assert list(report.skipped) == ["uclm/ANAT_000"]
    assert report.num_images == 17


def test_a_mask_in_other_colours(root: Path) -> None:
    path = root / "masks" / "ANAT_000.png"
    Image.new("RGB", (72, 72), (250, 250, 250)).save(path)
    message = (
        f"{path} has pixels of the colour (250, 250, 250), needed those near (0, 0, 0), (0, 255, 0), (255, 0, 0): "
        "is it a mask?"
    )
    assert faults_of(rows_of(root).values()) == {"ANAT_000": message}


def test_another_label(root: Path) -> None:
    table = in_table(root, "ANAT_000.png;Benign", "ANAT_000.png;Cyst")
    assert refusal(root) == f"{table}: Label of ANAT_000 is 'Cyst', needed one of: normal, benign, malignant"


def test_another_flag(root: Path) -> None:
    table = in_table(root, "ANAT_000.png;Benign;Yes", "ANAT_000.png;Benign;maybe")
    assert refusal(root) == f"{table}: Doppler of ANAT_000 is 'maybe', needed one of: yes, true, 1, no, false, 0"


def test_a_name_without_a_patient(root: Path) -> None:
    table = in_table(root, "ANAT_000.png", "000.png")
    assert refusal(root) == f"{table} has the Image '000.png', needed the like of ALWI_000: patient, _, number"


def test_a_table_with_commas(root: Path) -> None:
    table = root / "INFO.csv"
    table.write_text(table.read_text().replace(";", ","))
    assert refusal(root) == f"{table} lacks the column Image: its cells seem to be separated by ',', needed ';'"


def test_a_missing_mask(root: Path) -> None:
    (root / "masks" / "ALWI_000.png").unlink()
    assert refusal(root) == (
        f"{root}/masks lacks ALWI_000, which {root}/INFO.csv needs (1 of 18 are missing): unpack the download again"
    )


def test_an_image_without_a_row(root: Path) -> None:
    table = in_table(root, "ALWI_001.png;Normal;No;No;No\n", "")
    assert refusal(root) == f"{root}/images/ALWI_001.png has no row in {table}: add one, or remove the file"
