"""A stage's facts tell what its position means: with others a checkpoint is not gone on from."""

from pathlib import Path

import pytest

from launch.config import RunConfig, load_config
from launch.errors import ConfigError
from launch.facts import refuse_other_facts, stage_facts, stage_order
from launch.prepare import check_run, open_shards


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


def test_a_fraction_is_what_is_ordered_and_told(prepared: Path) -> None:
    config = load_config(prepared, ["stages.0.fraction=0.25"])
    shards = open_shards(config)
    count = len(shards.part("busi", 0.25, config.seed))
    assert count < len(shards.entries("busi", "train")) / 2
    assert stage_order(config, config.stages[0], shards).sizes == {"busi": count}
    assert f"busi ({count} images" in check_run(config, 1)
