"""Reliability on probabilities that are right by construction, and on those that are not."""

import numpy as np
import pytest

from lung_unet.evaluation.calibration import calibration_bins, expected_calibration_error

SHAPE = (60, 60, 60)
NONE = np.zeros(SHAPE, bool)


@pytest.fixture(scope="module")
def probability():
    return np.random.default_rng(0).random(SHAPE).astype(np.float32)


def test_a_probability_that_is_one_has_no_error(probability):
    truth = np.random.default_rng(1).random(SHAPE) < probability
    assert expected_calibration_error(calibration_bins(probability, truth, NONE)) < 0.01
    half = calibration_bins(probability / 2, truth, NONE)
    assert expected_calibration_error(half) == pytest.approx(0.25, abs=0.01)


def test_bins_add_up_and_leave_out_what_is_ignored_or_hardly_probable(probability):
    truth, ignore = probability > 0.5, probability > 0.7
    bins = calibration_bins(probability, truth, ignore)
    counted = (probability >= 0.01) & ~ignore
    assert bins[0].sum() == counted.sum() and bins[0, 7:].sum() == 0
    assert bins[1].sum() == pytest.approx(probability[counted].sum(dtype=float))
    assert bins[2].sum() == (truth & counted).sum()
    parts = [calibration_bins(probability[s], truth[s], ignore[s]) for s in np.s_[:30, 30:]]
    np.testing.assert_allclose(sum(parts), bins)


def test_certainty_is_in_the_last_bin_and_nothing_has_no_error():
    sure = calibration_bins(np.ones(SHAPE, np.float32), ~NONE, NONE)
    assert sure[0, -1] == NONE.size and expected_calibration_error(sure) == 0
    none = calibration_bins(np.zeros(SHAPE, np.float32), NONE, NONE)
    assert expected_calibration_error(none) is None
