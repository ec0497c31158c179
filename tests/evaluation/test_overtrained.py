"""A model that was trained on eight images until it knew them by heart is found out by the report."""

import json
from pathlib import Path

import pytest

from evaluation.classifier import ClassifierConfig
from evaluation.report import evaluate_run
from evaluation.segmenter import SegmenterConfig
from launch.config import load_config
from launch.prepare import encode_databases, prepare_databases
from launch.spawn import run_ranks
from launch.step_log import STEPS_FILE, read_steps
from launch.training_data import training_of
from tools.export.model_card import model_card
from tools.export.source import open_source

# 0.06 of the training patients have eight images. 200 steps of eight: each is seen 200 times.
CONFIG = """\
run: {folder}/run
model: {{base: tiny, resolution: 64}}
databases:
  breast: {{kind: simulated, preset: breast, size: 64, count: 200, seed: 0}}
prepare: {{validation_fraction: 0.2, test_fraction: 0.2}}
optimizer: {{lr: 1.0e-3, lr_schedule: constant, warmup_steps: 10}}
batch: {{global_size: 8, micro_size: 8}}
augment: {{caption_dropout: 0.0, flip: 0.0}}
ema: {{lengths: [0.05]}}
checkpoint: {{save_every_steps: null}}
validation: {{every_steps: null, num_samples: 8}}
preview: {{every_steps: null, sampling: {{steps: 20, guidance: 1.0}}}}
stages:
  - {{name: few, databases: [breast], steps: 200, fraction: 0.06}}
"""
NUM_DRAWN = 32


@pytest.mark.slow
def test_a_model_that_knows_eight_images_by_heart_is_flagged(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    config = load_config(path)
    prepare_databases(config)
    encode_databases(config)
    assert run_ranks(["-m", "launch.rank_process", str(path)], 1) == 0
    seen = {id for step in read_steps(config.stage_path(config.stages[0]) / STEPS_FILE) for id in step["ids"]}
    assert len(seen) == 8
    left = evaluate_run(
        config, NUM_DRAWN, classifier=ClassifierConfig(steps=100), segmenter=SegmenterConfig(steps=30, width=8)
    )
    verdict = left.verdicts["copies of training images"]
    assert (verdict.level, verdict.text) == ("bad", "training images were copied")
    found = json.loads(left.metrics.read_text(encoding="utf-8"))["memorisation"]
    assert found["pixels"]["share"] > 0.5
    suspects = [pair for pair in found["worst"] if pair["is_suspect"]]
    assert {pair["training_id"] for pair in suspects} <= seen, "copies of what it was trained on, and of no other"

    model = config.stage_model(config.stages[0])
    told = card(model)
    assert "| training images were copied |" in told, "whoever gets the model reads it"
    assert "| breast | 8 of" not in told, "the split has more than the stage was given"
    assert "| breast: labels | right answers, by chance 0.333 |" in told, "it draws without masks, so no Dice"
    assert "Limits of what was tested:" in told
    record = model / "sonoshard.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"steps": 200', '"steps": 201'), encoding="utf-8")
    assert "training images were copied" not in card(model), "that was another model"


def card(model: Path) -> str:
    source = open_source(str(model), None)
    return model_card(source, training_of(source.record, source.name))
