"""Planted leaks and faults are caught, and nothing else is."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.databases import ManifestFile
from data.manifest import Manifest
from data.prepare import PrepareConfig, PrepareReport, prepare
from data.quality.area import bounding_box, image_area
from tests.data.quality.planted import (
    COPIES,
    lettered,
    picture,
    smaller,
    with_callipers,
    with_doppler,
    write_table,
)

NUM_SOURCES = 30


def run(database: ManifestFile, folder: Path, **settings: object) -> PrepareReport:
    # Splits of a third each: what is not tied is parted by chance two times in three.
    config = {"validation_fraction": 0.33, "test_fraction": 0.33, **settings}
    return prepare(
        {"d": database}, PrepareConfig.model_validate(config), folder / "manifest.parquet", folder / "images"
    )


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> ManifestFile:
    """Thirty images, of each a copy that is altered in one of six ways, and no word of patients."""
    folder = tmp_path_factory.mktemp("leaky")
    rows = []
    for index in range(NUM_SOURCES):
        kind = list(COPIES)[index % len(COPIES)]
        image, _ = picture(index)
        image.save(folder / f"{index}.png")
        COPIES[kind](image).save(folder / f"{index} {kind}.png")
        rows += [{"image": f"{index}.png"}, {"image": f"{index} {kind}.png"}]
    return write_table(folder, rows)


def splits_of_sources(folder: Path) -> dict[str, set[str | None]]:
    splits = defaultdict(set)
    for row in Manifest.read(folder / "manifest.parquet").rows:
        splits[row.image.stem.split(" ")[0]].add(row.split)
    return splits


def test_altered_and_mirrored_copies_share_a_split(leaky: ManifestFile, tmp_path: Path) -> None:
    report = run(leaky, tmp_path)
    assert {len(splits) for splits in splits_of_sources(tmp_path).values()} == {1}
    assert len({row.cluster for row in report.rows.values()}) == NUM_SOURCES, "and unlike images are not tied"
    assert report.num_faulty("near_duplicate") == 2 * NUM_SOURCES


def test_without_the_search_they_leak(leaky: ManifestFile, tmp_path: Path) -> None:
    """That the test above could fail."""
    run(leaky, tmp_path, quality={"near_duplicate_bits": 0})
    assert any(len(splits) > 1 for splits in splits_of_sources(tmp_path).values())


def test_dropped_copies_leave_the_best(leaky: ManifestFile, tmp_path: Path) -> None:
    report = run(leaky, tmp_path, quality={"rules": {"near_duplicate": "drop"}})
    assert report.num_images == len(report.dropped) == NUM_SOURCES
    kept = {row.image.stem for row in report.rows.values()}
    # A frame with words makes a picture larger, and worse. In 3 % of pictures of this size speckle passes for a mark.
    marked = [id_ for id_, faults in report.findings.faults.items() if any(f.fault == "overlay" for f in faults)]
    worse = {name for name in kept if "smaller" in name or "in a frame" in name}
    assert {f"d/{name.split(' ')[0]}.png" for name in worse} <= set(marked)
    assert len(worse) <= 2
    assert "30 dropped by these rules" in str(report)


def test_images_of_one_patient_share_a_split_and_are_no_copies(tmp_path: Path) -> None:
    rows = []
    for index in range(40):
        image, _ = picture(index % 20)
        (image if index < 20 else smaller(image)).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "patient": f"P{index % 10}"})
    report = run(write_table(tmp_path, rows), tmp_path)
    by_patient = defaultdict(set)
    for row in report.rows.values():
        by_patient[row.patient].add(row.split)
    assert {len(splits) for splits in by_patient.values()} == {1}
    assert report.num_faulty("near_duplicate") == 0


def test_a_copy_under_another_patients_name_ties_both(tmp_path: Path) -> None:
    rows = []
    for index in range(20):
        image, _ = picture(index)
        image.save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "patient": f"P{index // 2}"})
    image, _ = picture(0)
    smaller(image).save(tmp_path / "copy.png")
    report = run(write_table(tmp_path, [*rows, {"image": "copy.png", "patient": "P9"}]), tmp_path)
    tied = {row.cluster for row in report.rows.values() if row.patient in ("d/P0", "d/P9")}
    assert len(tied) == 1
    assert {id_ for id_ in report.findings.faults if report.findings.faults[id_][0].fault == "near_duplicate"} == {
        "d/0.png",
        "d/copy.png",
    }


def test_copies_with_two_labels(tmp_path: Path) -> None:
    rows = []
    for index in range(12):
        image, _ = picture(index)
        image.save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png"})
    picture(3)[0].save(tmp_path / "same.png")
    smaller(picture(4)[0]).save(tmp_path / "alike.png")
    rows += [{"image": "same.png", "label": "malignant"}, {"image": "alike.png", "label": "malignant"}]
    database = write_table(tmp_path, rows)
    report = run(database, tmp_path)
    found = {id_: f.detail for id_, of in report.findings.faults.items() for f in of if f.fault == "two_labels"}
    assert found == {
        "d/3.png": "benign here, malignant there",
        "d/4.png": "benign here, malignant there",
        "d/same.png": "malignant here, benign there",
        "d/alike.png": "malignant here, benign there",
    }
    (tmp_path / "manifest.parquet").unlink()
    dropping = run(database, tmp_path, quality={"rules": {"two_labels": "drop"}})
    assert set(dropping.dropped) == found.keys()


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> ManifestFile:
    """Images of 512 pixels: clean ones, and one for each mark; and masks that do not fit a sector."""
    folder = tmp_path_factory.mktemp("marked")
    rows = []
    for index in range(6):
        for preset in ("breast", "cardiac"):
            picture(index, 512, preset)[0].save(folder / f"clean {preset} {index}.png")
            rows.append({"image": f"clean {preset} {index}.png"})
    lettered(picture(10, 512)[0], (150, 130)).save(folder / "letters.png")
    with_callipers(picture(11, 512)[0]).save(folder / "callipers.png")
    lettered(picture(12, 512, "cardiac")[0], (6, 6)).save(folder / "beside.png")
    with_doppler(picture(13, 512)[0]).save(folder / "doppler.png")
    rows += [{"image": f"{name}.png"} for name in ("letters", "callipers", "beside", "doppler")]
    image, mask = picture(14, 512, "cardiac")
    image.save(folder / "outside.png")
    mask.paste(255, (0, 0, 80, 80))
    mask.save(folder / "outside_mask.png")
    image, mask = picture(15, 512, "cardiac")
    image.save(folder / "fits.png")
    mask.save(folder / "fits_mask.png")
    picture(16, 512)[0].save(folder / "empty.png")
    mask.point(lambda _: 0).save(folder / "empty_mask.png")
    image, mask = picture(17, 512)
    image.save(folder / "inverted.png")
    ImageOps.invert(mask).save(folder / "inverted_mask.png")
    names = ("outside", "fits", "empty", "inverted")
    rows += [{"image": f"{name}.png", "masks": f"{name}_mask.png"} for name in names]
    return write_table(folder, rows)


def test_marks_colours_and_masks_that_do_not_fit(marked: ManifestFile, tmp_path: Path) -> None:
    report = run(marked, tmp_path)
    found = {id_.removeprefix("d/"): [f.fault for f in of] for id_, of in report.findings.faults.items()}
    assert found == {
        "letters.png": ["overlay"],
        "callipers.png": ["overlay"],
        "beside.png": ["overlay"],
        "doppler.png": ["colour_doppler"],
        "outside.png": ["mask_outside"],
        "empty.png": ["empty_mask"],
        "inverted.png": ["whole_mask"],
    }
    for name, faults in found.items():
        assert report.rows[f"d/{name}"].flags == tuple(faults)
    (tmp_path / "manifest.parquet").unlink()
    rules = {"overlay": "drop", "mask_outside": "keep"}
    dropping = run(marked, tmp_path, quality={"rules": rules})
    assert set(dropping.dropped) == {"d/letters.png", "d/callipers.png", "d/beside.png"}
    assert dropping.rows["d/outside.png"].flags == ()


def test_the_crop_is_the_scanners_image(marked: ManifestFile, tmp_path: Path) -> None:
    report = run(marked, tmp_path, quality={"crop": "area"})
    assert report.rows["d/letters.png"].crop is None, "the image fills the picture"
    left, top, right, bottom = report.rows["d/beside.png"].crop or (0, 0, 512, 512)
    sector = picture(12, 512, "cardiac")[0].point(lambda grey: 255 * (grey > 40)).getbbox()
    assert sector is not None
    # A few pixels: the area is found on a picture of half the size, and its speckle is averaged.
    for found, expected in zip((left, top, right, bottom), sector, strict=True):
        assert abs(found - expected) <= 24


def test_the_report_shows_what_was_found(marked: ManifestFile, tmp_path: Path) -> None:
    report = run(marked, tmp_path, quality={"rules": {"colour_doppler": "drop"}})
    report.write_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count("data:image/jpeg;base64,") == 7
    assert page.count("dropped</span>") == 1
    assert "prepare.quality.rules.colour_doppler=drop" in page
    assert "http" not in page.replace("http-equiv", ""), "it needs no network"


def test_names_in_the_report_are_escaped(tmp_path: Path) -> None:
    rows = []
    for index in range(8):
        picture(index)[0].save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "id": f"<script>{index}"})
    report = run(write_table(tmp_path, [*rows, {"image": "0.png", "id": "copy"}]), tmp_path)
    report.write_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;0" in page


def held_out_contents(report: PrepareReport) -> dict[str, str]:
    """Return the split of each file by its content."""
    return {row.sha256: row.split or "" for row in report.rows.values()}


def test_renumbered_files_keep_their_splits(tmp_path: Path) -> None:
    for index in range(30):
        picture(index)[0].save(tmp_path / f"{index}.png")
    before = held_out_contents(run(write_table(tmp_path, [{"image": f"{i}.png"} for i in range(30)]), tmp_path))
    for index in reversed(range(30)):
        (tmp_path / f"{index}.png").rename(tmp_path / f"{index + 1}.png")
    picture(30)[0].save(tmp_path / "0.png")
    report = run(write_table(tmp_path, [{"image": f"{i}.png"} for i in range(31)]), tmp_path)
    after = held_out_contents(report)
    assert {sha256: after[sha256] for sha256 in before} == before
    assert report.num_new == 31, "an id with another file is another image"


def test_files_saved_in_another_format_keep_their_splits(tmp_path: Path) -> None:
    for index in range(30):
        picture(index)[0].save(tmp_path / f"{index}.png")
    first = run(write_table(tmp_path, [{"image": f"{i}.png"} for i in range(30)]), tmp_path)
    before = {row.image.stem: row.split for row in first.rows.values()}
    for index in range(30):
        smaller(picture(index)[0]).save(tmp_path / f"{index}.jpg", quality=80)
        (tmp_path / f"{index}.png").unlink()
    second = run(write_table(tmp_path, [{"image": f"{i}.jpg"} for i in range(30)]), tmp_path)
    assert {row.image.stem: row.split for row in second.rows.values()} == before


def test_copies_that_were_dropped_take_the_split_of_those_that_stayed(leaky: ManifestFile, tmp_path: Path) -> None:
    first = run(leaky, tmp_path, quality={"rules": {"near_duplicate": "drop"}})
    before = {row.image.stem.split(" ")[0]: row.split for row in first.rows.values()}
    others = [{"image": str(row.image), "id": row.id} for row in first.dropped.values()]
    second = run(write_table(tmp_path, others), tmp_path)
    assert {row.image.stem.split(" ")[0]: row.split for row in second.rows.values()} == before


def test_the_best_copy_is_one_that_no_other_rule_drops(tmp_path: Path) -> None:
    rows = []
    for index in range(12):
        image, mask = picture(index)
        image.save(tmp_path / f"{index}.png")
        mask.save(tmp_path / f"{index}_mask.png")
        label = "malignant" if mask.getbbox() else "normal"
        rows.append({"image": f"{index}.png", "masks": f"{index}_mask.png", "label": label})
    picture(0)[0].save(tmp_path / "a copy.png")
    picture(0)[1].point(lambda _: 0).save(tmp_path / "empty.png")
    rows.append({"image": "a copy.png", "masks": "empty.png", "label": "malignant"})
    for rules in ({"duplicate": "drop"}, {"duplicate": "drop", "empty_mask": "drop"}):
        report = run(write_table(tmp_path, rows), tmp_path, quality={"rules": rules})
        assert set(report.dropped) == {"d/a copy.png"}
        (tmp_path / "manifest.parquet").unlink()


def test_an_own_split_that_is_not_kept_is_told(tmp_path: Path) -> None:
    for index in range(20):
        picture(index)[0].save(tmp_path / f"{index}.png")
    rows = [{"image": f"{index}.png"} for index in range(20)]
    run(write_table(tmp_path, rows), tmp_path)
    with_own = [{**row, "split": "test" if index < 10 else ""} for index, row in enumerate(rows)]
    with pytest.warns(UserWarning, match=r"not in their database's own split: they were drawn before"):
        run(write_table(tmp_path, with_own), tmp_path)


def test_a_block_of_text_beside_the_image_is_no_part_of_it(tmp_path: Path) -> None:
    image, _ = picture(0, 512)
    screen = Image.new("L", (800, 600))
    screen.paste(image.resize((460, 460)), (60, 90))
    for line in range(8):
        lettered(screen, (560, 120 + 24 * line), size=16)
    area = bounding_box(image_area(np.asarray(screen)))
    # Two pixels of the picture that it is found on are six of this one.
    for found, expected in zip(area, (60, 90, 520, 550), strict=True):
        assert abs(found - expected) <= 8, area


def test_databases_of_one_hospital_share_their_patients(tmp_path: Path) -> None:
    databases = {}
    for name, first in (("a", 0), ("b", 30)):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for index in range(first, first + 30):
            picture(index)[0].save(folder / f"{index}.png")
            rows.append({"image": f"{index}.png", "patient": f"P{index % 15}"})
        databases[name] = write_table(folder, rows).model_copy(update={"patients": "our hospital"})
    config = PrepareConfig(validation_fraction=0.33, test_fraction=0.33)
    report = prepare(databases, config, tmp_path / "manifest.parquet", tmp_path / "images")
    splits = defaultdict(set)
    for row in report.rows.values():
        splits[row.patient].add(row.split)
    assert len(splits) == 15
    assert {len(of) for of in splits.values()} == {1}
