"""A sample's random numbers come from its position alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from data.randomness import Stream, _normal_pair, draw

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


def test_normals_have_the_normal_distributions_tails_and_no_pairs() -> None:
    """Box-Muller makes posterior and noise from the same words: neither they nor their squares may know each other."""
    drawn = [draw(2, Stream.TRAINING, position, (4, 64, 64)) for position in range(60)]
    noise, posterior = (np.concatenate([getattr(d, name).ravel() for d in drawn]) for name in ("noise", "posterior"))
    for values in (noise, posterior):
        # 983,040 values: the Kolmogorov-Smirnov statistic exceeds 1.95 / sqrt(n) once in 1000 draws.
        assert kstest(values, "norm").statistic < 1.95 / np.sqrt(len(values))
        # Beyond 4 lie 62 of them: five standard deviations of a Poisson count.
        assert 23 < (np.abs(values) > 4).sum() < 102
        assert np.isfinite(values).all()
    # Five standard errors.
    assert abs(np.corrcoef(noise, posterior)[0, 1]) < 5 / np.sqrt(len(noise))
    assert abs(np.corrcoef(noise**2, posterior**2)[0, 1]) < 5 / np.sqrt(len(noise))
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 5 / np.sqrt(len(noise))


def test_extreme_words_give_finite_normals() -> None:
    for word in (0, 1, 2**31, 2**32 - 1):
        pair = _normal_pair(np.full(8, word, dtype=np.uint32))
        assert all(np.isfinite(values).all() and np.abs(values).max() < 6.8 for values in pair)


@given(
    one=st.tuples(st.integers(0, 2**64 - 1), st.sampled_from(Stream), st.integers(0, 2**40)),
    other=st.tuples(st.integers(0, 2**64 - 1), st.sampled_from(Stream), st.integers(0, 2**40)),
)
def test_other_arguments_are_other_numbers(one: tuple[int, Stream, int], other: tuple[int, Stream, int]) -> None:
    assert (draw(*one, (1, 1, 1)).timestep == draw(*other, (1, 1, 1)).timestep) == (one == other)
