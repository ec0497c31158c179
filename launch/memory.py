"""What a run will take on each rank, predicted from its configuration alone: `sonoshard memory`."""

from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table

from distributed.config import refuse_impossible
from distributed.memory import predicted_bytes
from distributed.placement import training_dtype
from launch.activations import activation_bytes
from launch.config import RunConfig
from launch.networks import empty_trained
from launch.stage_config import StageConfig
from models.base import text_shape
from models.stable_diffusion import empty_unet

# What was computed in this process, by all that it depends on.
_ACTIVATIONS: dict[str, int] = {}


def predict(
    config: RunConfig, world_size: int, dtype: torch.dtype, *, on_gpu: bool, stage: StageConfig | None = None
) -> dict[str, int]:
    """Return the bytes of each kind on one rank, `activations` among them; nothing is allocated.

    stage: says what trains, by which optimizer; None: the first.
    Raises: EngineError for settings that do not go together; ModelError if the base is not on this machine.
    """
    stage = stage or config.stages[0]
    optimizer = config.stage_optimizer(stage)
    refuse_impossible(optimizer, config.zero, is_bf16=dtype == torch.bfloat16, has_gpu=on_gpu)
    state = predicted_bytes(
        empty_trained(config.model, stage),
        optimizer,
        config.zero,
        dtype=dtype,
        world_size=world_size,
        num_averages=len(config.ema.lengths),
        on_gpu=on_gpu,
        accumulation_steps=config.batch.global_size // (config.batch.micro_size * world_size),
    )
    activations = _activations(config, stage, dtype)
    if stage.has_hints:
        state["frozen"] = dtype.itemsize * sum(p.numel() for p in empty_unet(config.model).parameters())
    return {**state, "activations": activations}


def _activations(config: RunConfig, stage: StageConfig, dtype: torch.dtype) -> int:
    """Return the bytes of activations. They go by architecture and settings, which the stages of a run mostly share."""
    settings = config.model.model_dump(exclude={"base", "single_file_config"}), config.batch.micro_size, stage.has_hints
    part = stage.trains, stage.lora.model_dump() if stage.lora else None
    key = repr((sorted(empty_unet(config.model).config.items()), text_shape(config.model), settings, part, dtype))
    if key not in _ACTIVATIONS:
        _ACTIVATIONS[key] = activation_bytes(
            config.model,
            micro_size=config.batch.micro_size,
            dtype=dtype,
            trains=stage.trains,
            lora=stage.lora,
            has_hints=stage.has_hints,
        )
    return _ACTIVATIONS[key]


def print_prediction(config: RunConfig, world_size: int) -> None:
    """Print a table of what each rank takes, with and without gradient checkpointing, for each kind of stage."""
    # The question is asked on a login node about a GPU.
    dtype = training_dtype(config.precision, on_gpu=True)
    configs = {
        is_on: config.model_copy(update={"model": config.model.model_copy(update={"gradient_checkpointing": is_on})})
        for is_on in (False, True)
    }
    told: list[dict[bool, dict[str, int]]] = []
    copies: list[int] = []
    for stage in config.stages:
        kinds = {is_on: predict(one, world_size, dtype, on_gpu=True, stage=stage) for is_on, one in configs.items()}
        if kinds not in told:
            told.append(kinds)
            copies.append(saved_bytes(config, kinds[False], world_size))
            Console().print(_table(config, stage, world_size, dtype, kinds))
    print(
        "* as the configuration sets it. Beside it a GPU holds CUDA itself (about 500 MB) and what its allocator loses"
        " to fragments."
    )
    if config.checkpoint.is_async:
        print(
            f"An asynchronous save copies up to {_mb(max(copies))} MB of each rank to host memory until it is written."
        )


def saved_bytes(config: RunConfig, kinds: Mapping[str, int], world_size: int) -> int:
    """Return the bytes of a rank's slices that a checkpoint holds: masters, moments and averages.

    kinds: what was predicted for it. At stage 0 the first rank alone saves.
    """
    on_either = {kind: kinds.get(kind, 0) + kinds.get(f"{kind}, host", 0) for kind in ("master", "optimizer", "ema")}
    if on_either["master"] == 0:  # weights are their own master; ZeRO-1 and 2 hold them whole
        on_either["master"] = kinds["parameters"] // (world_size if config.zero.stage in (1, 2) else 1)
    return sum(on_either.values())


def _table(
    config: RunConfig, stage: StageConfig, world_size: int, dtype: torch.dtype, kinds: dict[bool, dict[str, int]]
) -> Table:
    """Return the table of one stage. kinds: bytes by kind, without and with gradient checkpointing."""
    trains = {"all": "", "lora": ", trains LoRA", "cross_attention": ", trains cross-attention"}[stage.trains]
    title = (
        f"MB on each of {world_size} rank{'s' * (world_size > 1)}: {config.model.base}, {str(dtype).split('.')[1]},"
        f" {config.stage_optimizer(stage).name}, ZeRO {config.zero.stage}, micro batch {config.batch.micro_size}"
        f"{trains}{', ControlNet' * stage.has_hints}{f' (stage {stage.name})' * (len(config.stages) > 1)}"
    )
    table = Table("kind", title=title, title_justify="left")
    for is_on in kinds:
        mark = " *" if is_on == config.model.gradient_checkpointing else ""
        table.add_column(("checkpointing" if is_on else "no checkpointing") + mark, justify="right")
    for kind in kinds[False]:
        table.add_row(kind, *(_mb(bytes_by_kind[kind]) for bytes_by_kind in kinds.values()))
    table.add_section()
    for place in ("GPU", "host"):
        totals = [_total(bytes_by_kind, place) for bytes_by_kind in kinds.values()]
        if any(totals):
            table.add_row(f"total, {place}", *map(_mb, totals))
    return table


def compared(predicted: Mapping[str, int], measured: Mapping[str, int]) -> str:
    """Return a line of MB by kind, predicted and measured."""
    pairs = [
        f"{kind} {_mb(value)} / {_mb(measured[kind]) if measured.get(kind) else 'not measured'}"
        for kind, value in predicted.items()
        if value or measured.get(kind)
    ]
    return f"MB predicted / measured: {', '.join(pairs)}"


def listed_mb(measured: Mapping[str, int]) -> str:
    """Return a line of MB by kind, measured alone."""
    return f"MB measured: {', '.join(f'{kind} {_mb(value)}' for kind, value in measured.items() if value)}"


def _total(bytes_by_kind: dict[str, int], place: str) -> int:
    return sum(value for kind, value in bytes_by_kind.items() if kind.endswith(", host") == (place == "host"))


def _mb(value: int) -> str:
    return f"{value / 1e6:,.1f}"
