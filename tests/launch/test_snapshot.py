"""A job runs the code that was checked out when it was submitted."""

import os
import subprocess
import sys
import tarfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from launch.snapshot import COMMIT_FILE, snapshot

SUBMITTED = "2026-01-01T12:30:00"


def write(path: Path, text: str, *, at: str = "2026-01-01T12:15:00") -> None:
    """Write a file as it was written at a time of the day of the submission."""
    path.write_text(text)
    os.utime(path, (datetime.fromisoformat(at).timestamp(),) * 2)


def git(checkout: Path, *arguments: str, date: str | None = None) -> str:
    """Run git, with `date` as the time that it writes down. None: now."""
    identity = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {}
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **identity, **dates}
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of two commits, of noon and of one o'clock, each of which changed code.py."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for hour, text in (("12", "old"), ("13", "new")):
        (folder / "code.py").write_text(text)
        git(folder, "add", "code.py")
        git(folder, "commit", "--quiet", "--message", text, date=f"2026-01-01T{hour}:00:00")
    return folder


def test_the_commit_of_the_submission_is_taken(checkout: Path, tmp_path: Path) -> None:
    then = snapshot(tmp_path / "run", "7", submitted=SUBMITTED, checkout=checkout)
    assert (then / "code.py").read_text() == "old"
    assert (then / COMMIT_FILE).read_text().strip() == git(checkout, "rev-parse", "HEAD~1")
    now = snapshot(tmp_path / "run", "8", checkout=checkout)
    assert (now / "code.py").read_text() == "new"
    assert (now / COMMIT_FILE).read_text().strip() == git(checkout, "rev-parse", "HEAD")


def test_a_job_that_is_queued_again_runs_the_same_code(checkout: Path, tmp_path: Path) -> None:
    first = snapshot(tmp_path / "run", "7", checkout=checkout)
    (checkout / "code.py").write_text("newer")
    git(checkout, "commit", "--quiet", "--all", "--message", "newer")
    assert snapshot(tmp_path / "run", "7", checkout=checkout) == first
    assert (first / "code.py").read_text() == "new"


def test_tasks_of_an_array_that_start_together_share_a_copy(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other task's copy appears after this one looked for it."""
    extract = tarfile.TarFile.extractall

    def and_another(archive: tarfile.TarFile, *arguments: object, **keywords: Any) -> None:
        extract(archive, *arguments, **keywords)  # type: ignore[arg-type]
        (tmp_path / "run" / "code" / "7").mkdir()
        (tmp_path / "run" / "code" / "7" / "code.py").write_text("of the other")

    monkeypatch.setattr(tarfile.TarFile, "extractall", and_another)
    found = snapshot(tmp_path / "run", "7", checkout=checkout)
    assert (found / "code.py").read_text() == "of the other"
    assert list(found.parent.iterdir()) == [found]


def test_uncommitted_changes_run_as_they_were_and_are_named(
    checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(checkout / "code.py", "edited")
    write(checkout / "mine.py", "new")
    write(checkout / "patient.png", "an image is no source")
    found = snapshot(tmp_path / "run", "7", submitted=SUBMITTED, checkout=checkout)
    assert (found / "code.py").read_text() == "edited"
    assert (found / "mine.py").read_text() == "new"
    assert not (found / "patient.png").exists()
    assert (found / COMMIT_FILE).read_text() == git(checkout, "rev-parse", "HEAD~1") + "-dirty\n"
    assert "the job runs uncommitted changes: code.py, mine.py\n" in capfd.readouterr().err
    as_it_was = ["M code.py", "?? mine.py", "?? patient.png"]
    assert [line.strip() for line in git(checkout, "status", "--porcelain").splitlines()] == as_it_was


def test_a_new_source_file_alone_is_a_change(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "mine.py", "new")
    found = snapshot(tmp_path / "run", "7", checkout=checkout)
    assert (found / "mine.py").read_text() == (found / "code.py").read_text() == "new"


def test_changes_that_are_committed_after_the_submission_are_not_lost(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "code.py", "edited")
    git(checkout, "commit", "--quiet", "--all", "--message", "edited")
    found = snapshot(tmp_path / "run", "7", submitted=SUBMITTED, checkout=checkout)
    assert (found / "code.py").read_text() == "edited"


def test_what_is_written_after_the_submission_is_no_concern_of_the_job(
    checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(checkout / "mine.py", "new")
    write(checkout / "code.py", "edited", at="2026-01-01T14:00:00")
    write(checkout / "later.py", "new", at="2026-01-01T14:00:00")
    found = snapshot(tmp_path / "run", "7", submitted=SUBMITTED, checkout=checkout)
    assert {path.name: path.read_text() for path in found.glob("*.py")} == {"code.py": "old", "mine.py": "new"}
    told = capfd.readouterr().err
    assert "uncommitted changes: mine.py\n" in told
    assert "does not run what was written after its submission: code.py, later.py\n" in told


def test_what_is_written_in_the_second_of_the_submission_counts(checkout: Path, tmp_path: Path) -> None:
    """SLURM leaves out fractions of seconds."""
    write(checkout / "code.py", "edited", at=f"{SUBMITTED}.700")
    found = snapshot(tmp_path / "run", "7", submitted=SUBMITTED, checkout=checkout)
    assert (found / "code.py").read_text() == "edited"


@pytest.mark.parametrize(("at", "is_run"), [("2026-01-01T12:15:00", False), ("2026-01-01T14:00:00", True)])
def test_a_file_that_is_removed_or_renamed(checkout: Path, tmp_path: Path, at: str, is_run: bool) -> None:
    git(checkout, "mv", "code.py", "renamed.py")
    for path in (checkout / "renamed.py", checkout):
        os.utime(path, (datetime.fromisoformat(at).timestamp(),) * 2)
    found = snapshot(tmp_path / "run", "7", submitted=SUBMITTED, checkout=checkout)
    assert [path.name for path in found.glob("*.py")] == ["code.py" if is_run else "renamed.py"]


def test_a_link_is_followed_wherever_it_leads(checkout: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere.yaml", "lr: 1")
    (checkout / "mine.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    (checkout / ".#code.py").symlink_to("me@host.123:456")  # an editor's lock
    found = snapshot(tmp_path / "run", "7", checkout=checkout)
    assert (found / "mine.yaml").read_text() == "lr: 1"
    assert (found / "code.py").read_text() == "new"


def test_a_checkout_that_cannot_be_written_is_no_hindrance(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "code.py", "edited")
    before = sorted((checkout / ".git").rglob("*"))
    found = snapshot(tmp_path / "run", "7", submitted=SUBMITTED, checkout=checkout)
    assert (found / "code.py").read_text() == "edited"
    assert sorted((checkout / ".git").rglob("*")) == before


def test_a_run_inside_of_the_checkout_is_no_change_of_it(checkout: Path) -> None:
    snapshot(checkout / "mine", "7", checkout=checkout)
    second = snapshot(checkout / "mine", "8", checkout=checkout)
    assert (second / COMMIT_FILE).read_text().strip() == git(checkout, "rev-parse", "HEAD")
    assert git(checkout, "status", "--porcelain") == ""


def test_without_git_the_files_are_run_where_they_lie(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    assert snapshot(tmp_path / "run", "7", checkout=bare) == bare
    assert "as they are: git does not take it for a checkout" in capfd.readouterr().err


def test_imports_come_from_the_copy_wherever_it_is_started(tmp_path: Path) -> None:
    """As slurm/job.sh starts commands: in the checkout's folder, but with nothing imported from there."""
    copy = tmp_path / "copy"
    (copy / "launch").mkdir(parents=True)
    (copy / "launch" / "__init__.py").write_text("")
    (copy / "launch" / "cli.py").write_text("print('of the copy')")
    command = [sys.executable, "-m", "launch.cli"]
    variables = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    found = subprocess.run(
        command, capture_output=True, text=True, env=variables, cwd=Path(__file__).parent.parent.parent
    )
    assert found.stdout.strip() == "of the copy", found.stderr
