"""Weights chosen by held-out loss: the algorithm on losses that are known, and on a real run from end to end."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from data.loader import BatchSlicing, validation_batches
from launch.cli import app
from launch.config import RunConfig, load_config
from launch.errors import ConfigError
from launch.lineage import LINEAGE_FILE, Side
from launch.prepare import encode_databases, prepare_databases
from launch.run_shards import open_shards
from launch.step import Objective
from models.base import ModelConfig, noise_schedule
from models.record import RECORD_FILE, read_record
from models.stable_diffusion import load_unet
from tests.launch.conftest import prepare_run
from tests.tiny_random_model import write_tiny_random_model
from tools.merge import soup
from tools.merge.candidates import Candidates, Weights, rounded

NAMES = ("early", "late", "other", "bad")
# Where the models and two databases' best weights lie in a plane: a loss is 1 + the squared distance.
PLACES = {"early": (0.0, 0.0), "late": (2.0, 0.0), "other": (1.0, 1.0), "bad": (-6.0, -5.0)}
BEST = {"first": (0.4, 0.3), "second": (1.6, 0.3)}


class Known:
    """Stands for Candidates: models in a plane, the loss of a mean known by a formula."""

    names = NAMES

    def __init__(self) -> None:
        self.tried: list[Weights] = []

    def single(self, name: str) -> Weights:
        return tuple(float(name == other) for other in NAMES)

    def losses(self, weights: Sequence[float], split: str = "validation") -> dict[str, float]:
        place = np.array(weights) @ np.array([PLACES[name] for name in NAMES]) / sum(weights)
        return {name: 1 + float(((place - best) ** 2).sum()) for name, best in BEST.items()}

    def score(self, weights: Sequence[float], split: str = "validation") -> float:
        self.tried.append(tuple(weights))
        return float(np.mean(list(self.losses(weights).values())))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    candidates = Known()
    monkeypatch.setattr(Candidates, "open", lambda *_: candidates)
    return candidates


def plain_greedy(score: Any) -> set[str]:
    """Algorithm 1 of Wortsman et al. 2022, word for word."""
    ordered = sorted(NAMES, key=lambda name: score([float(name == other) for other in NAMES]))
    ingredients: list[str] = []
    best = float("inf")
    for name in ordered:
        tried = score([float(other in [*ingredients, name]) for other in NAMES])
        if tried <= best:
            ingredients, best = [*ingredients, name], tried
    return set(ingredients)


def test_greedy_soup_is_the_papers(known: Known) -> None:
    lines: list[str] = []
    choice = soup.greedy_soup(None, (), lines.append)  # type: ignore[arg-type]
    chosen = {name for name, weight in choice.by_name.items() if weight > 0}
    assert chosen == plain_greedy(known.score) == {"early", "late", "other"}
    assert choice.weights == (0.33, 0.33, 0.33, 0.0)
    assert known.score(choice.weights) < min(known.score(known.single(name)) for name in NAMES)
    assert lines[-1].startswith("greedy soup: not bad, with which it would be ")


def test_search_finds_the_best_mean_within_its_budget(known: Known) -> None:
    choice = soup.search(None, (), 60, lambda _: None)  # type: ignore[arg-type]
    # The least sum of both losses is at (1, 0.3), which is a mean of the first three.
    lowest = 1 + 0.6**2
    assert known.score(choice.weights) == pytest.approx(lowest, abs=0.01)
    assert sum(choice.weights) == pytest.approx(1, abs=0.021)
    assert min(choice.weights) >= 0
    known.tried.clear()
    few = soup.search(None, (), 6, lambda _: None)  # type: ignore[arg-type]
    assert known.score(few.weights) <= known.score((0.33, 0.33, 0.33, 0.0))
    assert len(set(known.tried)) <= 6 + 2 * len(NAMES) + 1


def test_shares_are_tried_to_two_digits() -> None:
    assert rounded([2, 1, 1]) == (0.5, 0.25, 0.25)
    assert rounded([1, 1, 1]) == (0.33, 0.33, 0.33)
    assert rounded(rounded([1, 2, 3])) == rounded([1, 2, 3])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of two databases and two stages that are finished as far as anyone can see: their models are random."""
    path = prepare_run(tmp_path_factory.mktemp("soup"))
    lines = path.read_text(encoding="utf-8").split("stages:")[0]
    lines = lines.replace("prepare:", "  head: {kind: simulated, preset: fetal, size: 64, count: 20}\nprepare:")
    stages = "\n".join(f"  - {{name: {name}, databases: [busi, head], steps: 2}}" for name in ("one", "two"))
    path.write_text(f"{lines}stages:\n{stages}\n", encoding="utf-8")
    config = load_config(path)
    prepare_databases(config)
    encode_databases(config)
    for seed, stage in enumerate(config.stages):
        write_tiny_random_model(config.stage_model(stage), seed + 1)
        (config.stage_model(stage) / RECORD_FILE).write_text(json.dumps({"steps": 2}), encoding="utf-8")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("way", ["search", "greedy-soup"])
def test_a_choice_writes_a_merge_and_the_table_that_proves_it(run: RunConfig, tmp_path: Path, way: str) -> None:
    extra = write_tiny_random_model(tmp_path / "extra", 9)
    config = run.run.parent / "config.yaml"
    budget = ["--budget", "4"] if way == "search" else []
    outputs = []
    for name in ("out", "again"):
        command = ["merge", str(tmp_path / name), str(extra), f"--{way}", str(config), *budget]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.stderr
        outputs.append(json.loads((tmp_path / name / "merge.json").read_text(encoding="utf-8")))
    table = outputs[0]
    assert outputs[1] == table, "always the same noise and timesteps"
    assert list(table["weights"]) == ["one", "two", str(extra)]
    assert list(table["splits"]) == ["validation", "test"]
    for split, rows in table["splits"].items():
        assert [row["name"] for row in rows] == ["one", "two", str(extra), "merge"]
        # Written weights are those that were tried: the folder has the loss that the table says.
        models = [run.stage_model(run.stages[0]), run.stage_model(run.stages[1]), extra, tmp_path / "out"]
        for row, model in zip(rows, models, strict=True):
            losses = {database: plain_loss(run, model, database, split) for database in run.databases}
            assert row["losses"] == pytest.approx(losses, rel=1e-5)
            assert row["mean"] == pytest.approx(np.mean([*losses.values()]), rel=1e-5)
        lowest = {database: min(row["losses"][database] for row in rows[:-1]) for database in run.databases}
        for row in rows:
            relative = np.mean([row["losses"][database] / lowest[database] for database in run.databases])
            assert row["relative"] == pytest.approx(relative, rel=1e-5)
    rows = table["splits"]["validation"]
    assert rows[-1]["relative"] <= min(row["relative"] for row in rows[:-1])
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record["chosen_by"]["how"] == way.replace("-", " ")
    chosen = {name: weight for name, weight in table["weights"].items() if weight > 0}
    total = sum(chosen.values())
    assert [source["weight"] for source in record["merge"]["sources"]] == [w / total for w in chosen.values()]


def plain_loss(config: RunConfig, model: Path, database: str, split: str) -> float:
    """Return the mean over the samples of a database's split of the run's validation loss, one sample at a time."""
    schedule = noise_schedule(config.model)
    objective = Objective(schedule, config.objective.for_validation, torch.device("cpu"))
    unet = load_unet(ModelConfig(base=str(model)), torch.float32).eval()
    batches = validation_batches(
        open_shards(config),
        database,
        config.seed,
        num_samples=config.validation.num_samples,
        timesteps_per_sample=config.validation.timesteps_per_sample,
        slicing=BatchSlicing(1, 1, 0, 1),
        split=split,
    )
    with torch.no_grad():
        return float(torch.cat([objective.losses(unet, batch) for batch in batches]).mean())


def test_too_few_models_are_refused(run: RunConfig) -> None:
    only = run.model_copy(update={"stages": run.stages[:1]})
    with pytest.raises(ConfigError, match="from at least two finished stages, found one: train them first"):
        Candidates.open(only)


def test_a_model_that_has_seen_what_is_held_out_is_refused(run: RunConfig, tmp_path: Path) -> None:
    other, stage, shards = write_tiny_random_model(tmp_path / "leaky", 5), run.stages[0], open_shards(run)
    for trained, is_leak in (("trained", False), ("held_out", True)):
        sides = {"trained": trained, "held_out": "held_out"}
        lineage = {
            f"{side}.{what}": getattr(Side.of_stage(run, stage, shards, of), what)
            for side, of in sides.items()
            for what in ("ties", "likenesses")
        }
        save_file(lineage, other / LINEAGE_FILE)
        if not is_leak:
            assert str(other) in Candidates.open(run, [str(other)]).names
            continue
        with pytest.raises(ConfigError, match=rf"{other} was trained on \d+ images .* that {run.run} holds out"):
            Candidates.open(run, [str(other)])


def test_a_model_that_predicts_otherwise_is_refused_before_any_loss(run: RunConfig, tmp_path: Path) -> None:
    other = write_tiny_random_model(tmp_path / "v", 4, "v_prediction")
    with pytest.raises(ConfigError) as refused:
        Candidates.open(run, [str(other)])
    assert f"{other} predicts v_prediction, and the losses of {run.run} are of epsilon: leave it out" in str(
        refused.value
    )
