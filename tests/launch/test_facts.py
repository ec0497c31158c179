"""A stage's facts tell what its position means: with others a checkpoint is not gone on from."""

from pathlib import Path
from typing import Any

import pytest

from launch.config import RunConfig, load_config
from launch.dry_run import check_run
from launch.errors import ConfigError
from launch.facts import refuse_other_facts, stage_facts, stage_order
from launch.run_shards import open_shards
from launch.stage_config import StageConfig


def with_fraction(config: RunConfig, fraction: float) -> RunConfig:
    stage = config.stages[0].model_copy(update={"fraction": fraction})
    return config.model_copy(update={"stages": [stage]})


def test_another_fraction_is_another_stage(prepared: Path) -> None:
    config = load_config(prepared)
    shards = open_shards(config)
    whole, half = (with_fraction(config, fraction) for fraction in (1.0, 0.5))
    found, expected = (stage_facts(each, each.stages[0], shards) for each in (whole, half))
    refuse_other_facts(found, found, Path("step-1"))
    with pytest.raises(ConfigError, match=r"^step-1 was trained with fraction=1.0, this run has 0.5: set it back"):
        refuse_other_facts(found, expected, Path("step-1"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"trains": "lora"}, "trains=all, this run has lora"),
        ({"trains": "lora", "lora": {"rank": 8}}, "trains=all, this run has lora"),
        ({"trains": "cross_attention"}, "trains=all, this run has cross_attention"),
    ],
)
def test_other_trained_parameters_are_another_stage(prepared: Path, override: dict[str, Any], message: str) -> None:
    config = load_config(prepared)
    shards = open_shards(config)
    (stage,) = config.stages
    found = stage_facts(config, stage, shards)
    older = {name: fact for name, fact in found.items() if name not in ("trains", "lora")}
    refuse_other_facts(older, found, Path("step-1"))  # of a run from before there was a choice
    other = StageConfig.model_validate(stage.model_dump() | override)
    expected = stage_facts(config.model_copy(update={"stages": [other]}), other, shards)
    for facts in (found, older):
        with pytest.raises(ConfigError, match=f"step-1 was trained with {message}"):
            refuse_other_facts(facts, expected, Path("step-1"))
    if other.trains == "lora":
        wider = expected | {"lora": {"rank": 32, "alpha": None}}
        with pytest.raises(ConfigError, match=r"lora=\{'rank': .* this run has \{'rank': 32"):
            refuse_other_facts(expected, wider, Path("step-1"))


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ("shards.resolution", "was trained with shards.resolution=other, this run has 64"),
        ("shards.vae", "was trained with shards.vae=other, this run has [0-9a-f]{64}"),
        ("prompts_sha256", "was trained with other prompts, or masks of other images"),
        ("base_sha256", r"was trained from other weights than model\.base has now"),
    ],
)
def test_other_latents_prompts_or_weights_are_another_stage(prepared: Path, fact: str, message: str) -> None:
    config = load_config(prepared)
    expected = stage_facts(config, config.stages[0], open_shards(config))
    refuse_other_facts({name: value for name, value in expected.items() if name != fact}, expected, Path("step-1"))
    with pytest.raises(ConfigError, match=message):
        refuse_other_facts(expected | {fact: "other"}, expected, Path("step-1"))


def test_prompts_are_known_by_their_text_and_order(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(prepared)
    (stage,), shards = config.stages, open_shards(config)
    found = stage_facts(config, stage, shards)["prompts_sha256"]
    assert found == stage_facts(config, stage, open_shards(config))["prompts_sha256"]
    monkeypatch.setattr(shards, "prompts", [f"{prompt}!" for prompt in shards.prompts])
    assert stage_facts(config, stage, shards)["prompts_sha256"] != found


def test_a_dry_run_tells_which_part_trains(prepared: Path) -> None:
    assert check_run(load_config(prepared, ["stages.0.trains=lora"]), 1).count("; of the UNet lora trains") == 1
    assert "trains" not in check_run(load_config(prepared), 1)


def test_a_fraction_is_what_is_ordered_and_told(prepared: Path) -> None:
    config = load_config(prepared, ["stages.0.fraction=0.25"])
    shards = open_shards(config)
    count = len(shards.part("busi", 0.25, config.seed))
    assert count < len(shards.entries("busi", "train")) / 2
    assert stage_order(config, config.stages[0], shards).sizes == {"busi": count}
    assert f"busi ({count} images" in check_run(config, 1)
