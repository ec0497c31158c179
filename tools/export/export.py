"""The export command: a model in one of three forms, whole or not at all, and never over something else."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch.lineage import LINEAGE_FILE
from launch.training_data import training_of
from models.controlnet import load_control_pipeline
from models.durable import flush
from models.errors import ModelError
from models.merging.source import stored_places
from models.record import RECORD_FILE
from models.single_file import save_controlnet_file, save_single_file
from models.stable_diffusion import load_pipeline
from models.weights import weight_files
from tools.export.bundle import write_bundle, write_zip
from tools.export.model_card import model_card
from tools.export.parity_table import parity_table
from tools.export.source import Source, open_source
from tools.export.stored_weights import Precision

if TYPE_CHECKING:
    import torch

Form = Literal["diffusers", "single-file", "onnx"]


def export(
    source: str, out: Path, form: Form, *, precision: Precision | None = None, single_file_config: str | None = None
) -> str:
    """Write `source` to `out` and return what to tell of it. See `open_source` for what a source is.

    precision: of the weights in a bundle; None: fp32. Other forms keep the source's own.
    Raises: ModelError if there is something at `out`, or the model cannot have this form; then nothing is left there.
    """
    if out.exists() or out.is_symlink():
        raise ModelError(f"{out} is there already: remove it, or give another name")
    if precision is not None and form != "onnx":
        warnings.warn(f"--precision is ignored: {form} keeps the numbers as they are stored", stacklevel=2)
    opened = open_source(source, single_file_config)
    if form == "single-file":
        return _export_single_file(opened, out)
    with _unfinished_beside(out) as folder:
        if form == "diffusers":
            _write_diffusers(opened, folder / "model")
            _publish({out: folder / "model"})
            return f"{out}   (a diffusers folder: from_pretrained loads it, and a run starts from it with model.base)"
        parity = write_bundle(opened, folder / "bundle", precision or "fp32")
        made = folder / "bundle"
        if out.suffix == ".zip":
            made = folder / out.name
            write_zip(folder / "bundle", made)
        _publish({out: made})
    return f"{parity_table(parity)}\n{out}   (sonoshard sample {out} draws images, or python sample.py in it, unpacked)"


def _write_diffusers(source: Source, folder: Path) -> None:
    """Write the whole pipeline, with its ControlNet where it has one, its record and its card."""
    load = load_control_pipeline if source.has_controlnet else load_pipeline
    pipeline = load(source.config, "cpu", _stored_dtype(source))
    # diffusers puts 1 in its place when it loads, and warns that it does.
    if pipeline.scheduler.config.get("steps_offset") == 0:
        pipeline.scheduler.register_to_config(steps_offset=1)
    pipeline.save_pretrained(folder)
    for name in (RECORD_FILE, LINEAGE_FILE):
        if source.base.single_file is None and (source.base.folder / name).is_file():
            shutil.copyfile(source.base.folder / name, folder / name)
    (folder / "README.md").write_text(_card(source), encoding="utf-8")


def _export_single_file(source: Source, out: Path) -> str:
    """Write OUT, the ControlNet beside it as NAME-controlnet.safetensors, and the card as NAME.md."""
    if out.suffix != ".safetensors":
        raise ModelError(f"{out} is no name for a single file; needed is one that ends in .safetensors")
    if source.base.single_file is not None:
        raise ModelError(f"{source.config.base} is a single file already: copy it, or export another form")
    controlnet = out.with_name(f"{out.stem}-controlnet.safetensors")
    card = out.with_suffix(".md")
    targets = [card, *([controlnet] if source.has_controlnet else []), out]
    if there := [path for path in targets if path.exists()]:
        raise ModelError(f"{there[0]} is there already: remove it, or give another name")
    with _unfinished_beside(out) as folder:
        (folder / card.name).write_text(_card(source), encoding="utf-8")
        if source.has_controlnet:
            save_controlnet_file(source.base.folder, folder / controlnet.name)
        save_single_file(source.base.folder, folder / out.name)
        for name in (controlnet.name, out.name):  # the library writes them for their owner alone
            if (folder / name).exists():
                (folder / name).chmod((folder / card.name).stat().st_mode)
        _publish({target: folder / target.name for target in targets})
    beside = f"\n{controlnet}   (its ControlNet)" if source.has_controlnet else ""
    return f"{out}   (for A1111, ComfyUI, stable-diffusion.cpp){beside}"


def _card(source: Source) -> str:
    return model_card(source, training_of(source.record, source.name))


def _stored_dtype(source: Source) -> torch.dtype:
    """Return float32, or float16 where no part is stored in more."""
    import torch

    base = source.base
    parts = ("unet", "vae", "text_encoder", *(("controlnet",) if source.has_controlnet else ()))
    files = [base.single_file] if base.single_file else []
    files = files or [path for part in parts for path in weight_files(base.folder, part).paths]
    # In a single file names without a dot are the noise schedule's, float32 in any model.
    found = [place.stored.dtype for file in files for name, place in stored_places(file).items() if "." in name]
    dtypes = {dtype for dtype in found if dtype.startswith("F")}
    return torch.float16 if dtypes == {"F16"} else torch.float32


@contextmanager
def _unfinished_beside(out: Path) -> Iterator[Path]:
    """Yield a new folder on the disk of `out` that is gone afterwards, whatever happens."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(made: Mapping[Path, Path]) -> None:
    """Put what was made, by where it is to lie, onto the disk and then there, the last of it last."""
    for path in made.values():
        for one in [*(path.rglob("*") if path.is_dir() else ()), path]:
            flush(one)
    for target, path in made.items():
        path.rename(target)
        flush(target.parent)
