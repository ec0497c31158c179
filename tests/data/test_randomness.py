"""A sample's random numbers come from its position alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest, norm

from data.randomness import Stream, _normals, _quantiles, draw

SHAPE = (4, 8, 8)


def test_draws_depend_on_seed_stream_and_position_alone() -> None:
    one, same = draw(3, Stream.TRAINING, 17, SHAPE), draw(3, Stream.TRAINING, 17, SHAPE)
    assert one.timestep == same.timestep
    assert np.array_equal(one.noise, same.noise)
    for other in (
        draw(4, Stream.TRAINING, 17, SHAPE),
        draw(3, Stream.VALIDATION, 17, SHAPE),
        draw(3, Stream.TRAINING, 18, SHAPE),
    ):
        assert one.timestep != other.timestep
        assert not np.isin(other.noise, one.noise).any()


def test_every_bit_of_a_seed_counts() -> None:
    # NumPy would take a list of one large and one small integer for floats, and drop a large seed's low bits.
    one, other = draw(2**63 + 1, Stream.TRAINING, 0, SHAPE), draw(2**63 + 2, Stream.TRAINING, 0, SHAPE)
    assert one.timestep != other.timestep


def test_neighbouring_positions_share_no_numbers() -> None:
    # Each position is hashed to a generator of its own: a large sample never runs into the next one's numbers.
    large = draw(0, Stream.TRAINING, 0, (4, 64, 64))
    following = draw(0, Stream.TRAINING, 1, (4, 64, 64))
    shared = np.intersect1d(np.r_[large.noise.ravel(), large.posterior.ravel()], following.noise.ravel())
    # By chance some 32 of 32,768 x 512 pairs coincide among the 2^19 or so likeliest float32 normals.
    assert len(shared) < 100


def test_noise_is_standard_normal_and_timesteps_are_uniform() -> None:
    draws = [draw(1, Stream.TRAINING, position, SHAPE) for position in range(400)]
    noise = np.stack([d.noise for d in draws])
    assert noise.dtype == np.float32
    # 102,400 values: 4 standard errors are 0.0125 of the mean and 0.009 of the deviation.
    assert abs(noise.mean()) < 0.0125
    assert abs(noise.std() - 1) < 0.009
    # 400 values: 4 standard errors of a uniform mean are 0.058.
    assert abs(np.mean([d.timestep for d in draws]) - 0.5) < 0.058
    assert abs(np.corrcoef(noise[:, 0].ravel(), np.stack([d.posterior for d in draws])[:, 0].ravel())[0, 1]) < 0.025


@pytest.fixture(scope="module")
def many() -> dict[str, NDArray[np.float32]]:
    """Return noise and posterior of 60 samples, [60, 4, 64, 64], and 20,000 offsets."""
    drawn = [draw(2, Stream.TRAINING, position, (4, 64, 64)) for position in range(60)]
    offsets = [draw(2, Stream.TRAINING, position, (4, 2, 2)).offset for position in range(5000)]
    return {
        "noise": np.stack([d.noise for d in drawn]),
        "posterior": np.stack([d.posterior for d in drawn]),
        "offset": np.concatenate(offsets),
    }


def test_normals_have_the_normal_distributions_shape_and_tails(many: dict[str, NDArray[np.float32]]) -> None:
    for name, drawn in many.items():
        values, count = drawn.ravel(), drawn.size
        # The Kolmogorov-Smirnov statistic exceeds 1.95 / sqrt(n) once in 1000 draws.
        assert kstest(values, "norm").statistic < 1.95 / np.sqrt(count), name
        # The mean of x^k has a variance of (E x^2k - (E x^k)^2) / n: 1, 2, 15, 96 for k = 1 to 4. Five of its roots.
        for power, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], 1):
            found = (values.astype(np.float64) ** power).mean()
            assert abs(found - moment) < 5 * np.sqrt(variance / count), (name, power)
    for name in ("noise", "posterior"):
        # Of 983,040 values 62 lie beyond 4: five standard deviations of a Poisson count.
        assert 23 < (np.abs(many[name]) > 4).sum() < 102, name


def test_no_normal_knows_another(many: dict[str, NDArray[np.float32]]) -> None:
    """Box and Muller make two halves of the noise, and the offset, from the same words: a radius and an angle each."""
    noise, posterior = many["noise"], many["posterior"]
    half = noise.reshape(60, 2, -1)
    # The pairs lie half of noise and offset together apart: two values further than half of the noise.
    partners = noise.reshape(60, -1)
    pairs = {
        "noise and posterior": (noise, posterior),
        "halves of the noise": (half[:, 0], half[:, 1]),
        "radius and angle": (partners[:, : 8192 - 2], partners[:, 8192 + 2 :]),
        "neighbours": (noise[..., 1:], noise[..., :-1]),
        "neighbours of the posterior": (posterior[..., 1:], posterior[..., :-1]),
        "samples": (noise[1:], noise[:-1]),
        "samples' posteriors": (posterior[1:], posterior[:-1]),
    }
    for name, (one, other) in pairs.items():
        for power in (1, 2):
            found = np.corrcoef(one.ravel() ** power, other.ravel() ** power)[0, 1]
            assert abs(found) < 5 / np.sqrt(one.size), (name, power)


def test_noise_is_written_where_it_shall_stay() -> None:
    noise = np.zeros((2, *SHAPE), dtype=np.float32)
    drawn = draw(3, Stream.TRAINING, 17, SHAPE, noise=noise[1])
    assert np.array_equal(noise[1], draw(3, Stream.TRAINING, 17, SHAPE).noise)
    assert np.shares_memory(drawn.noise, noise)
    assert not noise[0].any()


def test_an_offset_knows_nothing_of_the_noise() -> None:
    drawn = [draw(2, Stream.TRAINING, position, (4, 2, 2)) for position in range(20_000)]
    both = np.stack([np.r_[d.noise.ravel(), d.offset] for d in drawn])
    for power in (1, 2):
        correlations = np.corrcoef(both.T**power)[16:, :16]
        # 64 coefficients.
        assert np.abs(correlations).max() < 5 / np.sqrt(len(drawn))


def test_the_quantiles_are_a_normal_distribution_in_equal_steps() -> None:
    quantiles = _quantiles().astype(np.float64)
    assert len(quantiles) == 2**16
    assert np.array_equal(quantiles, -quantiles[::-1])
    assert abs(quantiles.var() - 1) < 1e-7  # of float32
    # What lies beyond the outermost quantile is missing: 0.001 of the fourth moment.
    assert abs((quantiles**4).mean() - 3) < 0.001
    steps = (np.arange(2**16) + 0.5) / 2**16
    np.testing.assert_allclose(norm.cdf(quantiles), steps, rtol=3e-4)  # widened by 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1), (3, 2, 5), (4, 3, 3), (2, 3, 5)])
def test_shapes_whose_words_do_not_come_out_even(shape: tuple[int, int, int]) -> None:
    drawn = draw(0, Stream.TRAINING, 0, shape)
    assert drawn.noise.shape == drawn.posterior.shape == shape
    assert drawn.offset.shape == shape[:1]
    values = np.concatenate([drawn.noise.ravel(), drawn.posterior.ravel(), drawn.offset])
    assert len(np.unique(values)) == len(values), "no number is used twice"


def test_extreme_words_give_finite_normals() -> None:
    for word in (0, 1, 2**31, 2**32 - 1):
        normals = np.empty(8, dtype=np.float32)
        _normals(np.full(8, word, dtype=np.uint32), out=normals)
        assert np.isfinite(normals).all()
        assert np.abs(normals).max() < 6.8


@given(
    one=st.tuples(st.integers(0, 2**64 - 1), st.sampled_from(Stream), st.integers(0, 2**40)),
    other=st.tuples(st.integers(0, 2**64 - 1), st.sampled_from(Stream), st.integers(0, 2**40)),
)
def test_other_arguments_are_other_numbers(one: tuple[int, Stream, int], other: tuple[int, Stream, int]) -> None:
    assert (draw(*one, (1, 1, 2)).timestep == draw(*other, (1, 1, 2)).timestep) == (one == other)
