"""The settings of a run that no package of its own reads: batch, validation, preview."""

from pydantic import BaseModel, ConfigDict, Field

from launch.errors import ConfigError
from models.sampling import SamplingConfig


class BatchConfig(BaseModel):
    """How many samples an optimizer step sees, and how many a rank holds at a time."""

    model_config = ConfigDict(extra="forbid")

    global_size: int = Field(64, gt=0, description="Samples of one optimizer step, over all ranks.")
    micro_size: int = Field(4, gt=0, description="Samples that one rank takes at a time; memory grows with it.")

    def check_ranks(self, world_size: int) -> None:
        """Raise ConfigError unless a step is a whole number of micro batches on every one of `world_size` ranks."""
        unit = self.micro_size * world_size
        if self.global_size % unit == 0:
            return
        below, above = self.global_size // unit * unit, (self.global_size // unit + 1) * unit
        nearest = f"{below}, {above}" if below else f"{above}"
        raise ConfigError(
            f"batch.global_size={self.global_size} is not micro_size={self.micro_size} x {world_size} ranks"
            f" x a whole number; nearest that work: {nearest}"
        )


class ValidationConfig(BaseModel):
    """The loss on held-out patients, always at the same timesteps and noise."""

    model_config = ConfigDict(extra="forbid")

    every_steps: int | None = Field(
        500, gt=0, description="Optimizer steps between validations. None: at the start and at the end."
    )
    num_samples: int = Field(64, gt=0, description="Held-out samples of each database; all where it has fewer.")
    timesteps_per_sample: int = Field(4, gt=0, description="Timesteps at which each sample is taken, evenly spread.")


class PreviewConfig(BaseModel):
    """The images that TensorBoard shows while training, from the averaged weights, and how others are drawn."""

    model_config = ConfigDict(extra="forbid")

    every_steps: int | None = Field(
        500, gt=0, description="Optimizer steps between previews. None: at the start and at the end."
    )
    prompts: list[str] | None = Field(
        None,
        description="What to draw; of an empty list nothing. None: a prompt of each label, up to eight. A ControlNet"
        " stage draws held-out masks by their own prompts instead.",
    )
    seed: int = Field(0, ge=0, description="Prompt i starts from the noise of seed + i.")
    sampling: SamplingConfig = Field(
        SamplingConfig(),
        description="How images are drawn: those of the preview and all that are judged; also what a bundle of the"
        " model takes where its user does not say.",
    )
