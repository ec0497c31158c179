"""Simulated images with their captions, drawn on all cores and kept in a work folder.

This file imports neither torch nor diffusers: it is what every worker process loads.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.processes import processes_on_all_cores
from tools.make_tiny.recipe import ImageRecipe

CHUNK = 64


@dataclass(frozen=True)
class SimulatedSet:
    """Images and what they show; row i of each belongs together."""

    images_NHW: np.ndarray  # uint8
    presets: list[str]
    labels: list[str]
    prompts: list[str]


def load_or_simulate(recipe: ImageRecipe, work: Path, *, held_out: bool) -> SimulatedSet:
    """Return the training images or the held-out ones; drawn anew unless `work` has those of the same recipe."""
    name = "held_out" if held_out else "train"
    seed, count = (recipe.held_out_seed, recipe.num_held_out) if held_out else (recipe.train_seed, recipe.num_train)
    images_file, facts_file = work / f"{name}.npy", work / f"{name}.json"
    if facts_file.exists():
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        if facts["recipe"] == json.loads(json.dumps(asdict(recipe))):
            return SimulatedSet(np.load(images_file), facts["presets"], facts["labels"], facts["prompts"])
    drawn = simulate_set(recipe, seed, count)
    work.mkdir(parents=True, exist_ok=True)
    np.save(images_file, drawn.images_NHW)
    facts = {
        "recipe": asdict(recipe),
        "presets": drawn.presets,
        "labels": drawn.labels,
        "prompts": drawn.prompts,
    }
    # Last, and whole: its presence says that the images are complete.
    partial = facts_file.with_suffix(".part")
    partial.write_text(json.dumps(facts), encoding="utf-8")
    partial.replace(facts_file)
    return drawn


def simulate_set(recipe: ImageRecipe, seed: int, count: int) -> SimulatedSet:
    """Return `count` images of `seed`, made on all cores."""
    images_NHW = np.empty((count, recipe.size, recipe.size), np.uint8)
    facts: list[tuple[str, str, str]] = []
    for start, (chunk_NHW, chunk_facts) in _chunks(recipe, seed, count):
        images_NHW[start : start + len(chunk_NHW)] = chunk_NHW
        facts += chunk_facts
    presets, labels, prompts = (list(column) for column in zip(*facts, strict=True))
    return SimulatedSet(images_NHW, presets, labels, prompts)


Chunk = tuple[np.ndarray, list[tuple[str, str, str]]]


def _chunks(recipe: ImageRecipe, seed: int, count: int) -> Iterator[tuple[int, Chunk]]:
    """Yield (first index, chunk) in order."""
    starts = range(0, count, CHUNK)
    ends = [min(start + CHUNK, count) for start in starts]
    jobs = len(starts)
    if jobs == 1:
        yield 0, _simulate_chunk(recipe, seed, 0, count)
        return
    with processes_on_all_cores() as pool:
        yield from zip(starts, pool.map(_simulate_chunk, [recipe] * jobs, [seed] * jobs, starts, ends), strict=True)


def _simulate_chunk(recipe: ImageRecipe, seed: int, start: int, end: int) -> Chunk:
    """Return images [start, end) of `seed` with (preset, label, prompt) of each."""
    from data.simulate import simulate

    images, facts = [], []
    for index in range(start, end):
        preset = recipe.cycle[index % len(recipe.cycle)]
        drawn = simulate(preset, seed, index, recipe.size, scanner=recipe.scanner)
        images.append(drawn.image)
        facts.append((preset, drawn.label, drawn.prompt))
    return np.stack(images), facts
