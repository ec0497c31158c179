"""The layout of EchoNet-Dynamic is read as it is, and refused when it is another one."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.databases import Echonet, Row
from data.errors import DataError
from data.prepare import PrepareConfig, prepare
from tests.data.databases.fixtures import echonet
from tests.data.databases.made_by_rows import faults_of, mask_of, picture_of, times

LAYOUT = (
    "needed Videos/0X1A0A263B22CCD966.avi, FileList.csv, VolumeTracings.csv: "
    "set root, or see `sonoshard databases echonet`"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echonet.write_echonet(tmp_path_factory.mktemp("echonet"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "EchoNet-Dynamic"))


def rows_of(root: Path, workspace: Path) -> list[Row]:
    return list(Echonet(root=root).rows(workspace))


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        rows_of(root, root.parent / "workspace")
    return str(refused.value)


def faults(root: Path) -> dict[str, str]:
    return faults_of(rows_of(root, root.parent / "workspace"))


def edit(table: Path, old: str, new: str) -> None:
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new, 1))


def test_rows(written: Path, workspace: Path) -> None:
    rows = rows_of(written, workspace)
    assert Counter((row.split, row.attributes["phase"]) for row in rows) == {
        (split, phase): count
        for split, count in (("train", 6), ("validation", 1), ("test", 1))
        for phase in ("diastole", "systole")
    }
    assert len({row.id for row in rows}) == 16
    second = rows[1]
    assert second.id == "0X0000000000000000_0001"
    prompt = "A cardiac ultrasound image, in a four chamber view, at the end of systole"
    assert (second.prompts, second.label) == ((prompt,), "four-chamber systole")
    assert (second.organ, second.view, second.patient) == ("heart", "four-chamber", "0X0000000000000000")
    assert second.attributes == {"chambers": "four", "phase": "systole", "ejection_fraction": "reduced"}
    assert second.mask_classes == {1: "left ventricle"}
    words = [row.attributes["ejection_fraction"] for row in rows[::2]]
    assert words == ["reduced"] * 2 + ["mildly reduced"] * 2 + ["preserved"] * 4


def test_pictures_are_the_traced_frames(written: Path, workspace: Path) -> None:
    for row in rows_of(written, workspace):
        video = int(str(row.patient), 16)
        made = picture_of(row).astype(float)
        differences = [np.abs(made - frame).mean() for frame in echonet.frames(video)]
        number = echonet.DIASTOLE if row.attributes["phase"] == "diastole" else echonet.SYSTOLE
        # JPEG of speckle is some grey levels off; another frame is far more.
        assert differences[number] < 8
        assert all(
            difference > 2 * differences[number] for place, difference in enumerate(differences) if place != number
        )


def test_masks_are_what_was_traced(written: Path, workspace: Path) -> None:
    for row in rows_of(written, workspace):
        number = echonet.DIASTOLE if row.attributes["phase"] == "diastole" else echonet.SYSTOLE
        true, read = echonet.traced(int(str(row.patient), 16), number), mask_of(row) == 1
        assert not (true & ~read).any()
        # Where a row is longer than the next, the edge between their ends lies outside of both.
        assert np.count_nonzero(read & ~true) < 0.05 * np.count_nonzero(true)


def test_videos_without_two_tracings_are_left_out(root: Path, tmp_path: Path) -> None:
    assert (root / "Videos" / f"{echonet.UNTRACED}.avi").is_file()
    tracings = root / "VolumeTracings.csv"
    lines = tracings.read_text().splitlines()
    once = [line for line in lines if not (line.startswith(echonet.name(2)) and line.endswith(",3"))]
    tracings.write_text("\n".join(once))
    patients = {row.patient for row in rows_of(root, tmp_path / "workspace")}
    assert patients == {echonet.name(video) for video in range(8)} - {echonet.name(2)}


def test_nothing_is_made_twice(written: Path, workspace: Path) -> None:
    rows_of(written, workspace)
    before = times(workspace)
    rows_of(written, workspace)
    assert len(before) == 32
    assert times(workspace) == before


def test_the_folder_above(root: Path) -> None:
    message = f"{root.parent} lacks Videos, FileList.csv, VolumeTracings.csv (found EchoNet-Dynamic/)"
    assert refusal(root.parent) == f"echonet: {message}; {LAYOUT}"


def test_a_video_is_missing(root: Path) -> None:
    video = root / "Videos" / f"{echonet.name(3)}.avi"
    video.unlink()
    message = f"echonet: {root}/FileList.csv names {echonet.name(3)}; needed {video}: copy it anew"
    assert refusal(root) == message


def test_a_damaged_video(root: Path) -> None:
    video = root / "Videos" / f"{echonet.name(3)}.avi"
    video.write_bytes(b"RIFF" + bytes(500))
    found = faults(root)
    assert list(found) == [f"{echonet.name(3)}_0003", f"{echonet.name(3)}_0001"]
    assert len(set(found.values())) == 1
    reason = found[f"{echonet.name(3)}_0003"]
    assert reason.startswith(f"{video} cannot be decoded as a video: ")
    assert reason.endswith(": copy it anew")


def test_a_video_that_ends_early(root: Path) -> None:
    video = root / "Videos" / f"{echonet.name(3)}.avi"
    echonet.write_avi(video, echonet.frames(3)[:2])
    message = f"{video} ends before frame 3, which its table names: copy it anew"
    assert faults(root) == {f"{echonet.name(3)}_0003": message}


def test_a_table_lacks_a_column(root: Path) -> None:
    edit(root / "FileList.csv", ",Split", ",Part")
    assert refusal(root).startswith(f"{root}/FileList.csv lacks the column Split (found FileName, EF,")


def test_an_unknown_split(root: Path) -> None:
    edit(root / "FileList.csv", "VAL", "HELD OUT")
    assert refusal(root) == f"echonet: {root}/FileList.csv has Split 'HELD OUT'; known are TRAIN, VAL, TEST"


def test_an_ejection_fraction_that_is_no_number(root: Path) -> None:
    edit(root / "FileList.csv", "30.5", "low")
    assert refusal(root) == f"{root}/FileList.csv has the ejection fraction 'low', needed a number of percent"


def test_a_tracing_that_is_no_number(root: Path) -> None:
    tracings = root / "VolumeTracings.csv"
    line = tracings.read_text().splitlines()[1]
    edit(tracings, line, line.replace(".0,1", ".0,one"))
    message = f"echonet: {tracings} has, for {echonet.name(0)}.avi, a cell that is no number: "
    assert refusal(root).startswith(message)


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_tracing_that_is_nowhere(root: Path, number: str) -> None:
    tracings = root / "VolumeTracings.csv"
    name, _, *rest = tracings.read_text().splitlines()[1].split(",")
    edit(tracings, tracings.read_text().splitlines()[1], ",".join([name, number, *rest]))
    assert refusal(root).startswith(f"echonet: {tracings} has, for {name}, a cell that is no number: {number}, ")


def test_a_changed_tracing_changes_its_mask_whatever_the_date(root: Path, tmp_path: Path) -> None:
    tracings = root / "VolumeTracings.csv"
    rows_of(root, tmp_path / "workspace")
    before = times(tmp_path / "workspace")
    lines = tracings.read_text().splitlines()
    # The last line across the ventricle of the first traced frame is gone.
    of_frame = [line for line in lines if line.startswith(echonet.name(4)) and line.endswith(",3")]
    lines.remove(of_frame[-1])
    tracings.write_text("\n".join(lines))
    os.utime(tracings, ns=(1, 1))
    rows_of(root, tmp_path / "workspace")
    changed = {path.name for path, time in times(tmp_path / "workspace").items() if time != before[path]}
    assert changed == {f"{echonet.name(4)}_0003.png", f"{echonet.name(4)}_0003_mask.png"}


def test_a_damaged_video_is_skipped(root: Path) -> None:
    (root / "Videos" / f"{echonet.name(3)}.avi").write_bytes(b"")
    config = PrepareConfig(on_undecodable="skip")
    report = prepare({"echo": Echonet(root=root)}, config, root.parent / "manifest.parquet", root.parent / "workspace")
    assert sorted(report.skipped) == [f"echo/{echonet.name(3)}_0001", f"echo/{echonet.name(3)}_0003"]
    assert report.num_images == 14
