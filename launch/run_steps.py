"""Steps counted over a whole run, so that its stages follow one another on one axis."""

from launch.config import RunConfig
from launch.stage_config import StageConfig
from launch.step_log import STEPS_FILE, newest_steps
from models.record import read_record


def steps_before(config: RunConfig, stage: StageConfig) -> int:
    """Return the optimizer steps of all stages before `stage`, as many as were taken."""
    return sum(steps_taken(config, earlier) for earlier in config.stages[: config.stages.index(stage)])


def steps_taken(config: RunConfig, stage: StageConfig) -> int:
    """Return how many steps a stage was trained for, 0 before its first one.

    One with an early stop goes a little beyond the step whose model it leaves, and its curves show why it stopped: the
    log counts, and the model's record only where that is gone.
    """
    log = newest_steps(config.stage_path(stage) / STEPS_FILE)
    record = read_record(config.stage_model(stage))
    return max(log[-1]["step"] if log else 0, record["steps"] if record else 0)
