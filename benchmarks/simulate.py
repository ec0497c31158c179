"""Measure the simulator: images a second and core, in CPU time, by preset and size.

`python -m benchmarks.simulate` prints a table and one JSON line. CPU time, so that other work on the
same cores does not count; a figure is the mean over every class and subtype that the indices draw.
"""

import os
import platform
import time

from benchmarks.report import ReportTable, report
from data.simulate import PRESETS, simulate

SIZES = (128, 256)
SEED = 0
NUM_IMAGES = 40


def images_per_cpu_second(preset: str, size: int, num_images: int = NUM_IMAGES) -> float:
    """Return how many images of a preset one core makes in a second of CPU time."""
    simulate(preset, SEED, 0, size)  # imports and first plans are not counted
    start_s = time.process_time()
    for index in range(num_images):
        simulate(preset, SEED, index, size)
    return num_images / (time.process_time() - start_s)


def main() -> None:
    """Print the table and the JSON line."""
    threads = os.environ["OMP_NUM_THREADS"]
    figures, rows = {}, []
    for preset in PRESETS:
        for size in SIZES:
            figures[f"{preset}_{size}"] = round(images_per_cpu_second(preset, size), 1)
            rows.append([preset, str(size), f"{figures[f'{preset}_{size}']:.1f}"])
    table = ReportTable(f"{NUM_IMAGES} images of each", ("preset", "pixels", "images/s of one core"), rows)
    facts = {"num_images": NUM_IMAGES, "omp_num_threads": threads, "machine": platform.machine()}
    report("simulate", [table], [], {"images_per_cpu_second": figures} | facts)


if __name__ == "__main__":
    main()
