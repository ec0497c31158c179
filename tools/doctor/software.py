"""Python, the checkout and the packages: what is installed, from where, and of which version."""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from launch.own_packages import OWN_PACKAGES, packages_of_others
from tools.doctor.finding import Finding, fine, mend, note
from tools.doctor.subprocesses import CHECKOUT, answer_of

OLDEST_PYTHON = (3, 11)
INSTALL = "in this environment, in the checkout run: pip install -c constraints.txt -e ."
NUM_NAMED = 4  # of a long list
# Their copies in ~/.local or PYTHONPATH are what goes wrong on clusters.
LIBRARIES = ("torch", "numpy", "deepspeed", "bitsandbytes", "diffusers", "transformers")
MIN_OPEN_FILES = 1024


def check_python() -> Iterator[Finding]:
    """Check Python's version, and say which environment this is."""
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info < OLDEST_PYTHON:
        yield mend("Python", found, "make an environment with Python 3.11 or newer")
    elif sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ:
        yield note("Python", f"{found}, not an environment of its own", "`make` in the checkout makes .venv")
    else:
        yield fine("Python", found)


def check_checkout() -> Iterator[Finding]:
    """Say which commit this is, and whether files were changed since."""
    answer = answer_of(["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty=, with changes"])
    if answer.problem is not None:
        yield note("checkout", f"{CHECKOUT}; git does not tell the commit: {answer.problem}")
    else:
        yield fine("checkout", f"{CHECKOUT} at {answer.stdout.strip()}")


def check_versions() -> Iterator[Finding]:
    """Compare what is installed with the ranges of setup.cfg and with the versions that the tests ran with."""
    from packaging.version import Version

    needed, tested = _needed(CHECKOUT / "setup.cfg"), _tested(CHECKOUT / "constraints.txt")
    wrong, other = [], []
    for name, oldest in needed.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if Version(version) < Version(oldest):
            wrong.append(f"{name} {version} is older than {oldest}")
        elif name in tested and Version(version).public != tested[name]:
            other.append(f"{name} {version} (tested: {tested[name]})")
    if wrong:
        yield mend("packages", _some(wrong), INSTALL)
    elif other:
        yield note("packages", f"other versions than the tests ran with: {_some(other)}", INSTALL)
    else:
        yield fine("packages", f"the {len(needed)} that are needed, of the versions that the tests ran with")


def check_imports() -> Iterator[Finding]:
    """Say that `import data` and the like open this checkout, or they would not have come so far; name rivals."""
    rivals = packages_of_others()
    for path in rivals:
        advice = "this project needs an environment of its own, and PYTHONPATH without other projects"
        yield note("imports", f"{path} has a name of ours, and hides ours where it is found first", advice)
    if not rivals:
        yield fine("imports", f"{', '.join(OWN_PACKAGES)} are this checkout's, and nobody else's")


def check_origins() -> Iterator[Finding]:
    """Check that the heavy libraries are this environment's, not those of ~/.local or PYTHONPATH."""
    foreign = []
    homes = {str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix)}
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        if (
            spec is not None
            and spec.origin
            and not any(Path(spec.origin).resolve().is_relative_to(home) for home in homes)
        ):
            foreign.append(f"{name} from {Path(spec.origin).parent}")
    if foreign:
        advice = "export PYTHONNOUSERSITE=1, and unset PYTHONPATH, in your shell and in jobs"
        yield note("libraries", f"not this environment's: {_some(foreign)}", advice)
    elif os.environ.get("PYTHONPATH"):
        yield fine("libraries", f"this environment's, although PYTHONPATH={os.environ['PYTHONPATH']} goes first")
    else:
        yield fine("libraries", "this environment's; PYTHONPATH is not set")


def check_compiler() -> Iterator[Finding]:
    """Say which compilers there are, and the one thing that needs them."""
    found = [name for name in ("g++", "gcc", "clang") if shutil.which(name)]
    if "g++" in found or os.environ.get("CXX"):
        yield fine("compiler", f"{', '.join(found) or os.environ['CXX']}; only model.compile=true uses one")
    else:
        yield note("compiler", f"no g++ (found: {', '.join(found) or 'none'})", "only model.compile=true needs one")


def check_limits() -> Iterator[Finding]:
    """Check how many files a process may open, and whether text is UTF-8."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < MIN_OPEN_FILES:
        yield note("open files", f"{soft} a process", f"ulimit -n {MIN_OPEN_FILES if hard < 0 else hard}")
    else:
        yield fine("open files", "as many as wanted" if soft < 0 else f"{soft} a process")
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") == "utf8":
        yield fine("text", f"file names are {encoding}")
    else:
        yield note("text", f"file names are {encoding}", "export LC_ALL=C.UTF-8, else names with accents fail")


def _needed(path: Path) -> dict[str, str]:
    """Return the oldest version of each package that setup.cfg requires."""
    from configparser import ConfigParser

    from packaging.requirements import Requirement

    parser = ConfigParser()
    parser.read(path, encoding="utf-8")
    lines = parser["options"]["install_requires"].split("\n")
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {need.name.lower(): next((part.version for part in need.specifier), "0") for need in requirements}


def _tested(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.strip().lower(): version.strip() for name, _, version in pairs}


def _some(items: list[str]) -> str:
    more = f" and {len(items) - NUM_NAMED} more" if len(items) > NUM_NAMED else ""
    return ", ".join(items[:NUM_NAMED]) + more
