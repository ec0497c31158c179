"""The images that TensorBoard shows while training: always the same prompts from the same noise."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from data.hints import coloured, hint_images
from data.shards import Record, ShardSet
from distributed.engine import Engine
from distributed.stop_request import StopRequest
from launch.config import RunConfig
from launch.stage_config import StageConfig
from models.base import resolution_of
from models.sampling import decode_latents, sample_from_embeddings
from models.schedule import NoiseSchedule
from models.stable_diffusion import load_text_encoder, load_vae, text_embeddings

# N images, C latent channels, h w latent height and width, H W those of the image in pixels,
# L prompt tokens, D text width

MAX_DEFAULT_IMAGES = 8
MAX_MASKS_PER_LABEL = 2


def prompts_of_labels(shards: ShardSet, databases: Sequence[str]) -> list[str]:
    """Return a prompt of each label of `databases`, that of the first held-out sample with it; eight at the most."""
    prompts: dict[tuple[str, str], str] = {}
    for database in databases:
        for entry in shards.entries(database, "validation"):
            prompts.setdefault((database, entry.label), shards.prompts[entry.prompts[0]])
    return list(dict.fromkeys(prompts.values()))[:MAX_DEFAULT_IMAGES]


def masked_samples(shards: ShardSet, databases: Sequence[str]) -> list[Record]:
    """Return the first held-out samples of each label whose mask is not empty; eight at the most."""
    chosen: list[Record] = []
    counts: Counter[tuple[str, str]] = Counter()
    for database in databases:
        for entry in shards.entries(database, "validation"):
            if not entry.has_hint or counts[database, entry.label] == MAX_MASKS_PER_LABEL:
                continue
            record = shards.read(entry, mirrored=False)
            if record.hint.any():
                counts[database, entry.label] += 1
                chosen.append(record)
    return chosen[:MAX_DEFAULT_IMAGES]


@dataclass(frozen=True)
class Subjects:
    """What to draw. captions: one per image. hints_NHW: class numbers, where the network sees masks.

    real_NChw: the VAE's latents of the real images with these masks, not scaled.
    """

    captions: list[str]
    prompts: list[str]
    hints_NHW: NDArray[np.uint8] | None = None
    real_NChw: NDArray[np.float32] | None = None

    @classmethod
    def of_prompts(cls, prompts: list[str]) -> "Subjects":
        """Return one image per prompt."""
        return cls(prompts, prompts)

    @classmethod
    def of_masks(cls, records: Sequence[Record], shards: ShardSet) -> "Subjects":
        """Return one image per sample, drawn by its mask and its first prompt."""
        prompts = [shards.prompts[record.prompt_index] for record in records]
        captions = [f"{number}: {prompt}" for number, prompt in enumerate(prompts)]
        if not records:
            return cls(captions, prompts)
        real = [np.split(record.moments, 2)[0] for record in records]
        return cls(captions, prompts, np.stack([record.hint for record in records]), np.stack(real))


class Preview:
    """Draws the preview's images, each rank its share of them."""

    def __init__(
        self,
        config: RunConfig,
        schedule: NoiseSchedule,
        shards: ShardSet,
        engine: Engine,
        denoiser: nn.Module,
        subjects: Subjects,
    ) -> None:
        self._config = config.preview
        self._schedule = schedule
        self._engine = engine
        self._denoiser = denoiser
        self._subjects = subjects
        self._pixels = resolution_of(config.model)
        # Waits on the CPU between previews, in the dtype of training: the decoder of SD 1.5 in bf16 is 100 MB.
        self._vae = load_vae(config.model, "cpu", engine.dtype)
        del self._vae.encoder
        self._text_NLD, self._empty_LD = self._embeddings(config, shards)

    def draw(self, stop: StopRequest | None = None) -> dict[str, NDArray[np.uint8]]:
        """Return one image [H, W, 3] per caption with the module's present weights; on the first rank. Collective.

        Where the network sees masks, it stands between the mask and the real image as the VAE keeps it: [H, 3 W, 3].
        stop: what may end it between two steps of the sampler. Raises: StoppedOnRequest if it does.
        """
        subjects, rank = self._subjects, self._engine.rank
        num_images = len(subjects.captions)
        if num_images == 0:
            return {}
        # Every rank draws equally many, since a call of the UNet may be collective: numbers beyond the last image
        # stand for repeats, which nobody asks for below.
        mine = [rank.index + rank.world_size * number for number in range(-(-num_images // rank.world_size))]
        self._vae.to(self._engine.device)
        try:
            images = self._images([number % num_images for number in mine], stop)
        finally:
            self._vae.to("cpu")
        drawn: list[dict[int, NDArray[np.uint8]]] = [{}] * rank.world_size
        dist.all_gather_object(drawn, dict(zip(mine, images, strict=True)))
        by_number = {number: image for part in drawn for number, image in part.items()}
        return {caption: by_number[number] for number, caption in enumerate(subjects.captions)}

    def _images(self, numbers: Sequence[int], stop: StopRequest | None) -> NDArray[np.uint8]:
        """Return the images of these numbers, [N, H, W or 3 W, 3]."""
        subjects, device = self._subjects, self._engine.device
        hints_NHW = None if subjects.hints_NHW is None else subjects.hints_NHW[numbers]
        images = sample_from_embeddings(
            self._denoiser,
            self._vae,
            self._schedule,
            self._text_NLD[numbers],
            self._empty_LD,
            [self._config.seed + number for number in numbers],
            self._config.sampling,
            height=self._pixels,
            width=self._pixels,
            hints_N3HW=None if hints_NHW is None else torch.from_numpy(hint_images(hints_NHW)),
            before_step=None if stop is None else partial(stop.raise_if_agreed, device),
        )
        if hints_NHW is None or subjects.real_NChw is None:
            return images
        with torch.no_grad():
            real = decode_latents(self._vae, torch.from_numpy(subjects.real_NChw[numbers]))
        return np.concatenate([coloured(hints_NHW), images, real], axis=2)

    def _embeddings(self, config: RunConfig, shards: ShardSet) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the prompts and of the empty one; the text encoder is loaded only for new ones."""
        wanted = ["", *self._subjects.prompts]
        if all(prompt in shards.prompts for prompt in wanted):
            text = torch.from_numpy(shards.text[[shards.prompts.index(prompt) for prompt in wanted]])
        else:
            text = text_embeddings(*load_text_encoder(config.model, "cpu", torch.float32), wanted)
        return text[1:], text[0]


def subjects_of(config: RunConfig, stage: StageConfig, shards: ShardSet) -> Subjects:
    """Return what a stage shows: masks where its network sees them, else prompts."""
    if stage.has_hints:
        return Subjects.of_masks(masked_samples(shards, stage.databases), shards)
    prompts = config.preview.prompts
    return Subjects.of_prompts(prompts_of_labels(shards, stage.databases) if prompts is None else prompts)
