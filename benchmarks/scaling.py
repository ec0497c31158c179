"""Scaling on paper: `python -m benchmarks.scaling` writes the tables of docs/scaling.md. Nothing is measured; seconds.

Bytes and messages of a step follow from the code: what distributed/zero sends, and what DeepSpeed 0.19 sends for it
(`runtime/zero/stage_1_and_2.py`, average_tensor: gradients are summed by all-reduce; `runtime/utils.py`,
all_gather_dp_groups: one all-gather a group; `runtime/zero/stage3.py`). Speeds and latencies are assumptions, named so.
Sources: Rajbhandari et al. 2020 (arXiv:1910.02054), section 7; Thakur, Rabenseifner & Gropp 2005
(doi:10.1177/1094342005051521) for the rings; Sanders, Speck & Traeff 2009 (doi:10.1016/j.parco.2009.09.001) for trees.
"""

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.gpu_table import KINDS, configuration, state_kinds
from benchmarks.written_table import markdown_table, write_into
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.optimizer import bucket_elements, parameter_groups
from distributed.zero.deepspeed import PERSISTENT_ELEMENTS
from launch.networks import empty_trained

PAGE = Path("docs/scaling.md")
STAGES = (0, 1, 2, 3)
NUM_GPUS = (8, 64, 512)
MICRO_SIZE = 8
ELEMENT_BYTES = 2  # bf16 weights and gradients

# Assumed: Stable Diffusion 1.5's UNet on one H100 at 512 pixels, micro batch 8, bf16, without checkpointing.
IMAGES_PER_S = 15.0
# Assumed: GB/s one way out of a node (or a GPU, of NVLink), and the share of it that collectives reach.
LINKS_GB_PER_S = {
    "25 Gbit/s": 3.125,
    "100 Gbit/s": 12.5,
    "200 Gbit/s": 25.0,
    "400 Gbit/s": 50.0,
    "8 x 400 Gbit/s": 400.0,
    "NVLink": 450.0,
}
REACHED = 0.8
HOP_S = 5e-6  # assumed: from one GPU to the next, whatever lies between
WANTED = 0.9  # of the time spent computing


@dataclass(frozen=True)
class Collective:
    """Messages of one kind in a step. bytes: of the whole vector, summed over messages; every_micro_batch: or once."""

    kind: str  # all-reduce, all-gather, reduce-scatter
    num_messages: int
    bytes: int
    every_micro_batch: bool

    def sent_bytes(self, num_gpus: int) -> float:
        """Return what each GPU sends: in a ring (N - 1) / N of the vector, twice for an all-reduce."""
        return (2 if self.kind == "all-reduce" else 1) * (num_gpus - 1) / num_gpus * self.bytes

    def time_s(self, num_gpus: int, bytes_per_s: float) -> float:
        """Return what all messages take: ring, or for an all-reduce the faster of ring and tree."""
        hops = num_gpus - 1
        if self.kind != "all-reduce":
            return self.num_messages * hops * HOP_S + self.sent_bytes(num_gpus) / bytes_per_s
        ring = self.num_messages * 2 * hops * HOP_S + self.sent_bytes(num_gpus) / bytes_per_s
        tree = self.num_messages * 2 * math.ceil(math.log2(num_gpus)) * HOP_S + 2 * self.bytes / bytes_per_s
        return min(ring, tree)


def num_buckets(sizes: list[int], bucket_elements: int) -> int:
    """Return the buckets that gradients of `sizes` fill: one that does not fit begins the next."""
    buckets, filled = 0, 0
    for size in sizes:
        if filled and filled + size > bucket_elements:
            buckets, filled = buckets + 1, 0
        filled += size
    return buckets + bool(filled)


def collectives(module: nn.Module, zero: ZeroConfig) -> list[Collective]:
    """Return what a step of a module sends, without scalars (norms, the loss, the request to stop)."""
    sizes = [p.numel() for p in module.parameters()]
    whole = ELEMENT_BYTES * sum(sizes)
    groups = len(parameter_groups(module, OptimizerConfig()))
    buckets = num_buckets(sizes[::-1], bucket_elements(module, zero))
    if zero.stage == 0:
        return [Collective("all-reduce", groups, whole, every_micro_batch=False)]
    if zero.stage < 3:
        return [
            Collective("all-reduce", buckets, whole, every_micro_batch=zero.stage == 2),
            Collective("all-gather", groups, whole, every_micro_batch=False),
        ]
    divided = ELEMENT_BYTES * sum(size for size in sizes if size > PERSISTENT_ELEMENTS)
    fetched = sum(any(p.numel() > PERSISTENT_ELEMENTS for p in m.parameters(recurse=False)) for m in module.modules())
    return [
        Collective("all-gather", 2 * fetched, 2 * divided, every_micro_batch=True),
        Collective("reduce-scatter", buckets, whole, every_micro_batch=True),
        Collective("all-gather", 1, whole - divided, every_micro_batch=False),
    ]


def communication_s(sent: list[Collective], num_gpus: int, link: str, num_micro_batches: int = 1) -> float:
    """Return the seconds of a step that go to collectives."""
    bytes_per_s = LINKS_GB_PER_S[link] * 1e9 * REACHED
    return sum(one.time_s(num_gpus, bytes_per_s) * (num_micro_batches if one.every_micro_batch else 1) for one in sent)


def images_for(wanted: float, sent: list[Collective], num_gpus: int, link: str, images_per_s: float) -> int:
    """Return the least micro batch with which `wanted` of a step's time is computing, without accumulation."""
    return math.ceil(wanted / (1 - wanted) * communication_s(sent, num_gpus, link) * images_per_s)


def links_for(num_gpus: int) -> list[str]:
    """Return the links that so many GPUs may have between them: NVLink only those of one node."""
    return [link for link in LINKS_GB_PER_S if link != "NVLink" or num_gpus <= 8]


def bytes_table(modules: dict[str, nn.Module]) -> str:
    """Return GB that each GPU sends and messages, in a step of one micro batch."""
    rows = []
    for kind, module in modules.items():
        for stage in STAGES:
            sent = collectives(module, ZeroConfig(stage=stage))
            gigabytes = [f"{sum(one.sent_bytes(number) for one in sent) / 1e9:.2f}" for number in NUM_GPUS]
            messages = " + ".join(f"{one.num_messages} {one.kind}" for one in sent)
            rows.append([f"{KINDS[kind]}, ZeRO-{stage}", *gigabytes, messages])
    return markdown_table(["GB sent by each GPU", *(f"{number} GPUs" for number in NUM_GPUS), "messages"], rows)


def share_table(module: nn.Module, images_per_s: float) -> str:
    """Return the share of a step's time that is computing, in per cent."""
    compute_s = MICRO_SIZE / images_per_s
    rows = []
    for stage in STAGES:
        sent = collectives(module, ZeroConfig(stage=stage))
        for number in NUM_GPUS:
            cells = []
            for link in LINKS_GB_PER_S:
                if link in links_for(number):
                    cells.append(f"{100 * compute_s / (compute_s + communication_s(sent, number, link)):.0f}")
                else:
                    cells.append("")
            rows.append([f"ZeRO-{stage}", str(number), *cells])
    return markdown_table(["", "GPUs", *LINKS_GB_PER_S], rows)


def knee_table(module: nn.Module, images_per_s: float) -> str:
    """Return the micro batch from which `WANTED` of the time is computing."""
    rows = []
    for stage in STAGES:
        sent = collectives(module, ZeroConfig(stage=stage))
        for number in NUM_GPUS:
            cells = [
                str(images_for(WANTED, sent, number, link, images_per_s)) if link in links_for(number) else ""
                for link in LINKS_GB_PER_S
            ]
            rows.append([f"ZeRO-{stage}", str(number), *cells])
    return markdown_table(["", "GPUs", *LINKS_GB_PER_S], rows)


def checkpoint_table(folder: Path) -> str:
    """Return what a checkpoint holds, and each rank's file."""
    rows = []
    for kind in KINDS:
        kinds = state_kinds(configuration(kind, folder), ZeroConfig(stage=2), 1)
        saved = sum(kinds[each] for each in ("master", "optimizer", "ema"))
        rows.append([KINDS[kind], f"{saved / 1e9:.2f}", *(f"{saved / number / 1e6:,.0f}" for number in NUM_GPUS)])
    return markdown_table(["", "GB in all", *(f"MB a rank, {number}" for number in NUM_GPUS)], rows)


def tables(images_per_s: float = IMAGES_PER_S) -> dict[str, str]:
    """Return the tables of the page by name."""
    with tempfile.TemporaryDirectory() as temporary:
        modules = {}
        for kind in KINDS:
            config = configuration(kind, Path(temporary))
            modules[kind] = empty_trained(config.model, config.stages[0])
        return {
            "bytes table": bytes_table(modules),
            "share table": share_table(modules["diffusion"], images_per_s),
            "knee table": knee_table(modules["diffusion"], images_per_s),
            "checkpoint table": checkpoint_table(Path(temporary)),
        }


def main() -> None:
    """Write the tables into the page, or print them for another speed of one GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-s", type=float, help="print the tables for this speed of one GPU; write nothing")
    images_per_s = parser.parse_args().images_per_s
    if images_per_s is not None:
        for name, table in tables(images_per_s).items():
            print(f"{name}\n\n{table}\n")
        return
    write_into(PAGE, tables())
    print(f"wrote the tables of {PAGE}")


if __name__ == "__main__":
    main()
