"""The environment that the demo's sampler runs in has the four packages, and not one more."""

import subprocess
from pathlib import Path

from tools.bare_environment import bare_python

IMPORTS = "import numpy, onnxruntime, PIL.Image, tokenizers"
FINDS = (
    "import importlib.util as u; print([name for name in ('torch', 'diffusers', 'yaml', 'pip') if u.find_spec(name)])"
)


def test_it_holds_the_four_packages_alone(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "bare")
    said = subprocess.run(
        [python, "-c", f"{IMPORTS}; {FINDS}"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert said.stdout.strip() == "[]"
    bare_python(tmp_path / "bare")  # and again, where there is one
