"""What git says of a checkout, and what it is not to see."""

import subprocess
from pathlib import Path


def git_says(checkout: Path, *arguments: str) -> str | None:
    """Return what git prints, None if it fails or is not there."""
    command = ["git", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def make_run_folder(run: Path) -> None:
    """Make a run's folder, which git ignores wherever it lies: it holds patients' images, and copies of sources."""
    run.mkdir(parents=True, exist_ok=True)
    ignored = run / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n", encoding="utf-8")
