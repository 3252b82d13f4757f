"""Candidates: position, size and order of connected regions."""

import dataclasses

import numpy as np
import pytest

from lung_unet.data.scan import Grid
from lung_unet.data.volume import Volume
from lung_unet.evaluation.candidates import find_candidates, marks_of, mask_of, mask_on_source
from lung_unet.evaluation.froc import MAX_MARKS, match

GRID = Grid((40, 40, 40), np.array([1.5, 1.5, 1.5]), np.array([10.0, -20.0, 30.0]))

VOLUME = Volume(np.zeros(GRID.shape, np.int16), np.ones(GRID.shape, bool), GRID, GRID)


def ball(centre, radius):
    where = np.indices(GRID.shape).transpose(1, 2, 3, 0)
    return np.linalg.norm(where - centre, axis=-1) <= radius


def test_position_and_diameter_are_in_mm_of_the_world():
    probability = 0.9 * ball((20, 15, 10), 6).astype(np.float32)
    (found,) = find_candidates(probability, VOLUME, 0.5, 3.0)
    np.testing.assert_allclose(found.centre_mm, GRID.to_world([20, 15, 10]), atol=1e-6)
    assert found.diameter_mm == pytest.approx(2 * 6 * 1.5, rel=0.05)
    assert found.probability == pytest.approx(0.9)


def test_most_probable_first_small_ones_dropped_and_mask_is_theirs():
    a, b, dot = ball((10, 10, 10), 4), ball((30, 30, 30), 4), ball((10, 30, 30), 0.5)
    probability = (0.6 * a + 0.8 * b + 0.99 * dot).astype(np.float32)
    found = find_candidates(probability, VOLUME, 0.5, 3.0)
    assert [round(c.probability, 2) for c in found] == [0.8, 0.6]
    np.testing.assert_array_equal(mask_of(found, GRID.shape), a | b)
    assert len(find_candidates(probability, VOLUME, 0.5, 0.0)) == 3


def test_the_threshold_is_exclusive_and_nothing_gives_nothing():
    probability = np.full(GRID.shape, 0.5, np.float32)
    assert find_candidates(probability, VOLUME, 0.5, 0.0) == []
    assert len(find_candidates(probability, VOLUME, 0.49, 0.0)) == 1


def test_what_lies_far_from_the_lungs_is_left_out():
    lungs = np.zeros(GRID.shape, bool)
    lungs[:, :, :20] = True
    probability = np.zeros(GRID.shape, np.float32)
    for x in (10, 25, 36):  # inside, 4.5 mm and 21 mm beside
        probability[ball((20, 20, x), 3)] = 0.9
    found = find_candidates(probability, dataclasses.replace(VOLUME, lungs=lungs), 0.5, 3.0)
    at = sorted(round(float(GRID.to_voxel(c.centre_mm)[2])) for c in found)
    assert at == [10, 25]


def test_the_centre_leans_to_where_the_model_is_surer():
    probability = 0.6 * ball((20, 20, 20), 5)
    probability[:, :, 20:] *= 1.6
    (found,) = find_candidates(probability.astype(np.float32), VOLUME, 0.5, 0.0)
    assert found.centre_mm[2] > GRID.to_world([20, 20, 20])[2]


def test_a_region_is_as_probable_as_the_mean_of_its_logits_and_never_below_the_threshold():
    core, rim = ball((20, 20, 20), 3), ball((20, 20, 20), 6)
    probability = np.maximum(1.0 * core, 0.7 * rim).astype(np.float32)
    (found,) = find_candidates(probability, VOLUME, 0.5, 0.0)
    odds = [0.7 / 0.3] * int((rim & ~core).sum()) + [2.0**24] * int(core.sum())
    mean = np.exp(np.mean(np.log(odds)))
    assert found.probability == pytest.approx(mean / (1 + mean), abs=1e-6) and found.peak == 1
    (surer,) = find_candidates(0.999 * rim.astype(np.float32), VOLUME, 0.5, 0.0)
    assert surer.probability > found.probability and surer.peak < found.peak
    for level in (0.1, 0.3, 0.7, 0.9):  # just above it everywhere, as float32 has it
        just = np.nextafter(np.float32(level), np.float32(1)) * rim
        (found,) = find_candidates(just.astype(np.float32), VOLUME, level, 0.0)
        assert np.float32(found.probability) > np.float32(level)


def test_marks_add_fainter_regions_and_no_region_twice():
    bright, faint = ball((10, 10, 10), 4), ball((30, 30, 30), 4)
    halo = ball((10, 10, 10), 7)
    probability = np.maximum(0.3 * (halo | faint), 0.8 * bright).astype(np.float32)
    sure, more = (find_candidates(probability, VOLUME, t, 3.0) for t in (0.5, 0.1))
    assert len(more) == 2
    marks = marks_of(sure, more, 0.5)
    assert [round(m.probability, 2) for m in marks] == [0.8, 0.3]
    assert marks[0] is sure[0]  # as large and where the mask has it, not with its halo
    exactly = (0.5 * faint).astype(np.float32)  # above no threshold of 0.5, and not lost
    assert len(marks_of([], find_candidates(exactly, VOLUME, 0.1, 0.0), 0.5)) == 1


def test_marks_left_out_would_not_have_counted():
    rng = np.random.default_rng(0)
    probability = np.zeros(GRID.shape, np.float32)
    dots = tuple(np.mgrid[0:40:6, 0:40:6, 0:40:6].reshape(3, -1))
    probability[dots] = rng.integers(20, 90, len(dots[0])) / 100  # with ties
    found = find_candidates(probability, VOLUME, 0.1, 0.0)
    kept = marks_of(found, [], 0.1)
    assert MAX_MARKS < len(kept) < len(found) == 343
    nodule = np.array([[*GRID.to_world(np.array(dots).T[0]), 5.0]])
    scores = [match(np.array([[*m.centre_mm, m.probability] for m in marks]), nodule,
                    np.zeros((0, 4))) for marks in (found, kept)]  # fmt: skip
    np.testing.assert_array_equal(*(np.sort(s.false) for s in scores))
    np.testing.assert_array_equal(*(s.found for s in scores))


def test_the_mask_ends_where_the_probability_crosses_the_threshold():
    fine = Grid((79, 79, 79), np.full(3, 0.75), GRID.origin_mm)
    where = np.linalg.norm(np.indices(GRID.shape).transpose(1, 2, 3, 0) - (20, 20, 20), axis=-1)
    probability = np.clip(1 - where / 12, 0, 1).astype(np.float32)  # 0.5 at 6 voxels, 9 mm
    probability[2:4, 2:4, 2:4] = 0.9
    volume = Volume(np.zeros(GRID.shape, np.int16), np.ones(GRID.shape, bool), GRID, fine)
    candidates = find_candidates(probability, volume, 0.5, 6.0)
    mask = mask_on_source(probability, candidates, volume, 0.5)
    own = fine.to_world(np.indices(fine.shape).transpose(1, 2, 3, 0)) - GRID.to_world([20, 20, 20])
    sphere = np.linalg.norm(own, axis=-1) < 9
    assert 2 * (mask & sphere).sum() / (mask.sum() + sphere.sum()) > 0.97
    assert not mask[:10].any()  # what was too small is gone
