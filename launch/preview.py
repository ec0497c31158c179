"""The images that TensorBoard shows while training: always the same prompts from the same noise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from data.shards import ShardSet
from distributed.engine import Engine
from launch.config import RunConfig, StageConfig
from models.base import resolution_of
from models.sampling import sample_from_embeddings
from models.schedule import NoiseSchedule
from models.stable_diffusion import load_text_encoder, load_vae, text_embeddings

MAX_DEFAULT_PROMPTS = 8


def prompts_of_labels(shards: ShardSet, databases: Sequence[str]) -> list[str]:
    """Return a prompt of each label of `databases`, that of the first held-out sample with it; eight at the most."""
    prompts: dict[tuple[str, str], str] = {}
    for database in databases:
        for entry in shards.entries(database, "validation"):
            prompts.setdefault((database, entry.label), shards.prompts[entry.prompts[0]])
    return list(dict.fromkeys(prompts.values()))[:MAX_DEFAULT_PROMPTS]


class EngineUnet(nn.Module):
    """The UNet as the sampler wants it: called through the engine, which a UNet that ZeRO-3 divided needs."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.config = engine.module.config
        self._network = engine.network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the UNet returns."""
        return self._network(*args, **kwargs)


class Preview:
    """Draws the preview's images, each rank its share of them."""

    def __init__(
        self, config: RunConfig, stage: StageConfig, schedule: NoiseSchedule, shards: ShardSet, engine: Engine
    ) -> None:
        self._config = config.preview
        self._schedule = schedule
        self._engine = engine
        self._pixels = resolution_of(config.model)
        # Waits on the CPU between previews, in the dtype of training: the decoder of SD 1.5 in bf16 is 100 MB.
        self._vae = load_vae(config.model, "cpu", engine.dtype)
        del self._vae.encoder
        self.prompts = config.preview.prompts or prompts_of_labels(shards, stage.databases)
        self._text_PLD, self._empty_LD = self._embeddings(config, shards)

    def draw(self) -> dict[str, NDArray[np.uint8]]:
        """Return one image [H, W, 3] a prompt with the module's present weights; on the first rank. Collective."""
        rank, num_prompts = self._engine.rank, len(self.prompts)
        # Every rank draws equally many, since a call of the UNet may be collective: numbers beyond the last prompt
        # stand for repeats, which nobody asks for below.
        mine = [rank.index + rank.world_size * number for number in range(-(-num_prompts // rank.world_size))]
        prompts = [number % num_prompts for number in mine]
        self._vae.to(self._engine.device)
        images = sample_from_embeddings(
            EngineUnet(self._engine),
            self._vae,
            self._schedule,
            self._text_PLD[prompts],
            self._empty_LD,
            [self._config.seed + prompt for prompt in prompts],
            height=self._pixels,
            width=self._pixels,
            **self._config.sampling.model_dump(),
        )
        self._vae.to("cpu")
        drawn: list[dict[int, NDArray[np.uint8]]] = [{}] * rank.world_size
        dist.all_gather_object(drawn, dict(zip(mine, images, strict=True)))
        by_number = {number: image for part in drawn for number, image in part.items()}
        return {prompt: by_number[number] for number, prompt in enumerate(self.prompts)}

    def _embeddings(self, config: RunConfig, shards: ShardSet) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the prompts and of the empty one; the text encoder is loaded only for new ones."""
        wanted = ["", *self.prompts]
        if all(prompt in shards.prompts for prompt in wanted):
            text = torch.from_numpy(shards.text[[shards.prompts.index(prompt) for prompt in wanted]])
        else:
            text = text_embeddings(*load_text_encoder(config.model, "cpu", torch.float32), wanted)
        return text[1:], text[0]
