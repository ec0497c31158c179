"""`prepare` finds what is wrong with images, keeps patients together, and never draws a split twice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from data.databases import AnyDatabase, Busi, ManifestFile, SimulatedDatabase
from data.errors import DataError
from data.images import decode
from data.manifest import PALETTE, Manifest
from data.prepare import PrepareConfig, PrepareReport, prepare
from data.quality.rules import QualityConfig
from tests.data.busi_fixture import write_busi
from tests.data.noise_image import write_noise

HALF = PrepareConfig(validation_fraction=0.3, test_fraction=0.2)


@pytest.fixture
def root(busi_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(busi_root, tmp_path / "busi"))


def run(tmp_path: Path, config: PrepareConfig = HALF, /, **databases: AnyDatabase) -> PrepareReport:
    return prepare(databases, config, tmp_path / "manifest.parquet", tmp_path / "workspace")


def refusal(tmp_path: Path, config: PrepareConfig = HALF, /, **databases: AnyDatabase) -> str:
    with pytest.raises(DataError) as refused:
        run(tmp_path, config, **databases)
    return str(refused.value)


def split_of(tmp_path: Path) -> dict[str, str | None]:
    return {row.id: row.split for row in Manifest.read(tmp_path / "manifest.parquet").rows}


def table(folder: Path, patients: list[str], name: str = "table") -> ManifestFile:
    """A database of one image per entry of `patients`, each different from all others."""
    for number, patient in enumerate(patients):
        seed = int.from_bytes(f"{name}{number}{patient}".encode())
        write_noise(folder / f"{name}{number}.png", seed)
    rows = {"image": [f"{name}{number}.png" for number in range(len(patients))], "prompts": "a", "label": "b"}
    pd.DataFrame({**rows, "patient": patients}).to_csv(folder / f"{name}.csv", index=False)
    return ManifestFile(path=folder / f"{name}.csv")


def test_every_image_of_busi_has_its_row(root: Path, tmp_path: Path) -> None:
    report = run(tmp_path, busi=Busi(root=root))
    manifest = Manifest.read(tmp_path / "manifest.parquet")
    assert (len(manifest.rows), report.num_images, report.num_new) == (18, 18, 18)
    assert manifest.palette == PALETTE
    for row in manifest.rows:
        picture, sha256 = decode(row.image)
        assert (row.sha256, (row.width, row.height)) == (sha256, picture.size)
        assert row.masks_sha256 == tuple(decode(mask)[1] for mask in row.masks)
        assert row.image.is_absolute()
    assert len({(row.width, row.height) for row in manifest.rows}) > 4, "the fixture's sizes vary"
    assert any(len(row.masks) == 2 for row in manifest.rows)


def test_pandas_alone_reads_the_manifest(busi_manifest: Path) -> None:
    rows = pd.read_parquet(busi_manifest)
    assert set(rows["split"]) == {"train", "validation", "test"}
    assert rows["id"].is_unique
    assert rows["id"].str.startswith("busi/").all()


def test_the_report_counts_by_database_label_and_split(root: Path, tmp_path: Path) -> None:
    report = run(tmp_path, busi=Busi(root=root), sim=SimulatedDatabase(count=6, size=64))
    counts = report.table()
    assert counts.loc[("busi", "benign"), "all"] == 6
    assert counts.loc[("all", ""), "all"] == 24
    assert str(report).splitlines()[-1] == f"24 images, 24 of them new: {tmp_path}/manifest.parquet"
    for name in ("benign", "malignant", "normal", "train", "validation", "test"):
        assert name in str(report)


def test_labels_are_shared_out_evenly(root: Path, tmp_path: Path) -> None:
    counts = run(tmp_path, busi=Busi(root=root)).table()
    assert counts.loc["busi"].to_numpy().min() >= 1, "every label is in every split"


def test_patients_are_not_parted(tmp_path: Path) -> None:
    run(tmp_path, sim=SimulatedDatabase(count=20, size=64))
    rows = Manifest.read(tmp_path / "manifest.parquet").rows
    assert len({(row.patient, row.split) for row in rows}) == 10
    assert len({(row.patient, row.cluster) for row in rows}) == 10


def test_patients_of_two_databases_are_not_one(tmp_path: Path) -> None:
    run(tmp_path, one=table(tmp_path, list("pabcdefgh"), "one"), two=table(tmp_path, list("pqrstuvw"), "two"))
    rows = Manifest.read(tmp_path / "manifest.parquet").rows
    assert len({row.cluster for row in rows}) == 17


def test_an_image_that_is_left_out_still_ties_its_copy_to_its_patient(tmp_path: Path) -> None:
    """Databases `one` and `two` hold the same picture, of which the one without a patient is kept."""
    ours = table(tmp_path, ["p", "p", "q", "r", "s", "t"], "one")
    shutil.copy(tmp_path / "one0.png", tmp_path / "copy.png")
    for number in range(8):
        write_noise(tmp_path / f"other{number}.png", 100 + number)
    names = ["copy.png", *(f"other{number}.png" for number in range(8))]
    # `a` comes before `one`: its copy is the one that stays.
    pd.DataFrame({"image": names, "prompts": "a", "label": "b"}).to_csv(tmp_path / "a.csv", index=False)
    config = HALF.model_copy(update={"quality": QualityConfig.model_validate({"rules": {"duplicate": "drop"}})})
    run(tmp_path, config, a=ManifestFile(path=tmp_path / "a.csv"), one=ours)
    rows = {row.id: row for row in Manifest.read(tmp_path / "manifest.parquet").rows}
    assert ("a/copy.png" in rows) != ("one/one0.png" in rows)
    kept = rows.get("a/copy.png") or rows["one/one0.png"]
    assert kept.cluster == rows["one/one1.png"].cluster
    assert kept.split == rows["one/one1.png"].split


def test_equal_files_share_a_split_and_are_flagged(root: Path, tmp_path: Path) -> None:
    copied = [("benign (1)", "malignant (2)"), ("benign (4)", "normal (5)"), ("malignant (2)", "malignant (5)")]
    for source, target in copied:
        names = [root / name.split()[0] / name for name in (source, target)]
        for suffix in ("", "_mask"):
            shutil.copy(f"{names[0]}{suffix}.png", f"{names[1]}{suffix}.png")
    other = Busi(root=Path(shutil.copytree(root, tmp_path / "mirror")))
    report = run(tmp_path, busi=Busi(root=root), mirror=other)
    rows = {row.id: row for row in Manifest.read(tmp_path / "manifest.parquet").rows}
    for source, target in copied:
        clusters = {rows[f"{name}/{id_}"].cluster for name in ("busi", "mirror") for id_ in (source, target)}
        assert len(clusters) == 1
    for row in rows.values():
        assert row.split == rows[row.cluster].split
    # Every file of the mirror is one of busi's.
    assert report.num_faulty("duplicate") == 36 == sum("duplicate" in row.flags for row in rows.values())
    assert {id_ for id_, row in rows.items() if "two_labels" in row.flags} == {
        f"{name}/{id_}"
        for name in ("busi", "mirror")
        for id_ in ("benign (1)", "malignant (2)", "malignant (5)", "benign (4)", "normal (5)")
    }
    assert "36 duplicate: prepare.quality.rules.duplicate=flag" in str(report)


def test_run_again_it_writes_the_same_bytes(root: Path, tmp_path: Path) -> None:
    run(tmp_path, busi=Busi(root=root))
    before = (tmp_path / "manifest.parquet").read_bytes()
    assert run(tmp_path, busi=Busi(root=root)).num_new == 0
    assert (tmp_path / "manifest.parquet").read_bytes() == before


def test_added_images_leave_the_others_where_they_are(tmp_path: Path) -> None:
    run(tmp_path, sim=SimulatedDatabase(count=13, size=64))
    before = Manifest.read(tmp_path / "manifest.parquet").rows
    # Image 13 belongs to the patient of image 12.
    report = run(tmp_path, sim=SimulatedDatabase(count=30, size=64), busi=Busi(root=write_busi(tmp_path, 2)))
    after = Manifest.read(tmp_path / "manifest.parquet").rows
    assert after[:13] == before, "in the same order, so that their shards stay"
    splits = split_of(tmp_path)
    assert splits["sim/000013"] == splits["sim/000012"]
    assert report.num_new == 17 + 6


def test_an_image_that_was_away_comes_back_to_its_split(tmp_path: Path) -> None:
    both = {"a": table(tmp_path, [str(n // 2) for n in range(30)], "a"), "b": table(tmp_path, list("pqrstuvw"), "b")}
    run(tmp_path, HALF, **both)
    before = split_of(tmp_path)
    run(tmp_path, b=both["b"])
    with pytest.warns(UserWarning, match="the new ones are for new images only"):
        run(tmp_path, PrepareConfig(validation_fraction=0.5, test_fraction=0.3, seed=9), b=both["b"])
    with pytest.warns(UserWarning, match=r"as drawn with validation_fraction=0.5, test_fraction=0.3, seed=9: "):
        run(tmp_path, HALF, **both)
    assert split_of(tmp_path) == before


def test_a_patients_split_outlives_its_images(tmp_path: Path) -> None:
    run(tmp_path, a=table(tmp_path, [str(n) for n in range(20)], "a"))
    held_out = next(id_ for id_, split in split_of(tmp_path).items() if split == "test")
    patient = held_out.removeprefix("a/a").removesuffix(".png")
    for seed in range(5):
        others = [f"x{seed}-{n}" for n in range(20)]
        run(tmp_path, a=table(tmp_path, [*others, patient], f"t{seed}"))
        assert split_of(tmp_path)[f"a/t{seed}20.png"] == "test"


def test_an_undecodable_image_is_named_and_counted(root: Path, tmp_path: Path) -> None:
    broken = root / "malignant" / "malignant (2).png"
    broken.write_bytes(broken.read_bytes()[:200])
    (root / "benign" / "benign (4)_mask.png").write_bytes(b"nothing")
    message = refusal(tmp_path, busi=Busi(root=root))
    assert message == (
        "2 of 18 images cannot be decoded: busi/benign (4), busi/malignant (2) "
        f"({root}/benign/benign (4)_mask.png cannot be decoded: no PNG, JPEG, BMP or TIFF); "
        "mend them, or set prepare.on_undecodable=skip to leave them out"
    )
    assert not (tmp_path / "manifest.parquet").exists()
    report = run(tmp_path, HALF.model_copy(update={"on_undecodable": "skip"}), busi=Busi(root=root))
    assert list(report.skipped) == ["busi/benign (4)", "busi/malignant (2)"]
    assert report.num_images == 16
    assert "2 skipped:\n  busi/benign (4): " in str(report)


def test_a_mask_of_another_size(root: Path, tmp_path: Path) -> None:
    mask = root / "benign" / "benign (4)_mask.png"
    with Image.open(mask) as picture:
        picture.resize((30, 20)).save(mask)
    size = "x".join(map(str, decode(root / "benign" / "benign (4).png")[0].size))
    assert refusal(tmp_path, busi=Busi(root=root)) == (
        "1 of 18 images have a mask that does not fit: busi/benign (4) "
        f"({mask} is 30x20, its image {size} pixels); "
        "mend them, or set prepare.on_mask_mismatch=skip to leave them out"
    )
    report = run(tmp_path, HALF.model_copy(update={"on_mask_mismatch": "skip"}), busi=Busi(root=root))
    assert report.skipped == {"busi/benign (4)": f"{mask} is 30x20, its image {size} pixels"}


def test_a_mask_with_a_value_that_means_no_class(tmp_path: Path) -> None:
    for name, value in (("x", 10), ("m", 3)):
        Image.new("L", (8, 8), value).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("image,prompts,label,masks,mask_classes\nx.png,a,b,m.png,1=cyst|2=wall\n")
    message = refusal(tmp_path, t=ManifestFile(path=tmp_path / "t.csv"))
    assert f"({tmp_path}/m.png has the value 3, known are 1 cyst, 2 wall)" in message


def test_new_mask_classes_are_appended_to_the_palette(tmp_path: Path) -> None:
    names = ["wall", "cyst", "lesion"]
    for number in range(5):
        write_noise(tmp_path / f"x{number}.png", number, side=8)
    lines = [f"x{number}.png,a,b,m.png,1={names[number % 3]}" for number in range(5)]
    Image.new("L", (8, 8), 1).save(tmp_path / "m.png")
    (tmp_path / "t.csv").write_text("\n".join(["image,prompts,label,masks,mask_classes", *lines]))
    run(tmp_path, t=ManifestFile(path=tmp_path / "t.csv"))
    assert Manifest.read(tmp_path / "manifest.parquet").palette == (*PALETTE, "cyst", "wall")
    (tmp_path / "t.csv").write_text("\n".join(["image,prompts,label,masks,mask_classes", *lines]).replace("wall", "a"))
    run(tmp_path, t=ManifestFile(path=tmp_path / "t.csv"))
    assert Manifest.read(tmp_path / "manifest.parquet").palette == (*PALETTE, "cyst", "wall", "a")


def test_an_empty_split(tmp_path: Path) -> None:
    database = table(tmp_path, ["one patient"] * 10)
    assert refusal(tmp_path, t=database) == (
        "database t has no validation images: 10 images of 1 patients or files at validation_fraction=0.3 and "
        "test_fraction=0.2; add images, or change the fractions"
    )
    assert not (tmp_path / "manifest.parquet").exists()


def test_an_error_leaves_the_manifest_as_it_was(root: Path, tmp_path: Path) -> None:
    run(tmp_path, busi=Busi(root=root))
    before = (tmp_path / "manifest.parquet").read_bytes()
    (root / "benign" / "benign (1).png").write_bytes(b"")
    refusal(tmp_path, busi=Busi(root=root))
    assert (tmp_path / "manifest.parquet").read_bytes() == before


def test_no_databases(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "there are no databases; needed at least one under `databases`"


def test_no_images_left(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,prompts,label\nx.png,a,b\n")
    message = refusal(tmp_path, PrepareConfig(on_undecodable="skip"), t=ManifestFile(path=tmp_path / "t.csv"))
    assert message == "database t has no images left: look at what was skipped"


def test_a_database_name_that_is_no_folder_name(root: Path, tmp_path: Path) -> None:
    message = "a database is named '../x', needed letters, digits, - and _: it names a folder"
    assert refusal(tmp_path, HALF, **{"../x": Busi(root=root)}) == message


def test_an_id_that_comes_twice(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "t.csv").write_text("image,prompts,label\nx.png,a,b\nx.png,a,b\n")
    assert refusal(tmp_path, t=ManifestFile(path=tmp_path / "t.csv")) == (
        f"t/x.png comes twice: {tmp_path}/x.png and {tmp_path}/x.png; needed one id per image"
    )


def test_a_split_of_an_unknown_name(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "t.csv").write_text("image,prompts,label,split\nx.png,a,b,fold1\n")
    message = refusal(tmp_path, t=ManifestFile(path=tmp_path / "t.csv"))
    where = f"manifest: row 1 of {tmp_path}/t.csv"
    assert message == f"{where}: split 'fold1' is not known; needed train, validation, test or nothing"


def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    with pytest.raises(DataError, match=f"^there is no manifest {path}: run `sonoshard prepare` first$"):
        Manifest.read(path)
    mend = f"^{path} is not a manifest of SonoShard: remove it and run `sonoshard prepare`$"
    pd.DataFrame({"id": [1]}).to_parquet(path)
    with pytest.raises(DataError, match=mend):
        Manifest.read(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=mend):
        Manifest.read(path)


def test_fractions_that_leave_nothing_to_train_on() -> None:
    with pytest.raises(ValidationError, match=r"validation_fraction \+ test_fraction is 1.1, needed less than 1"):
        PrepareConfig(validation_fraction=0.5, test_fraction=0.6)


def test_settings_are_known_without_heavy_imports() -> None:
    """The command line's help must be fast: 0.5 s in all, of which torch or pandas alone would take more."""
    heavy = "{'torch', 'pandas', 'scipy', 'pyarrow', 'webdataset'} & sys.modules.keys()"
    command = f"import sys; import data.manifest, data.encode, data.shards, data.databases; print({heavy})"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
