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
from collections.abc import Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
COMMIT_FILE = "COMMIT"
# New files of these kinds run too; of others git does not know whether they are source or somebody's images.
SOURCES = ("*.py", "*.yaml", "*.yml", "*.sh", "*.jinja")


def snapshot(run: Path, name: str, *, submitted: str | None = None, checkout: Path = CHECKOUT) -> Path:
    """Return RUN/code/NAME with the checkout's tracked files; the checkout itself where git does not know it.

    submitted: when the job was submitted, as git reads times; what was checked out then is taken. Changes that are not
    committed cannot be looked up later: where there are some, new source files among them, the files are taken as they
    are now, with a note.
    """
    folder = run.absolute() / "code" / name
    if folder.exists():
        return folder
    if git_says(checkout, "rev-parse", "--git-dir") is None:
        print(f"sonoshard: note: {checkout} is no git checkout; the job runs the files that lie there", file=sys.stderr)
        return checkout
    new = (git_says(checkout, "ls-files", "--others", "--exclude-standard", "--", *SOURCES) or "").splitlines()
    files = [*(git_says(checkout, "diff", "--name-only", "HEAD") or "").splitlines(), *new]
    changed = _working_tree(checkout, new) if files else None
    if changed:
        print(f"sonoshard: note: the job runs uncommitted changes as they are now: {', '.join(files)}", file=sys.stderr)
    then = git_says(checkout, "rev-parse", f"HEAD@{{{submitted}}}") if submitted else None
    commit = changed or then or git_says(checkout, "rev-parse", "HEAD")
    assert commit is not None, "a checkout has a commit"
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{name}.{os.getpid()}")
    command = ["git", "-C", str(checkout), "archive", commit]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files_of_commit:
        files_of_commit.extractall(partial, filter="data")
    base = git_says(checkout, "rev-parse", "HEAD") if changed else commit
    (partial / COMMIT_FILE).write_text(f"{base}{'-dirty' if changed else ''}\n", encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(partial)  # another task of the job's array was first
    return folder


def _working_tree(checkout: Path, new: Sequence[str]) -> str:
    """Return a tree of the tracked files as they are now and of `new` ones; the checkout's own index stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        for command in (["read-tree", "HEAD"], ["add", "--update"], *([["add", "--", *new]] if new else [])):
            git_says(checkout, *command, variables=index)
        tree = git_says(checkout, "write-tree", variables=index)
    assert tree is not None, "an index that was just read can be written"
    return tree


def git_says(checkout: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> str | None:
    """Return what git prints, None if it fails or is not there. variables: on top of the environment."""
    command, environment = ["git", "-C", str(checkout), *arguments], {**os.environ, **(variables or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _submitted(job: str) -> str | None:
    """Return when a job was submitted, None where SLURM does not say."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format=%V"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


if __name__ == "__main__":
    print(snapshot(Path(sys.argv[1]), sys.argv[2], submitted=_submitted(sys.argv[2])))
