"""Whether the import names of this project (`data`, `models`, ...) mean this checkout. Needs nothing but Python."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
OWN_PACKAGES = ("data", "models", "distributed", "launch", "evaluation", "sampler", "tools")


def packages_from_elsewhere() -> dict[str, str | None]:
    """Return which of the project's packages come from another place, and from where; None: they are not found."""
    places = {name: _place(name) for name in OWN_PACKAGES}
    return {name: place for name, place in places.items() if place != str(CHECKOUT / name)}


def packages_of_others() -> list[Path]:
    """Return the packages of the same names elsewhere on sys.path, which another way of starting may find first."""
    found = []
    for entry in dict.fromkeys(Path(entry or ".").resolve() for entry in sys.path):
        for name in OWN_PACKAGES if entry != CHECKOUT else ():
            paths = (entry / name / "__init__.py", entry / f"{name}.py")
            found += [path for path in paths if path.is_file()]
    return found


def how_to_import_ours(place: str | None) -> str:
    """Return what makes a name mean this checkout that opens `place` now; None: nothing."""
    if place is None:
        return f"install this checkout again, by: pip install -c constraints.txt -e {CHECKOUT}"
    if "site-packages" in place or "dist-packages" in place:
        return f"pip uninstall the package that brought {place}; this project needs an environment of its own"
    return f"take {Path(place).parent} out of PYTHONPATH, or cd {CHECKOUT} first"


def tell_elsewhere(elsewhere: Mapping[str, str | None]) -> str:
    """Return what `packages_from_elsewhere` found and what to do, a line each."""
    lines = [
        f"X `import {name}` opens {place or 'nothing'}, not {CHECKOUT / name}\n  -> {how_to_import_ours(place)}"
        for name, place in elsewhere.items()
    ]
    things = "1 thing" if len(lines) == 1 else f"{len(lines)} things"
    return "\n".join([*lines, f"{things} to mend; nothing else can be looked at before"])


def _place(name: str) -> str | None:
    """Return the folder or file that `import name` opens; None if there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))).resolve())
    return str(Path(spec.origin).resolve()) if spec.origin else None
