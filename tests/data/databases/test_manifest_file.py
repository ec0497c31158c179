"""A database without an adapter comes as a table; what the table lacks is named."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from data.databases import ManifestFile
from data.databases.manifest_file import COLUMNS
from data.errors import DataError
from data.manifest import Manifest


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as refused:
        list(ManifestFile(path=path).rows(path.parent))
    return str(refused.value)


def test_a_csv_with_everything(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        "id,image,prompts,label,masks,mask_classes,patient,split,organ,view,flags\n"
        '7,a/7.png,"heart, four chambers|apical view",ES,a/7_m.png,1=left ventricle|2=myocardium,p1,val,heart,4CH,old\n'
        "8,a/8.png,heart,ED,,,,,,,\n",
    )
    first, second = ManifestFile(path=path).rows(tmp_path)
    assert first.id == "7"
    assert first.image == tmp_path / "a/7.png"
    assert first.prompts == ("heart, four chambers", "apical view")
    assert first.masks == (tmp_path / "a/7_m.png",)
    assert first.mask_classes == {1: "left ventricle", 2: "myocardium"}
    assert (first.patient, first.split, first.organ, first.view, first.flags) == ("p1", "val", "heart", "4CH", ("old",))
    assert (second.masks, second.mask_classes, second.patient, second.split, second.flags) == ((), {}, None, None, ())


def test_a_csv_with_the_least(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label\nx.png,a scan,1\n")
    (row,) = ManifestFile(path=path).rows(tmp_path)
    assert (row.id, row.label, row.prompts) == ("x.png", "1", ("a scan",))


def test_a_template_stands_for_the_prompts(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,label,organ\nx.png,cyst,breast\n")
    (row,) = ManifestFile(path=path, prompts=("{organ} with {label}",)).rows(tmp_path)
    assert row.prompts == ("breast with cyst",)


def test_masks_are_of_lesions_unless_said(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label,masks\nx.png,a,b,m1.png|m2.png\n")
    (row,) = ManifestFile(path=path).rows(tmp_path)
    assert row.masks == (tmp_path / "m1.png", tmp_path / "m2.png")
    assert row.mask_classes == {255: "lesion"}


def test_parquet_has_lists(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    table = {"image": ["x.png", "y.png"], "prompts": [["a", "b"], ["c"]], "label": ["u", "v"], "patient": ["p", None]}
    pd.DataFrame(table).to_parquet(tmp_path / "table.parquet")
    first, second = ManifestFile(path=tmp_path / "table.parquet").rows(tmp_path)
    assert (first.prompts, first.patient) == (("a", "b"), "p")
    assert (second.prompts, second.patient) == (("c",), None)


def test_a_manifest_of_ours_is_a_database(busi_manifest: Path, tmp_path: Path) -> None:
    stored = Manifest.read(busi_manifest).rows
    for row, again in zip(stored, ManifestFile(path=busi_manifest).rows(tmp_path), strict=True):
        assert {name: getattr(again, name) for name in COLUMNS} == {name: getattr(row, name) for name in COLUMNS}


def test_a_misspelt_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label,patients\nx.png,a,b,c\n")
    known = (
        "id, image, prompts, label, masks, mask_classes, organ, pathology, view, attributes, patient, split, licence, "
        "flags"
    )
    assert refusal(path) == f"manifest: {path} has a column patients; nearest known: patient, of {known}"


def test_a_missing_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts\nx.png,a\n")
    assert refusal(path) == f"manifest: {path} lacks the column label (found image, prompts)"


def test_an_empty_cell(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label\nx.png,a,b\ny.png,a,\n")
    assert refusal(path) == f"manifest: row 2 of {path} has no label; every row needs one"


@pytest.mark.parametrize("classes", ["lesion", "0=lesion", "256=lesion", "1=", "x=lesion"])
def test_mask_classes_that_mean_nothing(tmp_path: Path, classes: str) -> None:
    path = write_csv(tmp_path, f"image,prompts,label,masks,mask_classes\nx.png,a,b,m.png,{classes}\n")
    assert refusal(path).startswith(f"manifest: {path} has mask_classes {classes!r}, needed ")


def test_no_file(tmp_path: Path) -> None:
    path = tmp_path / "no.csv"
    assert refusal(path) == f"manifest: there is no file {path}; needed a CSV or Parquet: set path"


def test_another_format(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").touch()
    assert refusal(tmp_path / "t.xlsx") == f"manifest: {tmp_path}/t.xlsx is neither .csv nor .parquet: convert it"


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"\x00\xff" * 9)
    assert refusal(tmp_path / "t.parquet").startswith(f"manifest: {tmp_path}/t.parquet cannot be read: ")


def test_an_empty_file(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "")
    assert refusal(path) == f"manifest: {path} lacks the column image (found nothing)"


def test_a_csv_of_old_excel(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,prompts,label\nx.png,f\u00f6tal,b\n", encoding="latin-1")
    message = f"manifest: {path} cannot be read as text in UTF-8: open it and save it as CSV UTF-8"
    assert refusal(path) == message


def test_a_cell_too_many(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label\nx.png,a,b\ny.png,heart, four chambers,b\n")
    message = "line 3 has 4 cells, its header 3: put a cell that has ',' in it between double quotes"
    assert refusal(path) == f"manifest: {path} {message}"


def test_empty_rows_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label\nx.png,a,b\n,,\n\ny.png,a,\n")
    assert refusal(path) == f"manifest: row 4 of {path} has no label; every row needs one"


def test_a_column_twice(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label,patient,patient\nx.png,a,b,c,d\n")
    assert refusal(path).startswith(f"manifest: {path} has a column patient (again); nearest known: patient, of ")
    path = write_csv(tmp_path, "image,prompts,label,label\nx.png,a,b,c\n")
    assert refusal(path) == f"manifest: {path} has the column label 2 times; needed once: remove the others"


def test_spaces_around_cells(tmp_path: Path) -> None:
    line = "7 , x.png,a | b|| c,benign , m.png|, 1 = ventricle ,p1 , val,breast , shape = oval, old | new "
    header = "id,image,prompts,label,masks,mask_classes,patient,split,organ,attributes,flags"
    (row,) = ManifestFile(path=write_csv(tmp_path, f"{header}\n{line}\n")).rows(tmp_path)
    assert (row.id, row.image, row.prompts, row.label) == ("7", tmp_path / "x.png", ("a", "b", "c"), "benign")
    assert (row.masks, row.mask_classes, row.patient) == ((tmp_path / "m.png",), {1: "ventricle"}, "p1")
    assert (row.split, row.organ, row.attributes, row.flags) == ("val", "breast", {"shape": "oval"}, ("old", "new"))


def test_spaces_in_parquet(tmp_path: Path) -> None:
    table = {"image": [" x.png"], "prompts": [["a ", " "]], "label": ["b "], "patient": [" "]}
    pd.DataFrame(table).to_parquet(tmp_path / "t.parquet")
    (row,) = ManifestFile(path=tmp_path / "t.parquet").rows(tmp_path)
    assert (row.image, row.prompts, row.label, row.patient) == (tmp_path / "x.png", ("a",), "b", None)


def test_prompts_of_nothing(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label\nx.png, | |,b\n")
    assert refusal(path) == f"manifest: row 1 of {path} has no prompts; every row needs one"


def test_integers_that_parquet_holds_as_floats(tmp_path: Path) -> None:
    table = {"image": ["x.png", "y.png"], "prompts": ["a", "a"], "label": [0, 1], "patient": [3.0, None]}
    table |= {"id": [0.0, 1.5]}
    pd.DataFrame(table).to_parquet(tmp_path / "t.parquet")
    first, second = ManifestFile(path=tmp_path / "t.parquet").rows(tmp_path)
    assert (first.id, first.label, first.patient) == ("0", "0", "3")
    assert (second.id, second.label, second.patient) == ("1.5", "1", None)


def test_an_unknown_split(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image,prompts,label,split\nx.png,a,b,Val\ny.png,a,b,fold 1\n")
    message = "split 'fold 1' is not known; needed train, validation, test or nothing"
    with pytest.raises(DataError) as refused:
        next(iter(ManifestFile(path=path).rows(tmp_path)))
    assert str(refused.value) == f"manifest: row 2 of {path}: {message}"


@pytest.mark.parametrize(("column", "kept"), [("sha256", ("doppler",)), ("view", ("overlay", "doppler"))])
def test_faults_that_prepare_found_are_found_anew(tmp_path: Path, column: str, kept: tuple[str, ...]) -> None:
    path = write_csv(tmp_path, f"image,prompts,label,flags,{column}\nx.png,a,b,overlay|doppler,c\n")
    (row,) = ManifestFile(path=path).rows(tmp_path)
    assert row.flags == kept
