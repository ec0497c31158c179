"""What of an engine lies in a checkpoint, and how it comes back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from distributed.checkpoint import Found
from distributed.engine import Engine
from distributed.errors import CheckpointError
from distributed.layout import GroupLayout
from distributed.slice_file import DTYPE_NAMES
from distributed.stored_state import StoredState, slices_key

# An average's slices, one per group, by the average's name.
Averages = Mapping[str, Sequence[Tensor]]


def load_checkpoint(found: Found, engine: Engine, averages: Averages) -> None:
    """Put the state of `found` into the engine and into `averages`. Collective; any stage and world size.

    Raises: CheckpointError if its parameters are not the engine's, or an average is not in it.
    """
    stored = StoredState(found.folder, found.manifest["groups"])
    difference = _first_difference(stored.layouts, [group.layout for group in engine.groups])
    if difference:
        raise CheckpointError(f"{found.folder} {difference}: give this run another folder")
    for name in averages:
        if name not in found.manifest["averages"]:
            there = ", ".join(found.manifest["averages"]) or "none"
            raise CheckpointError(
                f"{found.folder} holds no average {name} (it holds {there}): set ema.lengths to what it holds, or give"
                " this run another folder"
            )
    for number, group in enumerate(engine.groups):
        wanted = {name: slices[number] for name, slices in averages.items()}
        stored.load(group, number, engine.slice_index, wanted)
    engine.restore(int(found.manifest["num_steps"]))


def slices_of(engine: Engine, averages: Averages) -> dict[str, Tensor]:
    """Return what this rank stores, by key: its slices of masters, moments and averages. Nothing is copied."""
    return {
        slices_key(number, kind): tensor
        for number, kinds in enumerate(_kinds_of_groups(engine, averages))
        for kind, tensor in kinds.items()
    }


def groups_of(engine: Engine, averages: Averages) -> list[dict[str, Any]]:
    """Return what a manifest says of each group: its layout, and the dtype of each kind of tensor that is stored."""
    dtypes = [
        {kind: DTYPE_NAMES[tensor.dtype] for kind, tensor in kinds.items()}
        for kinds in _kinds_of_groups(engine, averages)
    ]
    return [{**group.layout.to_json(), "dtypes": names} for group, names in zip(engine.groups, dtypes, strict=True)]


def _kinds_of_groups(engine: Engine, averages: Averages) -> Iterator[dict[str, Tensor]]:
    """Yield, for each group, this rank's slices by kind."""
    for number, group in enumerate(engine.groups):
        of_averages = {name: slices[number] for name, slices in averages.items()}
        yield {"master": group.master.data, **group.moments, **of_averages}


def _first_difference(saved: Sequence[GroupLayout], current: Sequence[GroupLayout]) -> str | None:
    """Return a clause that names the first parameter in which two layouts differ; None where none does."""
    stored = {member.name: (member, layout) for layout in saved for member in layout.members}
    wanted = {member.name: (member, layout) for layout in current for member in layout.members}
    for name, (member, layout) in wanted.items():
        if name not in stored:
            return f"has no parameter {name}, which this model has"
        other, other_layout = stored[name]
        if other.shape != member.shape:
            return f"has {name} with shape {list(other.shape)}, this run has {list(member.shape)}"
        if other_layout.optim_bits != layout.optim_bits:
            return f"has {name} with {other_layout.optim_bits}-bit moments, this run has {layout.optim_bits}-bit ones"
    surplus = sorted(stored.keys() - wanted.keys())
    return f"has parameter {surplus[0]}, which this model has not" if surplus else None
