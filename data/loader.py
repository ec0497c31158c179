"""From positions to batches of latents: this rank's slice of each global batch, read ahead by one thread."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from data.augment import AugmentConfig
from data.databases import UserPath
from data.hints import NO_HINT
from data.order import Order
from data.randomness import Draws, Stream, draw
from data.shards import Entry, ShardSet

# B samples, C latent channels, h w latent height and width, H W those of the image, L prompt tokens, D text width


class LoaderConfig(BaseModel):
    """How training reads the shards."""

    model_config = ConfigDict(extra="forbid")

    copy_to: UserPath | None = Field(
        None,
        description="Folder on each node's own disk, such as ${oc.env:SLURM_TMPDIR}, that the shards are copied to"
        " before the first step, once a node. None: they are read where they are.",
    )
    check_hashes: bool = Field(
        False, description="Compare each sample with its hash whenever it is read; sizes are compared in any case."
    )


@dataclass(frozen=True)
class BatchSlicing:
    """The arithmetic of one rank's batches: `micro_size` samples, `accumulation_steps` times, of `global_size`."""

    global_size: int
    micro_size: int
    rank: int
    world_size: int

    @property
    def accumulation_steps(self) -> int:
        """Micro batches of this rank in one optimizer step."""
        return self.global_size // (self.micro_size * self.world_size)

    def positions(self, step: int, micro_batch: int) -> range:
        """Return the positions of this rank's micro batch of global step `step`, counted from 0."""
        first = step * self.global_size + (self.rank * self.accumulation_steps + micro_batch) * self.micro_size
        return range(first, first + self.micro_size)


@dataclass(frozen=True)
class Batch:
    """Samples ready for the objective, on the CPU.

    latents_BChw: drawn from the VAE's posterior, not yet scaled, float32. noise_BChw, offset_BC: standard normal.
    timestep_B: quantiles of the timestep distribution in [0, 1), float64: in float32 the largest would round to 1.
    text_BLD: prompt embeddings, float32. ids: of the samples. is_dropped: whether a sample's caption was replaced by
    the empty one. is_repeat: whether a sample only fills up the batch, since another rank has it: it counts in no mean.
    hint_BHW: class numbers of the masks, NO_HINT where there is none or it was dropped. None: they were not asked for.
    """

    latents_BChw: NDArray[np.float32]
    noise_BChw: NDArray[np.float32]
    offset_BC: NDArray[np.float32]
    timestep_B: NDArray[np.float64]
    text_BLD: NDArray[np.float32]
    ids: tuple[str, ...]
    is_dropped: tuple[bool, ...]
    is_repeat: tuple[bool, ...]
    hint_BHW: NDArray[np.uint8] | None = None


class Loader:
    """The training batches of one rank in one stage."""

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        slicing: BatchSlicing,
        augment: AugmentConfig,
        seed: int,
        parts: Mapping[str, NDArray[np.int64]] | None = None,
        *,
        with_hints: bool = False,
    ) -> None:
        """Load what `order` says. parts: the numbers of each database's samples that it orders. None: all."""
        self._shards = shards
        self._parts = parts or {}
        self._order = order
        self._slicing = slicing
        self._augment = augment
        self._seed = seed
        self._with_hints = with_hints

    def ids(self, step: int) -> list[str]:
        """Return the ids of all samples of global step `step` (counted from 0), over all ranks, in order."""
        first = step * self._slicing.global_size
        return [self._entry(position).id for position in range(first, first + self._slicing.global_size)]

    def shares(self, num_steps: int) -> dict[str, float]:
        """Return the fraction of the samples of the first `num_steps` global steps that each database had."""
        num_samples = num_steps * self._slicing.global_size
        return {name: count / num_samples for name, count in self._order.dealt(num_samples).items()}

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield this rank's micro batches of steps first_step up to last_step (exclusive), in order, read ahead."""
        steps = range(first_step, last_step)
        micro_batches = range(self._slicing.accumulation_steps)
        return read_ahead(self.batch(self._slicing.positions(step, m)) for step in steps for m in micro_batches)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Return the samples at `positions` of the stage."""
        filling = _Filling(self._shards, len(positions), self._with_hints)
        # Each for the whole batch, while its code and tables are in the caches: 8 % faster than a sample at a time.
        entries = [self._entry(position) for position in positions]
        drawn = [filling.draw(self._seed, Stream.TRAINING, *numbered) for numbered in enumerate(positions)]
        for entry, draws in zip(entries, drawn, strict=True):
            filling.add(
                entry,
                draws,
                is_mirrored=draws.flip < self._augment.flip,
                is_dropped=draws.caption < self._augment.caption_dropout,
                is_hint_dropped=draws.hint < self._augment.hint_dropout,
            )
        return filling.batch()

    def _entry(self, position: int) -> Entry:
        place = self._order.place(position)
        part = self._parts.get(place.database)
        number = place.sample if part is None else part[place.sample]
        return self._shards.entries(place.database, "train")[number]


def validation_batches(
    shards: ShardSet,
    database: str,
    seed: int,
    *,
    num_samples: int,
    timesteps_per_sample: int,
    slicing: BatchSlicing,
    with_hints: bool = False,
    split: str = "validation",
) -> Iterator[Batch]:
    """Yield this rank's share of a database's held-out samples at fixed timesteps and noise, unflipped, with captions.

    num_samples: the first so many entries of the split. Every sample is taken at `timesteps_per_sample`
    evenly spaced quantiles, shifted from sample to sample by the golden ratio. The last batch may be smaller.

    Every rank gets equally many batches of the same sizes, since a call of a UNet that ZeRO-3 divided is collective:
    a rank that would have one sample less takes one that another rank has, as a repeat.
    """
    entries = shards.entries(database, split)
    count = min(num_samples, len(entries)) * timesteps_per_sample
    share = -(-count // slicing.world_size)
    mine = [slicing.rank + slicing.world_size * number for number in range(share)]
    for start in range(0, share, slicing.micro_size):
        numbers = mine[start : start + slicing.micro_size]
        filling = _Filling(shards, len(numbers), with_hints)
        for place, number in enumerate(numbers):
            sample, stratum = divmod(number % count, timesteps_per_sample)
            quantile = (stratum + sample * 0.6180339887498949 % 1) / timesteps_per_sample
            draws = filling.draw(seed, Stream.VALIDATION, place, number % count)
            fixed = draws._replace(timestep=quantile, prompt=0.0, posterior=np.zeros_like(draws.posterior))
            filling.add(entries[sample], fixed, is_repeat=number >= count)
        yield filling.batch()


class _Filling:
    """A batch in the making: a sample is written where it stays, since copies of a batch cost more than its reading."""

    def __init__(self, shards: ShardSet, size: int, with_hints: bool) -> None:
        self._shards = shards
        self._hints: list[NDArray[np.uint8]] | None = [] if with_hints else None
        self._latents_BChw = np.empty((size, *shards.latent_shape), dtype=np.float32)
        self._noise_BChw = np.empty_like(self._latents_BChw)
        self._offset_BC = np.empty(self._latents_BChw.shape[:2], dtype=np.float32)
        self._timesteps: list[float] = []
        self._prompts: list[int] = []
        self._ids: list[str] = []
        self._is_dropped: list[bool] = []
        self._is_repeat: list[bool] = []

    def draw(self, seed: int, stream: Stream, place: int, position: int) -> Draws:
        """Return the draws of the sample at `position`, the noise at its `place` in the batch."""
        return draw(seed, stream, position, self._shards.latent_shape, noise=self._noise_BChw[place])

    def add(
        self,
        entry: Entry,
        draws: Draws,
        *,
        is_mirrored: bool = False,
        is_dropped: bool = False,
        is_hint_dropped: bool = False,
        is_repeat: bool = False,
    ) -> None:
        """Add a sample with its draws, which were drawn for the next place."""
        number = len(self._ids)
        record = self._shards.read(entry, mirrored=is_mirrored, choice=int(draws.prompt * len(entry.prompts)))
        posterior_sample(record.moments, draws.posterior, out=self._latents_BChw[number])
        self._offset_BC[number] = draws.offset
        self._prompts.append(self._shards.empty_prompt_index if is_dropped else record.prompt_index)
        self._timesteps.append(draws.timestep)
        self._ids.append(entry.id)
        self._is_dropped.append(is_dropped)
        self._is_repeat.append(is_repeat)
        if self._hints is not None:
            # A database without masks has empty hints in its shards.
            is_known = entry.has_hint and not is_hint_dropped
            self._hints.append(record.hint if is_known else np.full_like(record.hint, NO_HINT))

    def batch(self) -> Batch:
        """Return the batch once all its samples are in."""
        return Batch(
            latents_BChw=self._latents_BChw,
            noise_BChw=self._noise_BChw,
            offset_BC=self._offset_BC,
            timestep_B=np.array(self._timesteps),
            text_BLD=self._shards.embeddings(self._prompts),
            ids=tuple(self._ids),
            is_dropped=tuple(self._is_dropped),
            is_repeat=tuple(self._is_repeat),
            hint_BHW=np.stack(self._hints) if self._hints is not None else None,
        )


def posterior_sample(
    moments: NDArray[np.float32], normal: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return mean + standard deviation * `normal`, [C, h, w], of the VAE's moments [2 C, h, w] (mean, log-variance).

    The log-variance is clipped to [-30, 20], as diffusers' DiagonalGaussianDistribution does. out: written to.
    """
    channels = len(moments) // 2
    mean, log_variance = moments[:channels], moments[channels:]
    drawn = np.clip(log_variance, np.float32(-30), np.float32(20), out=out)
    drawn *= np.float32(0.5)
    np.exp(drawn, out=drawn)
    drawn *= normal
    drawn += mean
    return drawn


def read_ahead(batches: Iterator[Batch], depth: int = 4) -> Iterator[Batch]:
    """Yield `batches`, up to `depth` of them made ahead by a thread; its error is raised where its batch is due.

    Python runs signal handlers in the main thread only, so a request to stop never reaches this one.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
