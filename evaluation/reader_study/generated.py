"""The generated images of a reader study, drawn by a stage."""

# N images, H W height and width in pixels

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.manifest import ManifestRow
from evaluation.masked_images import grey
from evaluation.stage_images import stage_to_draw
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.stage_config import StageConfig
from models.base import ModelConfig, resolution_of
from models.sampling import sample
from models.stable_diffusion import load_pipeline


def stage_to_show(config: RunConfig, name: str | None) -> StageConfig:
    """Return the diffusion stage of that name; None: the last with a model. Raises: ConfigError if there is none.

    A ControlNet's stage needs a mask for each image: what it draws elsewhere is given as a folder.
    """
    if name is not None and config.stages_until(name)[-1].has_hints:
        raise ConfigError(f"stage {name} trained a ControlNet, which draws from masks: give its images by --images")
    return stage_to_draw(config, name, "diffusion")


def draw(config: RunConfig, stage: StageConfig, rows: Sequence[ManifestRow], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Return an image for each row, by its first prompt and from its seed's noise, uint8 [N, H, W] grey."""
    resolution = resolution_of(config.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = load_pipeline(ModelConfig(base=str(config.stage_model(stage))), device, torch.float32)
    images = sample(
        pipeline,
        [row.prompts[0] for row in rows],
        seeds,
        config.preview.sampling,
        height=resolution,
        width=resolution,
    )
    return grey(images)
