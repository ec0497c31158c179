"""Measure the loader: samples a second of one core from the page cache, and the memory of a process that reads.

`python -m benchmarks.loader [--samples N N] [--resolution PIXELS] [--dtype DTYPE]` prints a table and one JSON line.
Shards of random moments are written to a temporary folder and read in the order of training, each time by a process of
its own. CPU time, so that other work on the same cores does not count.

reading: position -> sample -> its moments in float32, its prompt's embedding, copied. batches: that, and all random
numbers of a training sample, the draw from the posterior, stacked in batches of 8. webdataset: the library's own reader
over the same tars, decoded, without prompts or random numbers. png: a folder of images, decoded by Pillow, scaled and
mirrored as diffusers' text-to-image example does (whose VAE must then still encode them). needed: what a training step
of the built-in model consumes on the same core, at the same latents. MB: the most anonymous memory of the process while
it makes batches, less what its imports need; of files: pages of mapped files, likewise, which are the embeddings'.
mapped: rate and pages if the tars were mapped as well.
"""

import argparse
import hashlib
import json
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import data.shards
from benchmarks.report import Beside, ReportTable, report
from data.augment import AugmentConfig
from data.embeddings import read_embeddings
from data.encode import EncodeConfig, encode
from data.loader import BatchSlicing, Loader
from data.manifest import PALETTE, Manifest, ManifestRow
from data.order import Order
from data.shards import ShardSet
from data.simulate import simulate

DATABASE = "random"
BATCH = 8
NUM_PROMPTS = 500
NUM_IMAGES = 40
SECONDS = 4.0


class RandomEncoder:
    """Moments and embeddings of the sizes that Stable Diffusion 1.5 has, of numbers that mean nothing."""

    def __init__(self) -> None:
        self.fingerprint = {"encoder": "random"}
        self._generator = torch.Generator().manual_seed(0)

    def moments(self, images_BCHW: Tensor) -> Tensor:
        """Return [B, 8, H/8, W/8]."""
        count, _, height, width = images_BCHW.shape
        return torch.randn((count, 8, height // 8, width // 8), generator=self._generator)

    def embed(self, prompts: list[str]) -> Tensor:
        """Return [P, 77, 768]."""
        return torch.randn((len(prompts), 77, 768), generator=self._generator)


def write_shards(folder: Path, num_samples: int, resolution: int, dtype: str) -> None:
    """Write `num_samples` training samples of one small image."""
    folder.mkdir(parents=True)
    image = folder / "image.png"
    Image.new("L", (16, 16), 100).save(image)
    rows = tuple(
        ManifestRow(
            id=f"{DATABASE}/{number:06d}",
            database=DATABASE,
            image=image,
            sha256=hashlib.sha256(image.read_bytes()).hexdigest(),
            masks_sha256=(),
            width=16,
            height=16,
            organ="none",
            prompts=(f"Ultrasound image of the kind {number % NUM_PROMPTS}",),
            label="none",
            licence="CC0-1.0",
            split="train",
            cluster=f"{DATABASE}/{number:06d}",
        )
        for number in range(num_samples)
    )
    Manifest(rows, PALETTE).write(folder / "manifest.parquet")
    config = EncodeConfig.model_validate({"moments_dtype": dtype, "batch_size": BATCH})
    encode(folder / "manifest.parquet", RandomEncoder(), config, resolution, folder / "shards")


def per_cpu_second(work: Callable[[], int]) -> float:
    """Return how many samples `work`, which returns their number, does in a second of CPU time; the best of three."""
    work()  # pages that are touched for the first time are not counted
    rates = []
    for _ in range(3):
        began_s, count = time.process_time(), 0
        while (passed_s := time.process_time() - began_s) < SECONDS / 3:
            count += work()
        rates.append(count / passed_s)
    return max(rates)


def measure(shards: Path) -> dict[str, float]:
    """Return the figures of a folder of shards, read by this process."""
    return _measure(shards)


class MappedFile:
    """Stands in for data.shards.OpenFile."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Return bytes from `offset` on."""
        return self._content[offset : offset + num_bytes]

    def fill(self, array: NDArray[np.generic], offset: int) -> None:
        """Fill an array with the bytes from `offset` on."""
        array[...] = np.frombuffer(self._content, array.dtype, array.size, offset).reshape(array.shape)


def measure_mapped(shards: Path) -> dict[str, float]:
    """Return the figures of a process that maps the tars."""
    data.shards.OpenFile = MappedFile  # type: ignore[assignment, misc]
    figures = _measure(shards)
    return {f"mapped_{name}": figures[name] for name in ("batches_per_s", "file_mb")}


def _measure(shards: Path) -> dict[str, float]:
    read_embeddings(shards)  # Arrow's code comes into memory
    before = memory_mb()
    opened = ShardSet.open(shards)
    order = Order({DATABASE: len(opened.entries(DATABASE, "train"))}, seed=0)
    loader = Loader(opened, order, BatchSlicing(BATCH, BATCH, 0, 1), AugmentConfig(), seed=0)
    positions = iter(range(10**9))

    def read() -> int:
        for _ in range(100):
            entry = opened.entries(DATABASE, "train")[order.place(next(positions)).sample]
            opened.embeddings([opened.read(entry, mirrored=False).prompt_index])
        return 100

    def batch() -> int:
        for _ in range(10):
            loader.batch([next(positions) for _ in range(BATCH)])
        return 10 * BATCH

    # All of the shards are in the page cache first.
    for tar in shards.glob("*/*.tar"):
        tar.read_bytes()
    figures = {"reading_per_s": per_cpu_second(read), "batches_per_s": per_cpu_second(batch)}
    seen = [memory_mb() for _ in range(100) if batch()]
    figures |= {f"{kind}_mb": max(memory[kind] for memory in seen) - before[kind] for kind in before}
    return figures


def measure_webdataset(shards: Path) -> dict[str, float]:
    """Return the rate of webdataset's own reader: shards shuffled, then samples within a window of 1000."""
    tars = sorted(str(path) for path in shards.glob("*/*.tar"))
    pipeline = webdataset.WebDataset(tars, shardshuffle=100, seed=0).shuffle(1000).decode("pil")
    samples: Iterable[dict[str, object]] = iter(pipeline.repeat())

    def read() -> int:
        for _, sample in zip(range(50), samples, strict=False):
            np.asarray(sample["moments.npy"])[0].astype(np.float32)
        return 50

    return {"webdataset_per_s": per_cpu_second(read)}


def write_images(folder: Path, resolution: int) -> None:
    """Write simulated images as PNG files of RGB, as a folder of training images has them."""
    folder.mkdir(parents=True)
    for index in range(NUM_IMAGES):
        image = Image.fromarray(simulate("breast", 0, index, 256).image)
        image.resize((resolution, resolution)).convert("RGB").save(folder / f"{index:03d}.png")


def measure_images(folder: Path) -> dict[str, float]:
    """Return the rate of decoding the images of a folder to [3, H, W] float32 in [-1, 1]."""
    files = sorted(folder.glob("*.png"))
    random = np.random.default_rng(0)

    def read() -> int:
        for number in random.integers(len(files), size=10):
            pixels_HWC = np.asarray(Image.open(files[number]).convert("RGB"))
            if random.random() < 0.5:
                pixels_HWC = pixels_HWC[:, ::-1]
            np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)).astype(np.float32) / 127.5 - 1
        return 10

    return {"png_per_s": per_cpu_second(read)}


def measure_step(resolution: int) -> dict[str, float]:
    """Return what a training step of the built-in model consumes: forwards and backwards in float32, no optimizer."""
    from models.base import ModelConfig
    from models.stable_diffusion import load_unet

    unet = load_unet(ModelConfig(base="tiny"), torch.float32)
    latents = torch.randn(1, 4, resolution // 8, resolution // 8)
    text = torch.randn(1, 77, unet.config.cross_attention_dim)

    def step() -> int:
        unet(latents, torch.tensor([500]), text).sample.square().mean().backward()
        return 1

    return {"needed_per_s": per_cpu_second(step)}


def memory_mb() -> dict[str, float]:
    """Return this process's resident memory by kind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {
        name: int(found[key].split()[0]) * 1024 / 1e6 for name, key in (("anonymous", "RssAnon"), ("file", "RssFile"))
    }


def in_process(*arguments: str) -> dict[str, float]:
    """Return what a measurement prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader", *arguments]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return figures


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description="Samples a second of one core, and memory.")
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 4000], help="sizes of the database")
    parser.add_argument("--resolution", type=int, default=512, help="height and width of the images in pixels")
    parser.add_argument("--dtype", default="float16", help="stored precision of the moments")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "OF"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        torch.set_num_threads(1)
        what, of = arguments.measure
        measures = {
            "shards": measure,
            "mapped": measure_mapped,
            "webdataset": measure_webdataset,
            "images": measure_images,
        }
        print(json.dumps(measures[what](Path(of)) if what in measures else measure_step(int(of))))
        return
    figures = {}
    with tempfile.TemporaryDirectory(prefix="sonoshard-") as folder:
        write_images(Path(folder) / "images", arguments.resolution)
        once = in_process("--measure", "step", str(arguments.resolution))
        once |= in_process("--measure", "images", str(Path(folder) / "images"))
        for count in arguments.samples:
            write_shards(Path(folder) / str(count), count, arguments.resolution, arguments.dtype)
            shards = str(Path(folder) / str(count) / "shards")
            parts = [in_process("--measure", what, shards) for what in ("shards", "mapped", "webdataset")]
            figures[count] = {key: round(value, 1) for part in (*parts, once) for key, value in part.items()}
    title = f"{arguments.resolution} pixels, {arguments.dtype}, samples/s of one core"
    columns = ("samples", "reading", "batches", "webdataset", "png", "needed", "MB", "of files", "mapped", "of files")
    cells, beside = [], []
    for count, row in figures.items():
        rates = (row[f"{name}_per_s"] for name in ("reading", "batches", "webdataset", "png"))
        shown = (*(f"{rate:,.0f}" for rate in rates), f"{row['needed_per_s']:.2f}")
        memory = (f"{row['anonymous_mb']:.0f}", f"{row['file_mb']:.0f}")
        cells.append(
            [f"{count}", *shown, *memory, f"{row['mapped_batches_per_s']:,.0f}", f"{row['mapped_file_mb']:.0f}"]
        )
        for ours, theirs, name in (("reading", "webdataset", "webdataset"), ("batches", "png", "a folder of PNG")):
            what = f"{ours}, {count} samples of {arguments.resolution} px"
            mine, other = row[f"{ours}_per_s"], row[f"{theirs}_per_s"]
            beside.append(
                Beside(what, f"{mine:,.0f} samples/s", f"{name} {other:,.0f} samples/s", mine / other, "rate")
            )
    facts = {"resolution": arguments.resolution, "dtype": arguments.dtype, "machine": platform.machine()}
    facts["omp"] = os.environ["OMP_NUM_THREADS"]
    report("loader", [ReportTable(title, columns, cells)], beside, {"by_samples": figures} | facts)


if __name__ == "__main__":
    main()
