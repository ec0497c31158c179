"""Batches: the same samples whatever the ranks and micro batch; dropout and flips at their configured rates."""

import itertools
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from data.augment import AugmentConfig
from data.errors import DataError
from data.hints import NO_HINT
from data.loader import Batch, BatchSlicing, Loader, posterior_sample, read_ahead, validation_batches
from data.order import Order
from data.randomness import Stream, draw
from data.shards import ShardSet


@pytest.fixture(scope="module")
def shards(busi_shards: Path) -> ShardSet:
    return ShardSet.open(busi_shards)


def loader(shards: ShardSet, slicing: BatchSlicing, augment: AugmentConfig | None = None) -> Loader:
    order = Order({"busi": len(shards.entries("busi", "train"))}, seed=5)
    return Loader(shards, order, slicing, augment or AugmentConfig(), seed=5, with_hints=True)


def global_batch(shards: ShardSet, step: int, num_ranks: int, micro_size: int) -> list[Batch]:
    """Return the micro batches of a step over all ranks, in the order of their positions."""
    batches: list[Batch] = []
    for rank in range(num_ranks):
        batches += loader(shards, BatchSlicing(8, micro_size, rank, num_ranks)).batches(step, step + 1)
    return batches


@pytest.mark.parametrize(("num_ranks", "micro_size"), [(1, 1), (1, 8), (2, 2), (4, 1), (8, 1)])
def test_a_global_batch_does_not_depend_on_ranks_and_micro_batch(
    shards: ShardSet, num_ranks: int, micro_size: int
) -> None:
    one, other = global_batch(shards, 3, 2, 4), global_batch(shards, 3, num_ranks, micro_size)
    for field in fields(Batch):
        left = np.concatenate([np.asarray(getattr(batch, field.name)) for batch in one])
        right = np.concatenate([np.asarray(getattr(batch, field.name)) for batch in other])
        assert np.array_equal(left, right), field.name
    assert loader(shards, BatchSlicing(8, 4, 0, 2)).ids(3) == [id_ for batch in one for id_ in batch.ids]


def test_dropped_captions_are_the_empty_prompt_at_the_configured_rate(shards: ShardSet) -> None:
    count, rate = 20_000, 0.1
    batch = loader(shards, BatchSlicing(1, 1, 0, 1), AugmentConfig(caption_dropout=rate)).batch(range(count))
    is_empty = [np.array_equal(text, shards.text[shards.empty_prompt_index]) for text in batch.text_BLD]
    assert is_empty == list(batch.is_dropped)
    # Binomial: 3 standard deviations.
    assert abs(np.mean(is_empty) - rate) < 3 * np.sqrt(rate * (1 - rate) / count)


def test_hints_are_the_masks_mirrored_with_the_image_and_dropped_at_the_configured_rate(shards: ShardSet) -> None:
    slicing, count, rate = BatchSlicing(1, 1, 0, 1), 5000, 0.2
    plain, mirrored = (loader(shards, slicing, AugmentConfig(flip=flip)).batch(range(12)) for flip in (0, 1))
    assert plain.hint_BHW is not None
    assert mirrored.hint_BHW is not None
    by_id = {entry.id: entry for entry in shards.entries("busi", "train")}
    for hint, id_ in zip(plain.hint_BHW, plain.ids, strict=True):
        assert np.array_equal(hint, shards.read(by_id[id_], mirrored=False).hint)
    assert np.array_equal(mirrored.hint_BHW, plain.hint_BHW[:, :, ::-1])
    assert set(np.unique(plain.hint_BHW)) == {0, 1}, "some of the masks are not empty"

    batch = loader(shards, slicing, AugmentConfig(hint_dropout=rate)).batch(range(count))
    assert batch.hint_BHW is not None
    is_dropped = [bool((hint == NO_HINT).all()) for hint in batch.hint_BHW]
    assert any((hint == NO_HINT).any() for hint in batch.hint_BHW)
    # Binomial: 3 standard deviations.
    assert abs(np.mean(is_dropped) - rate) < 3 * np.sqrt(rate * (1 - rate) / count)
    assert abs(np.corrcoef(is_dropped, batch.is_dropped)[0, 1]) < 3 / np.sqrt(count), "independent of the captions"


def test_an_image_without_a_mask_has_no_hint(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [entry._replace(has_hint=False) for entry in shards.entries("busi", "train")]
    monkeypatch.setattr(shards, "entries", lambda database, split: entries)
    batch = loader(shards, BatchSlicing(1, 1, 0, 1)).batch(range(3))
    assert batch.hint_BHW is not None
    assert (batch.hint_BHW == NO_HINT).all()


def test_flips_read_the_mirror_images_moments(shards: ShardSet) -> None:
    slicing = BatchSlicing(1, 1, 0, 1)
    never = loader(shards, slicing, AugmentConfig(flip=0)).batch(range(6))
    always = loader(shards, slicing, AugmentConfig(flip=1)).batch(range(6))
    assert never.ids == always.ids
    assert np.array_equal(never.noise_BChw, always.noise_BChw)
    entry = {e.id: e for e in shards.entries("busi", "train")}
    for number, id_ in enumerate(never.ids):
        posterior = draw(5, Stream.TRAINING, number, shards.latent_shape).posterior
        for batch, mirrored in ((never, False), (always, True)):
            moments = shards.read(entry[id_], mirrored).moments
            assert np.array_equal(batch.latents_BChw[number], posterior_sample(moments, posterior))


def test_every_epoch_draws_anew_from_the_posterior(shards: ShardSet) -> None:
    size = len(shards.entries("busi", "train"))
    batch = loader(shards, BatchSlicing(1, 1, 0, 1), AugmentConfig(flip=0)).batch(range(2 * size))
    first, second = batch.ids.index(batch.ids[0]), batch.ids.index(batch.ids[0], size)
    assert not np.array_equal(batch.latents_BChw[first], batch.latents_BChw[second])


def test_the_posterior_is_sampled_as_diffusers_does() -> None:
    import torch
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    generator = np.random.default_rng(0)
    moments = generator.normal(0, 20, (8, 4, 4)).astype(np.float32)
    normal = generator.standard_normal((4, 4, 4)).astype(np.float32)
    reference = DiagonalGaussianDistribution(torch.from_numpy(moments)[None])
    expected = (reference.mean[0] + reference.std[0] * torch.from_numpy(normal)).numpy()
    np.testing.assert_allclose(posterior_sample(moments, normal), expected, rtol=1e-6)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_validation_takes_the_same_samples_timesteps_and_noise_on_any_ranks(shards: ShardSet, num_ranks: int) -> None:
    def batches(num_ranks: int) -> list[list[Batch]]:
        """Return the batches of each rank."""
        slicings = [BatchSlicing(num_ranks, 2, rank, num_ranks) for rank in range(num_ranks)]
        return [
            list(validation_batches(shards, "busi", 0, num_samples=3, timesteps_per_sample=4, slicing=slicing))
            for slicing in slicings
        ]

    def seen(num_ranks: int) -> list[tuple[str, float, bytes]]:
        """Return every sample that counts."""
        samples = [
            (id_, float(quantile), noise.tobytes())
            for batch in itertools.chain(*batches(num_ranks))
            for id_, quantile, noise, is_repeat in zip(
                batch.ids, batch.timestep_B, batch.noise_BChw, batch.is_repeat, strict=True
            )
            if not is_repeat
        ]
        return sorted(samples)

    assert seen(num_ranks) == seen(1)
    assert len(seen(1)) == len(set(seen(1))) == 12
    sizes = [[len(batch.ids) for batch in of_rank] for of_rank in batches(num_ranks)]
    assert all(of_rank == sizes[0] for of_rank in sizes), "a call of the UNet may be collective"
    quantiles = sorted(quantile for _, quantile, _ in seen(1))
    # Four strata, each with all three samples.
    assert [int(quantile * 4) for quantile in quantiles] == sorted([0, 1, 2, 3] * 3)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_a_stage_on_a_part_sees_each_of_its_samples_once_an_epoch(shards: ShardSet, num_ranks: int) -> None:
    """The training split lies in three shards of 4, 4 and 3 samples."""
    part = shards.part("busi", 0.6, seed=1)
    order = Order({"busi": len(part)}, seed=5)
    seen = [
        id_
        for step in range(len(part))
        for rank in range(num_ranks)
        for batch in Loader(
            shards, order, BatchSlicing(4, 1, rank, num_ranks), AugmentConfig(), 5, {"busi": part}
        ).batches(step, step + 1)
        for id_ in batch.ids
    ]
    entries = shards.entries("busi", "train")
    assert len({entry.shard for entry in entries}) == 3
    assert len(part) == 7
    for epoch in range(4):
        assert sorted(seen[7 * epoch : 7 * (epoch + 1)]) == sorted(entries[int(number)].id for number in part)


def test_shares_are_of_all_samples_so_far(shards: ShardSet) -> None:
    order = Order({"busi": 11, "other": 33}, seed=5, weights={"busi": 3.0, "other": 1.0})
    of_stage = Loader(shards, order, BatchSlicing(8, 4, 0, 2), AugmentConfig(), seed=5)
    places = [order.place(position) for position in range(8 * 50)]
    assert of_stage.shares(50) == {
        name: sum(place.database == name for place in places) / len(places) for name in ("busi", "other")
    }
    assert of_stage.shares(128 * 3) == {"busi": 0.75, "other": 0.25}, "after whole cycles"


def test_an_error_while_reading_ahead_is_raised_where_its_batch_is_due(shards: ShardSet) -> None:
    good = loader(shards, BatchSlicing(2, 2, 0, 1)).batch([0, 1])

    def batches() -> Iterator[Batch]:
        yield good
        raise DataError("the second batch is broken")

    ahead = read_ahead(batches())
    assert next(ahead) is good
    with pytest.raises(DataError, match="the second batch is broken"):
        next(ahead)


def test_a_timestep_next_to_1_stays_below_it(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = float(np.nextafter(1.0, 0.0))
    drawn = draw(5, Stream.TRAINING, 0, shards.latent_shape)._replace(timestep=largest)
    monkeypatch.setattr("data.loader.draw", lambda *_, **__: drawn)
    batch = loader(shards, BatchSlicing(1, 1, 0, 1)).batch([0])
    assert batch.timestep_B.max() < 1
