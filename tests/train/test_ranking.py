"""Ranking scores against their definitions, pair by pair."""

import numpy as np
import pytest

from lung_unet.train.ranking import auc, average_precision, malignancy_scores


@pytest.fixture
def scored():
    rng = np.random.default_rng(3)
    return rng.integers(0, 8, 60) / 8, rng.random(60) < 0.3  # with many ties


def test_auc_is_the_share_of_pairs_in_order(scored):
    scores, positive = scored
    pairs = scores[positive][:, None] - scores[~positive]
    assert auc(scores, positive) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def test_average_precision_is_the_mean_of_the_precisions(scored):
    scores, positive = scored
    expected = np.mean([positive[scores >= s].mean() for s in scores[positive]])
    assert average_precision(scores, positive) == pytest.approx(expected)
    assert average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])) == (
        pytest.approx((1 + 2 / 3) / 2)
    )


def test_one_kind_alone_has_no_order():
    scores = np.array([0.1, 0.9])
    assert auc(scores, np.array([True, True])) is None
    assert auc(scores, np.array([False, False])) is None
    assert average_precision(scores, np.array([False, False])) is None


def test_malignancy_leaves_out_the_indeterminate():
    ratings = np.array([1.0, 3.0, 4.5, 2.0])
    scores = malignancy_scores(np.array([2.0, 5.0, 4.0, 1.0]), ratings)
    assert scores == {"malignancy_mae": pytest.approx((1 + 2 + 0.5 + 1) / 4), "malignancy_auc": 1.0}
    one_sided = malignancy_scores(np.array([2.0, 4.0]), np.array([4.0, 5.0]))
    assert one_sided == {"malignancy_mae": pytest.approx(1.5), "malignancy_auc": None}
    nobody = malignancy_scores(np.zeros(0), np.zeros(0))
    assert nobody == {"malignancy_mae": None, "malignancy_auc": None}
