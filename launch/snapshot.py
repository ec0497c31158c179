"""The code that a job runs: this checkout as it was when the job was submitted, whatever is edited meanwhile.

`python -m launch.snapshot RUN JOB` is what slurm/job.sh calls: it prints the folder. A job that is queued again finds
the folder there.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from datetime import datetime
from pathlib import Path

from launch.git import git_says, make_run_folder

CHECKOUT = Path(__file__).resolve().parent.parent
COMMIT_FILE = "COMMIT"
# New files of these kinds run too; of others git does not know whether they are source or somebody's images.
SOURCES = ("*.py", "*.yaml", "*.yml", "*.sh", "*.jinja")
SKEW_S = 1.0  # SLURM tells whole seconds


def snapshot(run: Path, name: str, *, submitted: str | None = None, checkout: Path = CHECKOUT) -> Path:
    """Return RUN/code/NAME with the checkout's tracked files; the checkout itself where git does not know it.

    submitted: when the job was submitted, such as 2026-01-31T12:00:00. What was checked out then is taken, with the
    changes that were not committed, new source files among them. A file that was written since is taken from the
    commit, since nobody knows what it held before. Notes name both.
    """
    folder = run.absolute() / "code" / name
    if folder.exists():
        return folder
    if git_says(checkout, "rev-parse", "--git-dir") is None:
        why = "git does not take it for a checkout" if shutil.which("git") else "there is no git on this machine"
        _note(f"the job runs the files of {checkout} as they are: {why}")
        return checkout
    make_run_folder(run)
    then = git_says(checkout, "rev-parse", f"HEAD@{{{submitted}}}") if submitted else None
    commit = then or git_says(checkout, "rev-parse", "HEAD")
    assert commit is not None, "a checkout has a commit"
    differing = _differing_files(checkout, commit)
    changed = [file for file in differing if submitted is None or _is_as_it_was(checkout / file, submitted)]
    if changed:
        _note(f"the job runs uncommitted changes: {', '.join(changed)}")
    if later := [file for file in differing if file not in changed]:
        _note(f"the job does not run what was written after its submission: {', '.join(later)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{name}.{os.getpid()}")
    command = ["git", "-C", str(checkout), "archive", commit]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files_of_commit:
        files_of_commit.extractall(partial, filter="tar")  # the user's own, links out of it included
    for file in changed:
        (partial / file).parent.mkdir(parents=True, exist_ok=True)
        (partial / file).unlink(missing_ok=True)
        if (checkout / file).is_file():
            shutil.copy2(checkout / file, partial / file)
        elif (checkout / file).is_symlink():  # to a folder, or to nothing, as an editor's locks
            (partial / file).symlink_to((checkout / file).readlink())
    (partial / COMMIT_FILE).write_text(f"{commit}{'-dirty' if changed else ''}\n", encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(partial)  # another task of the job's array was first
    return folder


def _note(text: str) -> None:
    print(f"sonoshard: note: {text}", file=sys.stderr)


def _differing_files(checkout: Path, commit: str) -> list[str]:
    """Return the files that differ from a commit, removed ones and new source files among them."""
    questions = (
        ("diff", "--name-only", "--no-renames", "--relative", "-z", commit),
        ("ls-files", "--others", "--exclude-standard", "-z", "--", *SOURCES),
    )
    return [name for question in questions for name in (git_says(checkout, *question) or "").split("\0") if name]


def _is_as_it_was(file: Path, submitted: str) -> bool:
    """Return whether a file, or its absence, is that of the submission, as far as the disk tells."""
    while not os.path.lexists(file):
        file = file.parent  # which was written when it was removed
    return file.lstat().st_mtime <= datetime.fromisoformat(submitted).timestamp() + SKEW_S


def _submitted(job: str) -> str | None:
    """Return when a job was submitted, None where SLURM does not say."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format=%V"],
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


if __name__ == "__main__":
    print(snapshot(Path(sys.argv[1]), sys.argv[2], submitted=_submitted(sys.argv[2])))
