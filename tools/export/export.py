"""The export command: a model in one of three forms, whole or not at all, and never over something else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from launch.training_data import training_of
from models.errors import ModelError
from tools.export.bundle import write_bundle, write_zip
from tools.export.model_card import LABELS
from tools.export.parity import Parity
from tools.export.source import Source, open_source
from tools.export.stored_weights import Precision

Form = Literal["diffusers", "single-file", "onnx"]


def export(
    source: str, out: Path, form: Form, *, precision: Precision = "fp32", single_file_config: str | None = None
) -> str:
    """Write `source` to `out` and return what to tell of it. See `open_source` for what a source is.

    Raises: ModelError if there is something at `out`, or the model cannot have this form.
    """
    if out.exists():
        raise ModelError(f"{out} is there already: remove it, or give another name")
    opened = open_source(source, single_file_config)
    with unfinished_beside(out) as folder:
        parity = write_bundle(opened, folder / "bundle", precision)
        if out.suffix == ".zip":
            write_zip(folder / "bundle", folder / out.name)
            publish(folder / out.name, out)
        else:
            publish(folder / "bundle", out)
    return table(parity)


@contextmanager
def unfinished_beside(out: Path) -> Iterator[Path]:
    """Yield a new folder on the disk of `out` that is gone afterwards, whatever happens."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(made: Path, out: Path) -> None:
    made.rename(out)


def table(parity: Parity) -> str:
    lines = [
        f"{LABELS[key]:32} {error:10.3g} {parity.limits[key]:10.3g}"
        for key, error in parity.errors.items()
        if error is not None
    ]
    return "\n".join([*lines, f"mean levels {parity.mean_levels:.3g}"])
