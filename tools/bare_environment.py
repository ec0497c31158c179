"""A Python environment that holds what the sampler needs and nothing else, made without a network."""

import venv
from importlib.metadata import distribution
from pathlib import Path

# As they are named in the package index.
PACKAGES = ("onnxruntime", "numpy", "pillow", "tokenizers")


def bare_python(folder: Path) -> Path:
    """Make an environment in `folder`, replacing what is there, and return its Python.

    The packages are links to those of this environment. Raises: PackageNotFoundError if one of them is not here.
    """
    builder = venv.EnvBuilder(clear=True, symlinks=True)
    builder.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in PACKAGES:
        installed = distribution(name)
        # Commands lie outside (`../../../bin/...`), and are not wanted.
        tops = {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            (site / top).symlink_to(Path(str(installed.locate_file(top))).resolve())
    return folder / "bin" / "python"
