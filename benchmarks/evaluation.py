"""Measure how long images are drawn and judged: the whole report of `sonoshard evaluate`, part by part.

`python -m benchmarks.evaluation [--images 1000] [--size 128] [--threads 2]` prints a table and one JSON line. Judged
are simulated images of another seed, with masks and labels, against a run of `--real` simulated ones, with the default
features, classifier and segmenter: how long that takes does not depend on what the images show. Limit, and exit code 1
where it is not kept: five minutes for 1,000 images of 128 pixels on two cores. Drawing is measured apart,
on `--drawn` images of the built-in model at its own settings, and told for all of them. Beside it: the Frechet distance
by scipy's matrix square root, as FID is mostly computed, of the same features.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import sqrtm

from benchmarks.report import Beside, Limit, ReportTable, report
from data.simulate import simulate
from evaluation.classifier import ClassifierConfig
from evaluation.feature_distance import frechet_distance
from evaluation.generated_images import COLUMNS, LABELS_FILE
from evaluation.report import evaluate_run
from evaluation.segmenter import SegmenterConfig
from launch.config import RunConfig, load_config
from launch.prepare import prepare_databases
from models.base import ModelConfig
from models.sampling import sample
from models.stable_diffusion import load_pipeline

LIMIT_S = 300.0
LIMITED = (1000, 128, 2, None)  # images, pixels a side, threads, steps: the defaults
PRESET, PROMPT = "breast", "breast ultrasound, benign lesion"
CONFIG = """\
run: {folder}/run
model: {{base: tiny, resolution: {size}}}
databases:
  {preset}: {{kind: simulated, preset: {preset}, size: {size}, count: {real}, seed: 0}}
prepare: {{validation_fraction: 0.15, test_fraction: 0.15}}
stages:
  - {{name: one, databases: [{preset}], steps: 20}}
"""
# Of features as wide as the default classifier's.
NUM_FEATURES = 64
REPEATS = 5


def prepared(folder: Path, size: int, num_real: int) -> RunConfig:
    """Return the configuration of a prepared run in a folder."""
    path = folder / "config.yaml"
    text = CONFIG.format(folder=folder, size=size, preset=PRESET, real=num_real)
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    prepare_databases(config)
    return config


def write_images(folder: Path, num_images: int, size: int) -> Path:
    """Write simulated images with masks and labels as `sonoshard sample` does, and return their folder."""
    (folder / "masks").mkdir(parents=True)
    with (folder / LABELS_FILE).open("w", encoding="utf-8", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(COLUMNS)
        for number in range(num_images):
            drawn, name = simulate(PRESET, 1, number, size), f"{number:06}.png"
            Image.fromarray(drawn.image).save(folder / name)
            Image.fromarray(drawn.mask).save(folder / "masks" / name)
            rows.writerow((name, drawn.label, PRESET, "", number, f"masks/{name}"))
    return folder


def judging_seconds(
    config: RunConfig, images: Path, num_images: int, steps: int | None
) -> tuple[dict[str, float], float]:
    """Return seconds of each part of a report by what is said as it begins, and of all. steps: None: the defaults."""
    began = [("images are read", time.perf_counter())]

    def say(text: str) -> None:
        began.append((text, time.perf_counter()))

    evaluate_run(
        config,
        num_images,
        images=images,
        classifier=None if steps is None else ClassifierConfig(steps=steps),
        segmenter=None if steps is None else SegmenterConfig(steps=steps),
        say=say,
    )
    began.append(("", time.perf_counter()))
    parts = {text: after - at for (text, at), (_, after) in pairwise(began)}
    return parts, began[-1][1] - began[0][1]


def drawing_seconds(config: RunConfig, num_images: int) -> float:
    """Return seconds that the built-in model takes for images, after it is loaded."""
    pipeline = load_pipeline(ModelConfig(base="tiny"), "cpu", torch.float32)
    size = config.model.resolution
    began_s = time.perf_counter()
    for start in range(0, num_images, 8):
        seeds = range(start, min(start + 8, num_images))
        sample(pipeline, [PROMPT] * len(seeds), seeds, config.preview.sampling, height=size, width=size)
    return time.perf_counter() - began_s


def by_square_root(one_ND: NDArray[np.float64], other_MD: NDArray[np.float64]) -> float:
    """Return the Frechet distance as it is mostly computed: by the square root of the product of covariances."""
    means, covariances = zip(*((of.mean(0), np.cov(of, rowvar=False)) for of in (one_ND, other_MD)), strict=True)
    cross = sqrtm(covariances[0] @ covariances[1]).real
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * cross))


def seconds_of(call: Callable[[], float]) -> float:
    """Return seconds of the quickest of some calls."""
    found = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        call()
        found.append(time.perf_counter() - began_s)
    return min(found)


def frechet_beside(num_images: int) -> Beside:
    """Return how long the Frechet distance takes here and by scipy's square root, of the same features."""
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(num_images, NUM_FEATURES)) for _ in range(2))
    np.testing.assert_allclose(frechet_distance(one, other), by_square_root(one, other), rtol=1e-6)
    ours, theirs = (seconds_of(lambda of=of: of(one, other)) for of in (frechet_distance, by_square_root))  # type: ignore[misc]
    what = f"Frechet distance of 2 x {num_images} images, {NUM_FEATURES} features"
    return Beside(what, f"{1000 * ours:.1f} ms", f"scipy's sqrtm {1000 * theirs:.1f} ms", ours / theirs, "time")


def main() -> int:
    """Print the table and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description="How long images are drawn and judged.")
    parser.add_argument("--images", type=int, default=1000, help="that are judged")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--real", type=int, default=600, help="images of the run, held-out ones among them")
    parser.add_argument("--drawn", type=int, default=32, help="that are drawn")
    parser.add_argument("--steps", type=int, help="of classifier and segmenter; default: their own")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = prepared(folder, options.size, options.real)
        images = write_images(folder / "images", options.images, options.size)
        parts, judging_s = judging_seconds(config, images, options.images, options.steps)
        drawing_s = drawing_seconds(config, options.drawn)
    of_all_s = drawing_s / options.drawn * options.images
    rows = [[text, f"{seconds:.1f}"] for text, seconds in parts.items()]
    rows += [
        ["judging, in all", f"{judging_s:.1f}"],
        [f"drawing {options.drawn} images", f"{drawing_s:.1f}"],
        [f"drawing {options.images} at that rate", f"{of_all_s:.0f}"],
    ]
    title = f"{options.images} images of {options.size} px, {options.threads} threads"
    figures = {
        "num_images": options.images,
        "size": options.size,
        "num_real": options.real,
        "threads": options.threads,
        "omp_num_threads": os.environ["OMP_NUM_THREADS"],
        "judging_s": round(judging_s, 1),
        "parts_s": {text: round(seconds, 1) for text, seconds in parts.items()},
        "drawing_s_per_image": round(drawing_s / options.drawn, 3),
    }
    table = ReportTable(title, ("part", "s"), rows)
    return report("evaluation", [table], [frechet_beside(options.images)], figures, limits_of(options, judging_s))


def limits_of(options: argparse.Namespace, judging_s: float) -> list[Limit]:
    """Return that judging ends in time, if it was of as many images and steps as the limit is for."""
    is_limited = (options.images, options.size, options.threads, options.steps) == LIMITED
    return [Limit("s of judging", judging_s, LIMIT_S)] if is_limited else []


if __name__ == "__main__":
    sys.exit(main())
