"""A sample's random numbers come from its position alone."""

import numpy as np

from data.randomness import Stream, draw

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
    # The position is a high word of Philox's counter: a large sample never runs into the next one's numbers.
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
