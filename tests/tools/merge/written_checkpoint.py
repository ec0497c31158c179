"""A checkpoint written by hand, as two ranks would have: reading one needs no engine, nor does a test of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distributed.checkpoint import FORMAT_VERSION, publish, slices_name
from distributed.layout import GroupLayout, each_layout, whole_layout
from distributed.slice_file import write_slices
from distributed.stored_state import slices_key
from launch.config import RunConfig
from launch.facts import facts_of_part
from launch.record import write_record
from launch.stage_config import StageConfig

NUM_SLICES = 2
STEP = 7


def write_checkpoint(config: RunConfig, stage: StageConfig, kinds: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write the tensors that trained, by kind (`master`, `ema@0.1`), and the run's configuration; return the folder.

    Half of the tensors are cut as ZeRO-3 cuts them, the others as ZeRO-2 does.
    """
    write_record(config)
    folder = config.stage_path(stage) / "checkpoints" / f"step-{STEP:08d}"
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True)
    names = sorted(next(iter(kinds.values())))
    layouts = []
    for make, chosen in ((whole_layout, names[::2]), (each_layout, names[1::2])):
        parameters = [nn.Parameter(next(iter(kinds.values()))[name]) for name in chosen]
        group: dict[str, Any] = {"name": make.__name__, "param_names": chosen, "params": parameters, "optim_bits": 8}
        layouts.append(make(group, NUM_SLICES))
    files = {}
    for index in range(NUM_SLICES):
        tensors = {
            slices_key(number, kind): _slice(layout, index, state)
            for number, layout in enumerate(layouts)
            for kind, state in kinds.items()
        }
        name = slices_name(index, NUM_SLICES)
        files[name] = write_slices(partial / name, tensors)
    facts = {"stage": stage.name, "kind": stage.kind, "prediction_type": "epsilon", **facts_of_part(stage)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "num_steps": STEP,
        "averages": [kind for kind in kinds if kind != "master"],
        "position": {"step": STEP, "facts": facts},
        "groups": [layout.to_json() for layout in layouts],
        "files": files,
    }
    publish(partial, folder, manifest)
    return folder


def _slice(layout: GroupLayout, index: int, state: Mapping[str, Tensor]) -> Tensor:
    values = torch.zeros(layout.slice_numel)
    for piece in layout.pieces(index):
        values[piece.at : piece.at + piece.stop - piece.start] = state[piece.name].flatten()[piece.start : piece.stop]
    return values
