"""Overlap scores on hand-made cases and against the definition."""

import numpy as np
import pytest

from lung_unet.data.scan import Finding
from lung_unet.evaluation.voxel import Counts, count, score

SHAPE = (30, 30, 30)


def finding(low, size, readers=4, included=True):
    votes = np.full(size, readers, np.uint8)
    return Finding(np.array(low, float), 10.0, readers, included, np.array(low), votes)


def box(low, size):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(l, l + n) for l, n in zip(low, size, strict=True))] = True
    return mask


NONE = np.zeros(SHAPE, bool)


def test_counts_follow_their_definitions():
    rng = np.random.default_rng(0)
    prediction, truth, ignore = (rng.random(SHAPE) < p for p in (0.3, 0.2, 0.1))
    m = count(prediction, truth, ignore).metrics()
    p, t = prediction & ~ignore, truth & ~ignore
    assert m["dice"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
    assert m["iou"] == pytest.approx((p & t).sum() / (p | t).sum())
    assert m["precision"] == pytest.approx((p & t).sum() / p.sum())
    assert m["recall"] == pytest.approx((p & t).sum() / t.sum())
    assert m["f1"] == m["dice"]


def test_what_nothing_defines_is_none_and_counts_add_up():
    assert set(Counts().metrics().values()) == {None}
    assert Counts(0, 5, 0).metrics()["precision"] == 0
    assert Counts(0, 5, 0).metrics()["recall"] is None
    assert Counts(1, 2, 3) + Counts(4, 5, 6) == Counts(5, 7, 9)


def test_each_nodule_is_scored_with_the_regions_that_meet_it():
    findings = (finding((2, 2, 2), (4, 4, 4)), finding((20, 20, 20), (4, 4, 4)))
    prediction = box((2, 2, 2), (4, 4, 4)) | box((12, 2, 2), (3, 3, 3))
    result = score(prediction, findings, NONE, 2)
    assert [n.dice for n in result.nodules] == [1.0, 0.0]
    assert [n.found for n in result.nodules] == [True, False]
    assert len(result.false_positives) == 1


def test_a_region_that_spills_costs_and_one_in_two_parts_counts_whole():
    findings = (finding((10, 10, 10), (4, 4, 4)),)
    spilling = score(box((10, 10, 10), (8, 4, 4)), findings, NONE, 2)
    assert spilling.nodules[0].dice == pytest.approx(2 / 3)
    parts = box((10, 10, 10), (1, 4, 4)) | box((13, 10, 10), (1, 4, 4))
    assert score(parts, findings, NONE, 2).nodules[0].dice == pytest.approx(2 / 3)


def test_one_region_over_two_nodules_costs_each_only_what_is_neither():
    findings = (finding((10, 10, 4), (4, 4, 4)), finding((10, 10, 12), (4, 4, 4)))
    result = score(box((10, 10, 4), (4, 4, 12)), findings, NONE, 2)
    assert [n.dice for n in result.nodules] == [pytest.approx(2 * 64 / (128 + 64))] * 2
    assert result.false_positives == ()


def test_what_is_ignored_is_neither_hit_nor_wrong():
    ignore = box((20, 20, 20), (5, 5, 5))
    result = score(box((20, 20, 20), (4, 4, 4)), (), ignore, 2)
    assert result.false_positives == () and result.counts == Counts()


def test_consensus_decides_what_is_true_and_a_nodule_nobody_shares_is_what_any_drew():
    votes = np.ones((4, 4, 4), np.uint8)
    votes[:2] = 3
    both = Finding(np.zeros(3), 8.0, 3, True, np.array([5, 5, 5]), votes)
    upper = box((5, 5, 5), (2, 4, 4))
    assert score(upper, (both,), NONE, 2).nodules[0].dice == 1.0
    assert score(upper, (both,), NONE, 1).nodules[0].dice == pytest.approx(2 / 3)
    alone = Finding(np.zeros(3), 8.0, 3, True, np.array([5, 5, 5]), np.ones((4, 4, 4), np.uint8))
    assert score(box((5, 5, 5), (4, 4, 4)), (alone,), NONE, 2).nodules[0].dice == 1.0
