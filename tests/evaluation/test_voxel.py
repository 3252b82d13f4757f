"""Overlap scores on hand-made cases and against the definition."""

import numpy as np
import pytest

from lung_unet.data.scan import ALL_READERS, Finding
from lung_unet.evaluation import voxel
from lung_unet.evaluation.surface import surface_distances
from lung_unet.evaluation.voxel import Counts, ScanScore, count

SHAPE = (30, 30, 30)
SPACING_MM = (2.0, 0.5, 0.5)
METRICS = {
    "dice", "iou", "precision", "recall", "f1", "volume_mm3", "predicted_mm3", "volume_error_mm3",
    "volume_error_percent", "hd95_mm", "nsd_1mm", "nsd_2mm", "reader_dice", "readers_dice",
}  # fmt: skip


def finding(low, size, included=True, **fields):
    bits = np.full(size, ALL_READERS, np.uint8)
    return Finding(np.array(low, float), 10.0, 4, included, np.array(low), bits, **fields)


def read(low, outlines):
    """A finding of the outlines, bool, that readers drew in a box."""
    bits = sum(mask.astype(np.uint8) << reader for reader, mask in outlines.items())
    return Finding(np.array(low, float), 10.0, len(outlines), True, np.array(low), bits)


def score(prediction, findings, ignore, consensus) -> ScanScore:
    return voxel.score(prediction, findings, ignore, consensus, SPACING_MM)


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


def test_what_nothing_defines_is_none():
    assert set(Counts().metrics().values()) == {None}
    assert Counts(0, 5, 0).metrics()["precision"] == 0
    assert Counts(0, 5, 0).metrics()["recall"] is None


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
    bits = np.full((4, 4, 4), 0b0100, np.uint8)
    bits[:2] = 0b1110
    both = Finding(np.zeros(3), 8.0, 3, True, np.array([5, 5, 5]), bits)
    upper = box((5, 5, 5), (2, 4, 4))
    assert score(upper, (both,), NONE, 2).nodules[0].dice == 1.0
    assert score(upper, (both,), NONE, 1).nodules[0].dice == pytest.approx(2 / 3)
    alone = Finding(np.zeros(3), 8.0, 3, True, np.array([5, 5, 5]), np.ones((4, 4, 4), np.uint8))
    assert score(box((5, 5, 5), (4, 4, 4)), (alone,), NONE, 2).nodules[0].dice == 1.0


def test_a_nodules_metrics_are_those_of_its_own_masks_in_mm():
    """A spill, a second region, an ignored corner and another nodule, against the definitions."""
    own, other = finding((10, 10, 4), (4, 6, 6)), finding((10, 10, 14), (4, 4, 4))
    ignore = box((12, 10, 10), (2, 6, 2))
    prediction = box((10, 11, 4), (4, 8, 14)) | box((20, 2, 2), (3, 3, 3))
    truth = box((10, 10, 4), (4, 6, 6))
    expected = box((10, 11, 4), (4, 8, 14)) & ~ignore & ~box((10, 10, 14), (4, 4, 4))
    (found, _) = score(prediction, (own, other), ignore, 2).nodules
    metrics = found.metrics()
    assert metrics.keys() == METRICS and found.dice == metrics["dice"]
    assert metrics.items() >= count(expected, truth).metrics().items()
    assert metrics["volume_mm3"] == truth.sum() * 0.5
    assert metrics["predicted_mm3"] == expected.sum() * 0.5
    assert metrics["volume_error_mm3"] == (expected.sum() - truth.sum()) * 0.5
    assert metrics["volume_error_percent"] == pytest.approx(100 * expected.sum() / 144 - 100)
    distances = surface_distances(expected, truth, SPACING_MM)
    assert metrics["hd95_mm"] == distances.hd95_mm() > 1
    assert metrics["nsd_1mm"] == distances.surface_dice(1.0) < metrics["nsd_2mm"] < 1


def test_a_missed_nodule_has_a_value_or_none_for_everything():
    (missed,) = score(
        box((2, 2, 2), (3, 3, 3)), (finding((10, 10, 4), (4, 4, 4)),), NONE, 2
    ).nodules
    metrics = missed.metrics()
    zero = ("dice", "iou", "recall", "f1", "predicted_mm3", "nsd_1mm", "nsd_2mm", "reader_dice")
    assert [metrics[name] for name in zero] == [0] * len(zero)
    assert metrics["precision"] is None and metrics["hd95_mm"] is None
    assert metrics["volume_error_percent"] == -100 and metrics["volume_error_mm3"] == -32
    assert not missed.found and missed.dice == 0


def test_readers_are_compared_with_the_prediction_and_with_each_other():
    whole, half, none = np.ones((2, 4, 4), bool), np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4))
    half[:1] = True
    three = read((8, 8, 8), {0: whole, 2: half, 3: half})
    (found,) = score(box((8, 8, 8), (1, 4, 8)), (three,), NONE, 2).nodules
    assert found.metrics()["reader_dice"] == pytest.approx((2 * 16 / 64 + 2 * (2 * 16 / 48)) / 3)
    assert found.metrics()["readers_dice"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    alone = read((8, 8, 8), {1: half, 2: none > 0})  # who drew nothing is no reader of it
    metrics = score(box((8, 8, 8), (2, 4, 4)), (alone,), NONE, 1).nodules[0].metrics()
    assert metrics["reader_dice"] == pytest.approx(2 / 3) and metrics["readers_dice"] is None


def test_one_shape_for_all_readers_says_nothing_of_their_agreement():
    sphere = finding((8, 8, 8), (4, 4, 4), outlined=False)
    metrics = score(box((8, 8, 8), (4, 4, 4)), (sphere,), NONE, 2).nodules[0].metrics()
    assert metrics["dice"] == 1
    assert metrics["reader_dice"] is None and metrics["readers_dice"] is None


def test_a_scan_has_the_metrics_of_all_voxels_and_means_over_its_nodules():
    findings = (finding((2, 2, 2), (4, 4, 4)), finding((20, 20, 20), (4, 4, 4)))
    half = score(box((2, 2, 2), (4, 4, 6)) | box((12, 2, 2), (2, 2, 2)), findings, NONE, 2)
    metrics, found = half.metrics(), half.nodules[0]
    assert metrics.keys() == METRICS - {"reader_dice", "readers_dice"}
    assert metrics.items() >= half.counts.metrics().items()
    assert (metrics["volume_mm3"], metrics["predicted_mm3"]) == (128 / 2, 104 / 2)
    assert metrics["hd95_mm"] == found.metrics()["hd95_mm"] == 1.0
    assert metrics["nsd_2mm"] == found.metrics()["nsd_2mm"] / 2
    silent = score(NONE, findings, NONE, 2).metrics()
    assert silent["hd95_mm"] is None and silent["nsd_1mm"] == 0
    nothing = score(NONE, (), NONE, 2).metrics()
    assert {k for k, v in nothing.items() if v == 0} == {
        "volume_mm3", "predicted_mm3", "volume_error_mm3"
    }  # fmt: skip
    assert all(v is None for v in nothing.values() if v != 0)
