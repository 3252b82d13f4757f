"""Candidates: position, size and order of connected regions."""

import numpy as np
import pytest

from lung_unet.data.scan import Grid
from lung_unet.evaluation.candidates import find_candidates, mask_of

GRID = Grid((40, 40, 40), np.array([1.5, 1.5, 1.5]), np.array([10.0, -20.0, 30.0]))


def ball(centre, radius):
    where = np.indices(GRID.shape).transpose(1, 2, 3, 0)
    return np.linalg.norm(where - centre, axis=-1) <= radius


def test_position_and_diameter_are_in_mm_of_the_world():
    probability = 0.9 * ball((20, 15, 10), 6).astype(np.float32)
    (found,) = find_candidates(probability, GRID, 0.5, 3.0)
    np.testing.assert_allclose(found.centre_mm, GRID.to_world([20, 15, 10]), atol=1e-6)
    assert found.diameter_mm == pytest.approx(2 * 6 * 1.5, rel=0.05)
    assert found.probability == pytest.approx(0.9)


def test_most_probable_first_small_ones_dropped_and_mask_is_theirs():
    a, b, dot = ball((10, 10, 10), 4), ball((30, 30, 30), 4), ball((10, 30, 30), 0.5)
    probability = (0.6 * a + 0.8 * b + 0.99 * dot).astype(np.float32)
    found = find_candidates(probability, GRID, 0.5, 3.0)
    assert [round(c.probability, 2) for c in found] == [0.8, 0.6]
    np.testing.assert_array_equal(mask_of(found, GRID.shape), a | b)
    assert len(find_candidates(probability, GRID, 0.5, 0.0)) == 3


def test_the_threshold_is_exclusive_and_nothing_gives_nothing():
    probability = np.full(GRID.shape, 0.5, np.float32)
    assert find_candidates(probability, GRID, 0.5, 0.0) == []
    assert len(find_candidates(probability, GRID, 0.49, 0.0)) == 1


def test_the_centre_leans_to_where_the_model_is_surer():
    probability = 0.6 * ball((20, 20, 20), 5)
    probability[:, :, 20:] *= 1.6
    (found,) = find_candidates(probability.astype(np.float32), GRID, 0.5, 0.0)
    assert found.centre_mm[2] > GRID.to_world([20, 20, 20])[2]
