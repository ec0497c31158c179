"""What git says of a checkout, and what it is not to see."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


def git_says(checkout: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> str | None:
    """Return what git prints, None if it fails or is not there. variables: on top of the environment."""
    command, environment = ["git", "-C", str(checkout), *arguments], {**os.environ, **(variables or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def make_run_folder(run: Path) -> None:
    """Make a run's folder, which git ignores wherever it lies: it holds patients' images, and copies of sources."""
    run.mkdir(parents=True, exist_ok=True)
    ignored = run / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n", encoding="utf-8")
