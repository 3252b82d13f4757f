"""Weights interpolate linearly, average what they skip, and invent nothing."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lung_unet.data.resample import axis_weights, resample, resample_votes

axes = hypothesis.given(
    st.integers(1, 30), st.integers(1, 30), st.floats(-5, 35), st.floats(0.1, 5), st.booleans()
)
many = hypothesis.settings(max_examples=150, derandomize=True, deadline=None)


def test_step_one_changes_nothing():
    np.testing.assert_array_equal(axis_weights(7, 7, 0.0, 1.0), np.eye(7))
    np.testing.assert_array_equal(axis_weights(7, 3, 2.0, 1.0), np.eye(7)[2:5])


@many
@axes
def test_rows_are_averages(size, new_size, start, step, antialias):
    weights = axis_weights(size, new_size, start, step, antialias)
    assert weights.shape == (new_size, size)
    assert weights.dtype == np.float32
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize(("start", "step"), [(1.0, 0.4), (3.3, 1.0), (4.0, 1.5), (4.5, 2.0)])
def test_a_ramp_stays_exact_inside(start, step):
    """Antialiasing is symmetric about a position, so it keeps a ramp wherever it reaches no end."""
    weights = axis_weights(30, 12, start, step)
    positions = start + step * np.arange(12)
    inside = (positions > max(step, 1)) & (positions < 29 - max(step, 1))
    assert inside.sum() > 8
    np.testing.assert_allclose((weights @ np.arange(30))[inside], positions[inside], rtol=1e-5)


@many
@axes
def test_without_antialiasing_a_ramp_stays_exact_up_to_the_ends(size, new_size, start, step, _):
    weights = axis_weights(size, new_size, start, step, antialias=False)
    positions = np.clip(start + step * np.arange(new_size), 0, size - 1)
    np.testing.assert_allclose(weights @ np.arange(size), positions, atol=1e-4)


def test_beyond_the_ends_the_nearest_voxel_holds():
    weights = axis_weights(3, 5, -4.0, 2.5)
    np.testing.assert_allclose(weights[0] @ [7, 8, 9], weights[1] @ [7, 8, 9])
    np.testing.assert_allclose(
        axis_weights(3, 2, -4.0, 9.0, antialias=False), [[1, 0, 0], [0, 0, 1]]
    )


def test_antialiasing_averages_what_a_coarser_axis_skips():
    """Alternating voxels come out as their mean; taken one by one they come out as one kind."""
    stripes = np.tile([0.0, 100.0], 20)
    averaged = axis_weights(40, 10, 2.0, 4.0) @ stripes
    np.testing.assert_allclose(averaged[1:-1], 50, atol=1e-3)
    dropped = axis_weights(40, 10, 2.0, 4.0, antialias=False) @ stripes
    np.testing.assert_allclose(dropped, 0)


def weights3(shape, new_shape, rng) -> tuple[np.ndarray, ...]:
    return tuple(
        axis_weights(n, m, rng.uniform(-1, 2), rng.uniform(0.3, 3))
        for n, m in zip(shape, new_shape, strict=True)
    )


def test_resampling_is_one_weight_matrix_an_axis():
    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    weights = weights3(volume.shape, (4, 9, 3), rng)
    expected = np.einsum("kz,jy,ix,zyx->kji", *(w.astype(float) for w in weights), volume)
    found = resample(volume, weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_a_constant_stays_constant():
    weights = weights3((5, 6, 7), (4, 9, 3), np.random.default_rng(1))
    np.testing.assert_allclose(
        resample(np.full((5, 6, 7), -777, np.int16), weights), np.full((4, 9, 3), -777), rtol=1e-5
    )


@many
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_votes_stay_within_those_of_the_neighbours(seed):
    rng = np.random.default_rng(seed)
    votes = rng.choice([0, 0, rng.integers(1, 5), 4], (4, 5, 6)).astype(np.uint8)
    weights = tuple(
        axis_weights(n, m, rng.uniform(-1, 2), rng.uniform(0.3, 2), antialias=False)
        for n, m in zip(votes.shape, (6, 4, 5), strict=True)
    )
    found = resample_votes(votes, weights, 4)
    assert found.dtype == np.uint8
    for at in np.ndindex(found.shape):
        near = votes[np.ix_(*(np.flatnonzero(w[i]) for w, i in zip(weights, at, strict=True)))]
        assert near.min() <= found[at] <= near.max()


@pytest.mark.parametrize("step", [0.6, 0.9, 1.2])
def test_votes_keep_their_volume(step):
    """Small balls too, of which interpolation at one half loses up to a third."""
    rng = np.random.default_rng(0)
    kept, smaller = [], 0
    for radius in np.linspace(1.0, 3.0, 60):
        axes = (np.arange(12) - 5.5 - n for n in rng.uniform(-0.5, 0.5, 3))
        z, y, x = np.meshgrid(*axes, indexing="ij")
        votes = 4 * (z**2 + y**2 + x**2 <= radius**2).astype(np.uint8)
        size = int(11 / step)
        weights = tuple(axis_weights(12, size, n, step, False) for n in rng.uniform(0, step, 3))
        found = resample_votes(votes, weights, 4)
        assert set(np.unique(found)) <= {0, 4}
        kept.append(np.count_nonzero(found) * step**3 / np.count_nonzero(votes))
        half = resample((votes > 0).astype(np.float32), weights) >= 0.5
        smaller += np.count_nonzero(half) < np.count_nonzero(found)
    assert 0.98 < np.mean(kept) < 1.02 and np.std(kept) < 0.15
    assert smaller > 40


@pytest.mark.parametrize("offset", [0, 1])
def test_votes_keep_volume_and_place_where_two_voxels_become_one(offset):
    """All weights are one half there, so that many shares are equal."""
    one = axis_weights(16, 8, 0.5, 2.0, False)
    assert set(one[one > 0]) == {0.5}
    for radius in np.linspace(0.9, 6, 30):
        z, y, x = np.meshgrid(*3 * (np.arange(16) - 7.5 - offset / 2,), indexing="ij")
        votes = 3 * (z**2 + y**2 + x**2 <= radius**2).astype(np.uint8)
        votes[votes > 0] += z[votes > 0] > 0
        found = resample_votes(votes, (one, one, one), 4)
        for level, allowed in ((3, 0), (4, 2)):  # the second within the first
            kept = np.count_nonzero(found >= level)
            assert abs(kept - round(np.count_nonzero(votes >= level) / 8)) <= allowed
        if found.any():
            centre = 0.5 + 2 * np.argwhere(found).mean(0)
            moved = np.abs(centre - np.argwhere(votes).mean(0)).max()
            assert moved < 1 + 2 / np.count_nonzero(found)


def test_vote_levels_end_half_way_between_voxels():
    """Between 0 and 4 votes lies no shell of 1 to 3."""
    votes = np.zeros((1, 1, 8), np.uint8)
    votes[..., 3:6] = 4
    one = np.ones((1, 1), np.float32)
    fine = resample_votes(votes, (one, one, axis_weights(8, 701, 0.0, 0.01)), 4)[0, 0]
    assert set(fine) == {0, 4}
    assert (np.flatnonzero(fine)[0], np.flatnonzero(fine)[-1]) == (250, 549)
    votes[..., 2] = 1
    fine = resample_votes(votes, (one, one, axis_weights(8, 701, 0.0, 0.01)), 4)[0, 0]
    assert set(fine[150:250]) == {1}
    assert set(fine[250:550]) == {4}


def test_votes_beyond_the_readers_count_as_all_of_them():
    votes = np.full((1, 1, 3), 9, np.uint8)
    np.testing.assert_array_equal(
        resample_votes(votes, (np.eye(1), np.eye(1), np.eye(3)), 4), [[[4] * 3]]
    )
    none = resample_votes(votes * 0, (np.eye(1), np.eye(1), np.eye(3)), 4)
    assert none.shape == (1, 1, 3)
    assert none.dtype == np.uint8
    assert not none.any()
