"""Runs as the ranks of a process group: a small UNet through the engine, with checkpoints. See test_engine.py.

python -m tests.distributed.engine_scenarios ACTION FOLDER
    matrix   every cell of optimizer, ZeRO stage, precision, offload and master: trains, saves, resumes to the bit
    paged    the same for every cell whose moments CUDA pages
    save     5 steps of each of ELASTIC, saved; 3 more; and what else a process group of 2 can show
    recut    load what `save` saved at this world size, and at other stages; save it apart; 3 more steps
    memory   the peak of a process that saves, resumes and cuts anew, with 600 MB of state
    fail     the last rank fails while the averaged weights are lent
The first rank writes FOLDER/ACTION-WORLD_SIZE.json.
"""

import gc
import json
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import distributed.optimizer
from benchmarks.tensor_bytes import live_bytes
from distributed.checkpoint import find_checkpoint, named_checkpoint
from distributed.checkpoint_state import load_checkpoint, slices_of
from distributed.checkpoint_writer import CheckpointWriter
from distributed.config import CheckpointConfig, OptimizerConfig, Precision, ZeroConfig
from distributed.ema import SlicedEma, average_name, power_function_exponent
from distributed.engine import Engine
from distributed.live_bytes import PeakBytes
from distributed.memory import predicted_bytes
from distributed.paged_memory import LEAST_PAGED, is_paged
from distributed.placement import training_dtype
from distributed.rank import Rank, join_process_group, leave_process_group, rank_from_environment
from launch.failure import end_at_once
from models.trained_part import LoraConfig, TrainedPart, train_only

GLOBAL_SIZE = 12  # divisible by 1, 2, 3 and 4 ranks
LENGTHS = (0.1, 0.05)
OPTIMIZERS = ("adamw8bit", "lion8bit", "ademamix8bit", "adamw")


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    optimizer: str = "adamw8bit"
    stage: int = 2
    precision: Precision = "fp32"
    offload: str = "none"
    master: str = "fp32"
    checkpointing: bool = False
    paged: bool = False
    trains: TrainedPart = "all"
    l2_sp: float = 0.0

    def __str__(self) -> str:
        part = "" if self.trains == "all" else f"-{self.trains}"
        pull = f"-{self.l2_sp:g}" if self.l2_sp else ""
        paged = "-paged" * self.paged
        return f"{self.optimizer}-{self.stage}-{self.precision}-{self.offload}-{self.master}{part}{pull}{paged}"


# What is cut anew has several groups of matrices, as a large network has.
SMALL_GROUP = 2**15
RAGGED = 4095  # its square is no multiple of 256
ELASTIC = (
    Cell(),
    Cell("ademamix8bit", precision="bf16"),
    Cell(stage=3),
    Cell("ademamix8bit", stage=3, precision="bf16"),
    Cell(stage=0),
    Cell(stage=1, precision="bf16"),
    Cell(precision="bf16", master="stochastic"),
    Cell(offload="optimizer"),
    Cell("adamw"),
    Cell("lion8bit"),
    Cell(trains="lora", l2_sp=20),
    Cell(stage=3, trains="cross_attention", l2_sp=20),
)


def matrix() -> Iterator[Cell]:
    """Yield every cell that is not refused on this machine."""
    for optimizer in OPTIMIZERS:
        for stage in (0, 1, 2, 3):
            for precision in ("fp32", "bf16"):
                yield Cell(optimizer, stage, precision)
                if stage > 0:
                    yield Cell(optimizer, stage, precision, offload="optimizer")
            yield Cell(optimizer, stage, "bf16", master="stochastic")
    yield Cell(stage=3, checkpointing=True)
    yield from partial_matrix()


def paged_matrix() -> Iterator[Cell]:
    """Yield every cell whose moments CUDA moves to host memory and back."""
    for optimizer in OPTIMIZERS:
        for stage in (0, 1, 2, 3):
            for precision in ("fp32", "bf16"):
                yield Cell(optimizer, stage, precision, paged=True)


def partial_matrix() -> Iterator[Cell]:
    """Yield cells in which a part of the weights trains, or is pulled to where it started."""
    for stage in (0, 1, 2, 3):
        yield Cell(stage=stage, trains="lora", checkpointing=stage > 1)
        yield Cell(stage=stage, precision="bf16", trains="cross_attention", l2_sp=20)
    for stage in (2, 3):
        yield Cell(stage=stage, precision="bf16", master="stochastic", l2_sp=20)
    yield Cell(stage=3, precision="bf16", offload="optimizer", trains="lora", l2_sp=20)


def small_unet(trains: TrainedPart = "all") -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        num_class_embeds=3,  # an embedding
    )
    train_only(unet, trains, LoraConfig(rank=4), seed=1)
    return unet


def engine_of(cell: Cell, module: nn.Module, rank: Rank, accumulation_steps: int = 1) -> Engine:
    # Lion's updates are signs: it wants a smaller rate for steps of the same length.
    settings = {
        "lr": 2e-4 if cell.optimizer == "lion8bit" else 1e-3,
        "weight_decay": 0.1,
        "master": cell.master,
        "paged": cell.paged,
        "l2_sp": cell.l2_sp,
    }
    return Engine(
        module.to(training_dtype(cell.precision)),
        OptimizerConfig.model_validate({"name": cell.optimizer, **settings}),
        ZeroConfig.model_validate({"stage": cell.stage, "offload": cell.offload}),
        rank,
        precision=cell.precision,
        micro_size=GLOBAL_SIZE // rank.world_size,
        accumulation_steps=accumulation_steps,
    )


class Run:
    """An engine over the small UNet, with its averages and its losses."""

    def __init__(self, rank: Rank, cell: Cell) -> None:
        self.rank, self.cell = rank, cell
        unet = small_unet(cell.trains)
        if cell.checkpointing:
            unet.enable_gradient_checkpointing()
        self.engine = engine_of(cell, unet, rank)
        self.ema = SlicedEma([group.master for group in self.engine.groups], LENGTHS)
        self.losses: list[float] = []

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            size = GLOBAL_SIZE // self.rank.world_size
            rows = slice(self.rank.index * size, (self.rank.index + 1) * size)
            generator = torch.Generator().manual_seed(step)
            noisy = torch.randn(GLOBAL_SIZE, 4, 8, 8, generator=generator)[rows]
            target = torch.randn(GLOBAL_SIZE, 4, 8, 8, generator=generator)[rows]
            timesteps = torch.randint(0, 1000, (GLOBAL_SIZE,), generator=generator)[rows]
            text = torch.randn(GLOBAL_SIZE, 6, 16, generator=generator)[rows]
            device, dtype = self.engine.device, self.engine.dtype
            noisy, text, timesteps = noisy.to(device, dtype), text.to(device, dtype), timesteps.to(device)
            target = target.to(device)
            classes = timesteps % 3
            loss = (self.engine.network(noisy, timesteps, text, classes).sample.float() - target).square().mean()
            self.engine.accumulate(loss)
            result = self.engine.finish_micro_batch(2e-4 if self.cell.optimizer == "lion8bit" else 1e-3)
            assert result is not None
            assert not result.is_skipped
            self.ema.update(self.engine.num_steps)
            mean = loss.detach() / self.rank.world_size
            dist.all_reduce(mean)
            self.losses.append(float(mean))

    def save(self, folder: Path, step: int) -> None:
        CheckpointWriter(folder, self.engine, CheckpointConfig()).save(self.ema.slices, {"step": step})

    def load(self, folder: Path) -> None:
        found = find_checkpoint(folder)
        assert found is not None
        load_checkpoint(found, self.engine, self.ema.slices)

    def close(self) -> None:
        self.engine.close()
        del self.engine, self.ema
        gc.collect()
        assert live_bytes() < 100_000, "the next stage would find this one's state still in memory"


def all_cells(rank: Rank, folder: Path, cells: Iterable[Cell]) -> dict[str, list[float]]:
    """Train, save and resume every cell; return the losses."""
    losses = {}
    for cell in cells:
        run = Run(rank, cell)
        run.train(0, 3)
        run.save(folder / str(cell), 3)
        run.train(3, 4)
        again = Run(rank, cell)
        again.load(folder / str(cell))
        again.train(3, 4)
        assert run.losses[3:] == again.losses, cell
        state = slices_of(again.engine, again.ema.slices)
        for key, tensor in slices_of(run.engine, run.ema.slices).items():
            assert torch.equal(tensor, state[key]), f"{cell}: {key}"
        check_what_stays(run)
        check_what_stays(again)
        check_moments(run)
        check_moments(again)
        name = f"{cell}-checkpointing" if cell.checkpointing else str(cell)
        losses[name] = run.losses
        del state
        again.engine.close()
        del again
        run.close()
    return losses


def check_damage(run: Run, folder: Path) -> None:
    """A damaged checkpoint is skipped and named; the next save of its step replaces it; old ones are deleted."""
    writer = CheckpointWriter(folder, run.engine, CheckpointConfig(keep_last=2))
    for step, loss in ((1, 0.5), (2, 0.9), (3, None), (4, 0.7)):
        writer.save(run.ema.slices, {"step": step, "validation_loss": loss})
    if run.rank.is_first:
        assert sorted(path.name for path in folder.glob("step-*")) == [f"step-{step:08d}" for step in (1, 3, 4)]
        assert named_checkpoint(folder, "BEST") == folder / "step-00000001"
        slices = folder / "step-00000004" / "slices-00001-of-00002.safetensors"
        slices.write_bytes(slices.read_bytes()[:-4])
        found = find_checkpoint(folder)
        assert found is not None
        assert found.position["step"] == 3
        assert found.skipped == (f"step-00000004: {slices.name} does not match its hash",)
    dist.barrier()
    writer.save(run.ema.slices, {"step": 4, "validation_loss": 0.4})
    found = find_checkpoint(folder)
    assert found is not None
    assert found.position["step"] == 4
    if run.rank.is_first:
        assert named_checkpoint(folder, "BEST") == folder / "step-00000004"


def check_a_full_disk(run: Run, folder: Path) -> None:
    """A rank that cannot write on is an error of every rank; what was saved before is whole, nothing else is left."""
    writer = CheckpointWriter(folder, run.engine, CheckpointConfig())
    writer.save(run.ema.slices, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if run.rank.index == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    with pytest.raises(
        RuntimeError, match=r"rank 1: could not write the checkpoint .* earlier ones beside it are whole"
    ):
        writer.save(run.ema.slices, {"step": 2})
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found = find_checkpoint(folder)
    assert found is not None
    assert found.position["step"] == 1
    if run.rank.is_first:
        assert sorted(path.name for path in folder.iterdir()) == ["LATEST", "step-00000001"]


def check_async(run: Run, folder: Path) -> None:
    """A checkpoint written while training goes on holds the state of its own step; only one is on its way."""
    writer = CheckpointWriter(folder / "async", run.engine, CheckpointConfig(is_async=True, keep_last=9))
    run.save(folder / "sync", 5)
    writer.save(run.ema.slices, {"step": 5})
    if run.rank.is_first:
        assert find_checkpoint(folder / "async") is None, "it is named only once all ranks say that it is written"
    dist.barrier()
    run.train(5, 6)
    writer.poll()
    writer.save(run.ema.slices, {"step": 6})
    assert writer.newest_step == 5
    assert named_checkpoint(folder / "async", "LATEST") == folder / "async" / "step-00000005"
    writer.finish()
    writer.finish()
    assert named_checkpoint(folder / "async", "LATEST") == folder / "async" / "step-00000006"
    if run.rank.is_first:
        for name in ("slices-00000-of-00002.safetensors", "slices-00001-of-00002.safetensors"):
            left, right = (folder / kind / "step-00000005" / name for kind in ("sync", "async"))
            assert left.read_bytes() == right.read_bytes()


def check_averages(rank: Rank, cell: Cell) -> None:
    """Every average is what an average of whole weights would be."""
    run = Run(rank, cell)
    masters = [group.master for group in run.engine.groups]
    whole = {length: run.engine.gather(masters) for length in LENGTHS}
    for step in range(1, 7):
        run.train(step - 1, step)
        newest = run.engine.gather(masters)
        for length, average in whole.items():
            beta = (1 - 1 / step) ** (power_function_exponent(length) + 1)
            for name in average or {}:  # on the first rank
                assert average is not None
                assert newest is not None
                average[name] = beta * average[name] + (1 - beta) * newest[name]
    for length, average in whole.items():
        sharded = run.engine.gather(run.ema.slices[average_name(length)])
        for name in average or {}:
            assert average is not None
            assert sharded is not None
            torch.testing.assert_close(sharded[name], average[name], rtol=1e-6, atol=1e-7)
    run.engine.close()


def check_own_gradients(rank: Rank) -> None:
    """At stage 2 a rank keeps its own part alone of the gradient of a matrix in all slices, and steps as at stage 1."""
    masters = []
    for stage in (1, 2):
        torch.manual_seed(0)
        engine = engine_of(Cell("adamw", stage), nn.Linear(512, 512, bias=False), rank, accumulation_steps=2)
        for micro_batch in range(4):
            generator = torch.Generator().manual_seed(micro_batch * rank.world_size + rank.index)
            inputs = torch.randn(4, 512, generator=generator).to(engine.device)
            engine.accumulate(engine.network(inputs).square().mean())
            result = engine.finish_micro_batch(1e-3)
        assert result is not None
        assert engine.num_steps == 2
        if stage == 2:
            assert engine.state_bytes()["gradients"] == 512 * 512 * 4 / rank.world_size
        masters.append(engine.groups[0].master.detach().clone())
        engine.close()
    # Stage 1 sums micro batches first, stage 2 ranks first: rounding, of steps of 1e-3.
    torch.testing.assert_close(*masters, rtol=0, atol=1e-6)


def check_accumulation(rank: Rank) -> None:
    """At every stage, offloaded or not, two micro batches make the step that one of all their samples makes.

    What offloading keeps for it is what was predicted.
    """
    cells = [Cell("adamw", stage) for stage in range(4)]
    cells += [Cell("adamw", stage, offload="optimizer") for stage in (1, 2, 3)]
    expected = None
    for cell, accumulation_steps in [(cells[0], 1), *((cell, 2) for cell in cells)]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(256, 384, bias=False), nn.SiLU(), nn.Linear(384, 256))
        predicted = predicted_bytes(
            network,
            OptimizerConfig(name="adamw"),
            ZeroConfig.model_validate({"stage": cell.stage, "offload": cell.offload}),
            dtype=torch.float32,
            world_size=rank.world_size,
            num_averages=0,
            on_gpu=False,
            accumulation_steps=accumulation_steps,
        )
        engine = engine_of(cell, network, rank, accumulation_steps)
        for step in range(3):
            generator = torch.Generator().manual_seed(step * rank.world_size + rank.index)
            micro_batches = torch.randn(8, 256, generator=generator).to(engine.device).chunk(accumulation_steps)
            if step == 1 and accumulation_steps > 1:
                # A step whose first micro batch is bad is skipped, and leaves nothing to the next one.
                for factor, micro_batch in zip((float("nan") if rank.is_first else 1, 1), micro_batches, strict=True):
                    engine.accumulate(factor * engine.network(micro_batch).square().mean())
                    result = engine.finish_micro_batch(1e-3)
                assert result is not None
                assert result.is_skipped, cell
            for micro_batch in micro_batches:
                engine.accumulate(engine.network(micro_batch).square().mean())
                result = engine.finish_micro_batch(1e-3)
        assert result is not None
        assert engine.num_steps == 3
        measured = engine.state_bytes()
        # ZeRO-1 has given up the other ranks' gradients when the step begins.
        for kind in measured.keys() - ({"buckets", "gradients"} if cell.stage == 1 else {"buckets"}):
            assert predicted[kind] == pytest.approx(measured[kind], rel=0.01, abs=3000), f"{cell}: {kind}"
        weights = engine.gather([group.master for group in engine.groups])
        expected = expected or weights
        for name in weights or {}:
            assert weights is not None
            assert expected is not None
            torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=2e-5, msg=f"{cell}: {name}")
        engine.close()


def check_gathered(rank: Rank) -> None:
    """At stage 3 the layers that are whole at once are no more than was predicted, and not much less."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(16)))
    zero = ZeroConfig(stage=3, allgather_bucket_elements=2 * 128 * 128)
    predicted = predicted_bytes(
        network, OptimizerConfig(), zero, dtype=torch.float32, world_size=rank.world_size, num_averages=0, on_gpu=False
    )["gathered"]
    engine = Engine(network, OptimizerConfig(), zero, rank, precision="fp32", micro_size=1, accumulation_steps=1)
    parameters: list[Any] = list(network.parameters())
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, sum(4 * p.ds_numel for p in parameters if p.ds_status == ZeroParamStatus.AVAILABLE))

    for layer in network:
        layer.register_forward_pre_hook(look)
    for _ in range(4):  # DeepSpeed looks ahead once it knows the order
        engine.accumulate(engine.network(torch.ones(1, 128, device=engine.device)).square().mean())
        engine.finish_micro_batch(1e-4)
    assert predicted == 4 * 5 * 128 * 128
    assert 0.6 * predicted <= most <= predicted
    engine.close()


def check_further_micro_batches(rank: Rank) -> None:
    """At stage 2 a further micro batch's gradients join the sum one after another, and never lie beside it whole."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(16)))
    engine = Engine(
        network,
        OptimizerConfig(name="adamw"),
        ZeroConfig(stage=2, reduce_bucket_elements=256 * 256),
        rank,
        precision="fp32",
        micro_size=1,
        accumulation_steps=2,
    )
    peaks = []
    for _ in range(2):
        loss = engine.network(torch.ones(1, 256, device=engine.device)).square().mean()
        with PeakBytes(engine.device) as peak:
            engine.accumulate(loss)
        peaks.append(peak.bytes)
        engine.finish_micro_batch(1e-3)
    of_layer, of_slice = 256 * 256 * 4, 16 * 256 * 256 * 4 // rank.world_size
    assert peaks[0] > of_slice, "the first micro batch's gradients are the sum"
    # A layer that waits, one that has just been computed, and what is sent.
    assert peaks[1] < 4 * of_layer + 100_000 < of_slice
    engine.close()


def check_one_buffer_for_all_groups(run: Run) -> None:
    """Offloaded, the weights of the groups go back to the device through the same memory, one after another."""
    buffers = vars(run.engine._state)["_zero"].param_buffer_of_bit16_for_cpu_offload_groups
    assert len(buffers) == len(run.engine.groups) > 1
    assert len({buffer.data_ptr() for buffer in buffers}) == 1


def check_what_stays(run: Run) -> None:
    """Frozen weights, and those that are pulled towards, are what the model began with; a pull holds what trains."""
    began = {name: p.detach().to(run.engine.dtype) for name, p in small_unet(run.cell.trains).named_parameters()}
    parameters = {name: p for name, p in run.engine.module.named_parameters() if not p.requires_grad}
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=run.cell.stage == 3):
        for name, parameter in parameters.items():
            assert torch.equal(parameter.cpu(), began[name]), name
    trained = {member.name for group in run.engine.groups for member in group.layout.members}
    assert trained | parameters.keys() == began.keys()
    assert trained & parameters.keys() == set()
    starts = [group.start for group in run.engine.groups if group.start is not None]
    assert len(starts) == (len(run.engine.groups) if run.cell.l2_sp else 0)
    for name, start in ((run.engine.gather(starts) if starts else None) or {}).items():
        assert torch.equal(start, began[name].float()), name


def check_moments(run: Run) -> None:
    """Matrices alone have 8-bit moments, where the optimizer has any: norms, biases and embeddings have 32 bits.

    Matrices alone decay. Where the moments are paged they are, those of small slices excepted.
    """
    embeddings = {f"{name}.weight" for name, module in small_unet().named_modules() if isinstance(module, nn.Embedding)}
    assert embeddings
    seen = set()
    optimizer = vars(run.engine._state)["optimizer"]
    for settings, group in zip(optimizer.param_groups, run.engine.groups, strict=True):
        has_pages = run.cell.paged and group.master.numel() >= LEAST_PAGED
        states = [moment for kind, moment in group.moments.items() if kind.startswith("state")]
        assert {is_paged(moment) for moment in states} == {has_pages}
        for member in group.layout.members:
            is_matrix = len(member.shape) >= 2 and member.name not in embeddings
            seen.add("matrix" if is_matrix else "embedding" if member.name in embeddings else "other")
            has_8_bits = is_matrix and run.cell.optimizer != "adamw"
            assert {moment.dtype for moment in states} == {torch.uint8 if has_8_bits else torch.float32}
            assert settings["weight_decay"] == (0.1 if is_matrix else 0), member.name
            assert any(kind.startswith("absmax") for kind in group.moments) == has_8_bits
    # Of all weights each kind trains; of cross-attention and LoRA matrices, and the former's biases.
    assert seen >= ({"matrix", "embedding", "other"} if run.cell.trains == "all" else {"matrix"})


def check_parameters(run: Run) -> None:
    """What the module computes with is the master weights, in the dtype of training."""
    masters = run.engine.gather([group.master for group in run.engine.groups])
    trained = {name: p for name, p in run.engine.module.named_parameters() if p.requires_grad}
    with deepspeed.zero.GatheredParameters(list(trained.values()), enabled=run.cell.stage == 3):
        for name, master in (masters or {}).items():
            assert torch.equal(trained[name].cpu(), master.to(run.engine.dtype)), name
    assert masters is None or masters.keys() == trained.keys()


def check_lent_weights(run: Run) -> dict[str, int]:
    """The module computes with the average while it is lent, and with what it had before and after."""
    device, dtype = run.engine.device, run.engine.dtype
    inputs = (
        torch.ones(1, 4, 8, 8, device=device, dtype=dtype),
        torch.tensor([5], device=device),
        torch.ones(1, 6, 16, device=device, dtype=dtype),
        torch.tensor([1], device=device),
    )

    @torch.no_grad()
    def output() -> Tensor:
        run.engine.network.eval()  # DeepSpeed's returns nothing
        result: Tensor = run.engine.network(*inputs).sample
        return result

    before = output()
    assert run.ema.first is not None
    with PeakBytes(device) as peak, run.engine.weights_from(run.ema.first):
        pass
    assert peak.bytes == 0 or run.cell.stage > 0, "the copy lies where gradients are between two steps"
    with run.engine.weights_from(run.ema.first):
        assert not torch.equal(before, output()), "the average is not the newest weights"
    assert torch.equal(before, output())
    run.engine.network.train()
    state_bytes = run.engine.state_bytes()
    check_what_stays(run)  # which leaves nothing gathered
    return state_bytes


def check_a_bad_step(run: Run) -> None:
    """A loss that is not a number, or infinite, on one rank is a step that no rank takes; the next one is taken."""
    masters = [group.master.clone() for group in run.engine.groups]
    num_steps = run.engine.num_steps
    size = GLOBAL_SIZE // run.rank.world_size
    device, dtype = run.engine.device, run.engine.dtype
    noisy, text = torch.randn(size, 4, 8, 8, device=device, dtype=dtype), torch.ones(size, 6, 16, device=device)
    ones = torch.ones(size, dtype=torch.int64, device=device)
    for bad in (float("nan"), float("inf")):
        loss = run.engine.network(noisy, ones, text.to(dtype), ones).sample.mean()
        run.engine.accumulate(loss * (bad if run.rank.is_first else 1))
        result = run.engine.finish_micro_batch(1e-3)
        assert result is not None
        assert result.is_skipped
        assert run.engine.num_steps == num_steps
        assert all(torch.equal(old, group.master) for old, group in zip(masters, run.engine.groups, strict=True))
    run.train(0, 1)


def save(rank: Rank, folder: Path) -> dict[str, object]:
    facts: dict[str, object] = {}
    for cell in ELASTIC:
        run = Run(rank, cell)
        if cell.trains == "all":
            assert [group.layout.name for group in run.engine.groups].count("matrices") > 1
        run.train(0, 5)
        run.save(folder / f"first-{cell}", 5)
        check_parameters(run)
        if cell.offload == "optimizer":
            check_one_buffer_for_all_groups(run)
        run.train(5, 8)
        facts[str(cell)] = run.losses
        facts[f"bytes-{cell}"] = check_lent_weights(run)
        check_a_bad_step(run)
        run.close()
    run = Run(rank, Cell())
    run.train(0, 5)
    check_damage(run, folder / "damaged")
    check_a_full_disk(run, folder / "full")
    check_async(run, folder)
    run.close()
    for cell in (Cell(), Cell(stage=0), Cell(stage=3), Cell(stage=1, precision="bf16", master="stochastic")):
        check_averages(rank, cell)
    check_own_gradients(rank)
    check_accumulation(rank)
    check_further_micro_batches(rank)
    check_gathered(rank)
    return facts


def recut(rank: Rank, folder: Path) -> dict[str, object]:
    facts: dict[str, object] = {}
    others = [(cell, cell) for cell in ELASTIC]
    if rank.world_size == 3:
        others += [(Cell(), Cell(stage=stage)) for stage in (0, 1, 3)] + [(Cell(stage=3), Cell())]
    for saved, cell in others:
        run = Run(rank, cell)
        run.load(folder / f"first-{saved}")
        check_parameters(run)
        run.save(folder / f"recut-{rank.world_size}-{saved}-as-{cell.stage}", 5)
        run.train(5, 8)
        check_what_stays(run)
        facts[f"{saved}-as-{cell.stage}"] = run.losses
        run.close()
    return facts


def memory(rank: Rank, folder: Path) -> dict[str, object]:
    """Return, MB, this process's peaks until a save and a load, and what an asynchronous save and a recut one make."""
    engine = engine_of(Cell(precision="bf16"), ragged_network(), rank)
    ema = SlicedEma([group.master for group in engine.groups], [0.1])
    facts: dict[str, object] = {}
    ones = torch.ones(1, RAGGED, device=engine.device, dtype=torch.bfloat16)
    for step in (1, 2):
        engine.accumulate(engine.network(ones).float().square().mean())
        engine.finish_micro_batch(1e-4)
        ema.update(step)
    tensors = slices_of(engine, ema.slices)
    facts["state"] = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    facts["trained"] = peak_mb()
    CheckpointWriter(folder / "memory", engine, CheckpointConfig()).save(ema.slices, {"step": 2})
    facts["saved"] = peak_mb()
    found = find_checkpoint(folder / "memory")
    assert found is not None
    load_checkpoint(found, engine, ema.slices)
    facts["loaded"] = peak_mb()
    writer = CheckpointWriter(folder / "memory-async", engine, CheckpointConfig(is_async=True))
    with PeakBytes(engine.device) as of_copy:
        for step in (3, 4):
            writer.save(ema.slices, {"step": step})
        writer.finish()
    facts["copied"] = of_copy.bytes / 1e6
    engine.close()
    engine = engine_of(Cell(precision="bf16", stage=3), ragged_network(), rank)
    assert any(not group.layout.is_aligned for group in engine.groups), "blocks are quantised anew"
    ema = SlicedEma([group.master for group in engine.groups], [0.1])
    with PeakBytes(engine.device) as of_load:
        load_checkpoint(found, engine, ema.slices)
    facts["recut"] = of_load.bytes / 1e6
    engine.close()
    return facts


def ragged_network() -> nn.Module:
    """Return a network of 67 million parameters, of which none has a whole number of quantisation blocks."""
    return nn.Sequential(*(nn.Linear(RAGGED, RAGGED, bias=False) for _ in range(4)))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def fail(rank: Rank) -> None:
    run = Run(rank, Cell())
    assert run.ema.first is not None
    with run.engine.weights_from(run.ema.first):
        if rank.index == rank.world_size - 1:
            raise ArithmeticError("this rank alone")


def main(action: str, folder: Path) -> None:
    rank = rank_from_environment()
    join_process_group()
    # What the imports made stays: to go through it took a third of the time of every cell, which collects to count.
    gc.freeze()
    facts: object = None
    if action in ("save", "recut"):
        distributed.optimizer.LEAST_ELEMENTS = SMALL_GROUP
    match action:
        case "matrix":
            facts = all_cells(rank, folder, matrix())
        case "paged":
            facts = all_cells(rank, folder, paged_matrix())
        case "save":
            facts = save(rank, folder)
        case "recut":
            facts = recut(rank, folder)
        case "memory":
            facts = memory(rank, folder)
        case "fail":
            fail(rank)
    if rank.is_first:
        (folder / f"{action}-{rank.world_size}.json").write_text(json.dumps(facts))
    leave_process_group()
    end_at_once(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
