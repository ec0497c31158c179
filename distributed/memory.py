"""What training takes on one rank, in bytes by kind: predicted from shapes alone, and measured."""

import resource
from collections.abc import Sequence

import torch
from torch import nn

from distributed.blockwise import CPU_CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, STOCHASTIC_CHUNK_BYTES
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.ema import SlicedEma
from distributed.engine import Engine
from distributed.layout import QUANTISATION_BLOCK, GroupLayout, each_layout, whole_layout
from distributed.optimizer import bucket_elements, parameter_groups
from distributed.placement import bytes_by_kind
from distributed.zero.deepspeed import PERSISTENT_ELEMENTS, live_elements
from distributed.zero.partitioning import shares_masters

# Moments an optimizer keeps of each element.
_NUM_MOMENTS = {"adamw8bit": 2, "adamw": 2, "lion8bit": 1, "ademamix8bit": 3}


def predicted_bytes(
    module: nn.Module,
    optimizer: OptimizerConfig,
    zero: ZeroConfig,
    *,
    dtype: torch.dtype,
    world_size: int,
    num_averages: int,
    on_gpu: bool,
    accumulation_steps: int = 1,
) -> dict[str, int]:
    """Return the bytes that each kind of training state takes on one rank; on a GPU those with "host" in host memory.

    module: its shapes, and what requires a gradient, alone count, so it may be on the meta device. Kinds: parameters
    (those that train), frozen (the others), gradients, master, start (for L2-SP), optimizer, ema, buckets (the most
    that summing gradients or a step takes in passing, without what a kernel takes while it runs: 20 MB of
    bitsandbytes' on a CPU), gathered (with ZeRO-3 on several ranks: the most that layers hold whole at once, while they
    are computed), offload (with ZeRO-1 and 2: through what gradients and weights go to the host and back, and with
    ZeRO-2 the sums of a global batch's gradients so far); frozen and start only where there are some. Activations are
    not the engine's. accumulation_steps: micro batches per optimizer step.
    """
    size = dtype.itemsize
    divisor = QUANTISATION_BLOCK * world_size if zero.stage == 3 else 1
    groups = parameter_groups(module, optimizer, divisor)
    num_slices = 1 if zero.stage == 0 else world_size
    layouts = [(each_layout if zero.stage == 3 else whole_layout)(group, num_slices) for group in groups]
    whole = sum(layout.numel for layout in layouts)
    slices = sum(layout.slice_numel for layout in layouts)
    persistent = sum(p.numel() for p in module.parameters() if p.requires_grad and p.numel() <= PERSISTENT_ELEMENTS)
    is_offloaded = zero.offload == "optimizer"
    master_size = 0 if shares_masters(optimizer, zero, dtype) else 4
    host = ", host" if is_offloaded and on_gpu else ""
    frozen = [p.numel() for p in module.parameters() if not p.requires_grad]
    if zero.stage == 3:
        frozen = [-(-numel // world_size) + numel * (numel <= PERSISTENT_ELEMENTS) for numel in frozen]
    kinds = {
        "parameters": size * (slices + persistent if zero.stage == 3 else whole),
        **({"frozen": size * sum(frozen)} if frozen else {}),
        **({f"start{host}": size * slices} if optimizer.l2_sp > 0 else {}),
        "gradients": size * (whole if zero.stage < 2 else slices),
        f"master{host}": master_size * slices,
        f"optimizer{host}": sum(_moment_bytes(layout, optimizer) for layout in layouts),
        "ema" + host: 4 * slices * num_averages,
    }
    if zero.stage == 3 and world_size > 1:
        kinds["gathered"] = size * _gathered_elements(module, zero)
    if is_offloaded:
        # DeepSpeed keeps the gradients of the step in float32 where the step is, and of ZeRO-3 its flat buffer too.
        kinds["gradients"] *= zero.stage == 1
        kinds["gradients" + host] = kinds.get("gradients" + host, 0) + (size * (zero.stage == 3) + 4) * slices
    largest = max(member.numel for layout in layouts for member in layout.members)
    if is_offloaded and zero.stage < 3:
        back = max(layout.slice_numel for layout in layouts)
        sums = _touched_elements(layouts) if zero.stage == 2 and accumulation_steps > 1 else 0
        kinds["offload"] = size * largest
        kinds["offload" + host] = kinds.get("offload" + host, 0) + size * (largest + back + sums)
    copies = 0
    if not is_offloaded:
        copies = max(_copy_bytes(layout, zero, size, master_size) for layout in layouts)
    if optimizer.master == "stochastic":
        largest_slice = max(layout.slice_numel for layout in layouts)
        copies += STOCHASTIC_CHUNK_BYTES * min(GPU_CHUNK_ELEMENTS if on_gpu else CPU_CHUNK_ELEMENTS, largest_slice)
    # ZeRO-3, and offloading, take each gradient's norm in float64.
    norm = 8 * (largest // num_slices) if zero.stage == 3 or is_offloaded else 0
    # After a step of ZeRO-3 those that stay gathered are gathered anew, all at once.
    again = size * sum(numel for p in module.parameters() if (numel := p.numel()) <= PERSISTENT_ELEMENTS)
    buffers = size * _buffer_elements(bucket_elements(module, zero), layouts, zero)
    kinds["buckets"] = max(buffers, copies, norm, again if zero.stage == 3 else 0)
    return kinds


def measured_bytes(engine: Engine, ema: SlicedEma) -> dict[str, int]:
    """Return the bytes that each kind holds on this rank, and the process's peak.

    Keys: those of `Engine.state_bytes`, ema, and peak (on CUDA: most allocated on the device; on CPU: most resident).
    """
    averages = bytes_by_kind({"ema": [slice_ for slices in ema.slices.values() for slice_ in slices]}, engine.device)
    return {**engine.state_bytes(), **averages, "peak": _peak_bytes(engine)}


def _copy_bytes(layout: GroupLayout, zero: ZeroConfig, size: int, master_size: int) -> int:
    """Return what a group's gradients are copied to in a step: one vector, unless they are one, and one in float32."""
    is_joined = zero.stage > 0 and len(layout.members) > 1
    return layout.slice_numel * (size * is_joined + master_size)


def _buffer_elements(bucket: int, layouts: Sequence[GroupLayout], zero: ZeroConfig) -> int:
    """Return the elements of the buffers in which gradients are summed."""
    if zero.stage == 0:
        return 0
    joined = min(bucket, sum(member.numel for layout in layouts for member in layout.members))
    # ZeRO-3, and offloading, fill a buffer that is there from the start; ZeRO-1 and 2 join what there is.
    kept = bucket if zero.stage == 3 or zero.offload == "optimizer" else 0
    return kept + (joined if zero.stage < 3 else 0)


def _gathered_elements(module: nn.Module, zero: ZeroConfig) -> int:
    """Return the most elements that ZeRO-3 gathers at once and gives up after use.

    Ahead of their use as many as `deepspeed_config` lets live; the layer of its turn may be larger.
    """
    divided = [p.numel() for p in module.parameters() if p.numel() > PERSISTENT_ELEMENTS]
    return min(sum(divided), live_elements(zero) + max(divided, default=0))


def _touched_elements(layouts: Sequence[GroupLayout]) -> int:
    """Return the elements of the parameters of which a rank's slices hold some; of the rank with the most."""
    sizes = {member.name: member.numel for layout in layouts for member in layout.members}
    ranks = range(layouts[0].num_slices)
    return max(sum(sizes[piece.name] for layout in layouts for piece in layout.pieces(rank)) for rank in ranks)


def _moment_bytes(layout: GroupLayout, optimizer: OptimizerConfig) -> int:
    """Return the bytes of one group's moments: codes and scales, or 32 bits."""
    numel = layout.slice_numel
    if layout.optim_bits == 32:
        return 4 * numel * _NUM_MOMENTS[optimizer.name]
    return (numel + 4 * -(-numel // QUANTISATION_BLOCK)) * _NUM_MOMENTS[optimizer.name]


def _peak_bytes(engine: Engine) -> int:
    if engine.device.type == "cuda":
        return max(engine.earlier_peak_bytes, torch.cuda.max_memory_allocated(engine.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
