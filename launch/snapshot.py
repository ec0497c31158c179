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
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from launch.git import git_says, make_run_folder

CHECKOUT = Path(__file__).resolve().parent.parent
COMMIT_FILE = "COMMIT"
# New files of these kinds run too; of others git does not know whether they are source or somebody's images.
SOURCES = ("*.py", "*.yaml", "*.yml", "*.sh", "*.jinja")


def snapshot(run: Path, name: str, *, submitted: str | None = None, checkout: Path = CHECKOUT) -> Path:
    """Return RUN/code/NAME with the checkout's tracked files; the checkout itself where git does not know it.

    submitted: when the job was submitted, such as 2026-01-31T12:00:00. What was checked out then is taken, with the
    changes that were not committed, new source files among them, which a note names. A file that was written since is
    taken from the commit: what it held before cannot be looked up.
    """
    folder = run.absolute() / "code" / name
    if folder.exists():
        return folder
    if git_says(checkout, "rev-parse", "--git-dir") is None:
        why = f"{checkout} is no git checkout" if shutil.which("git") else "there is no git on this machine"
        print(f"sonoshard: note: {why}; the job runs the files of {checkout} as they are", file=sys.stderr)
        return checkout
    make_run_folder(run)
    then = git_says(checkout, "rev-parse", f"HEAD@{{{submitted}}}") if submitted else None
    base = then or git_says(checkout, "rev-parse", "HEAD")
    assert base is not None, "a checkout has a commit"
    changed = _changed_files(checkout, base, submitted)
    if changed:
        print(f"sonoshard: note: the job runs uncommitted changes: {', '.join(changed)}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{name}.{os.getpid()}")
    tree = _with_changes(checkout, base, changed) if changed else base
    command = ["git", "-C", str(checkout), "archive", tree]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files_of_commit:
        files_of_commit.extractall(partial, filter="data")
    (partial / COMMIT_FILE).write_text(f"{base}{'-dirty' if changed else ''}\n", encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(partial)  # another task of the job's array was first
    return folder


def _changed_files(checkout: Path, commit: str, submitted: str | None) -> list[str]:
    """Return the files that differ from a commit, new source files among them, as far as they did at the submission."""
    questions = (
        ("diff", "--name-only", "-z", commit),
        ("ls-files", "--others", "--exclude-standard", "-z", "--", *SOURCES),
    )
    files = [name for question in questions for name in (git_says(checkout, *question) or "").split("\0") if name]
    if submitted is None:
        return files
    until = datetime.fromisoformat(submitted).timestamp()
    # A file that was written later was another one at the submission. Of a removed file nobody knows when.
    return [file for file in files if not (path := checkout / file).exists() or path.stat().st_mtime <= until]


def _with_changes(checkout: Path, commit: str, files: Sequence[str]) -> str:
    """Return a commit's tree with some files as they are now; the checkout's own index stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        git_says(checkout, "read-tree", commit, variables=index)
        git_says(checkout, "add", "--", *files, variables=index)
        tree = git_says(checkout, "write-tree", variables=index)
    assert tree is not None, "an index that was just read can be written"
    return tree


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
