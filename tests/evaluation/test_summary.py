"""Metrics of made-up scans against their definitions, and what intervals must be like."""

import numpy as np
import pytest

from lung_unet.evaluation.summary import RESAMPLES, bounds, froc_of, measure, summarise
from lung_unet.evaluation.voxel import Counts


def scan(seed, nodules=2, dice=None):
    """A scan as `score_scan` gives it, with marks on its nodules and beside them."""
    rng = np.random.default_rng(seed)
    included = [[100.0 * i, 0.0, 0.0, 10.0] for i in range(nodules)]
    marks = [[*row[:3], float(p)] for row, p in zip(included, rng.random(nodules), strict=True)]
    marks += [[50.0, 500.0, 0.0, float(p)] for p in rng.random(3)]
    own = rng.random(nodules) if dice is None else [dice] * nodules
    return {
        "series_uid": str(seed),
        "voxels": dict(zip(("hit", "false_positive", "missed"), rng.integers(1, 99, 3).tolist(),
                           strict=True)),
        "metrics": {},
        "false_positives": int(rng.integers(5)),
        "nodules": [
            {"facts": {"found": bool(d > 0.2)}, "metrics": {"dice": float(d), "hd95_mm": None}}
            for d in own
        ],
        "marks": marks,
        "in_mask": [mark[3] > 0.5 for mark in marks],
        "included": included,
        "excluded": [],
        "calibration": np.ones((3, 10)).tolist(),
        "pictures": [],
    }  # fmt: skip


def test_metrics_are_those_of_all_scans_together():
    scans = [scan(i) for i in range(7)]
    metrics = summarise(scans, froc_of(scans))
    voxels = {key: sum(s["voxels"][key] for s in scans) for key in scans[0]["voxels"]}
    together = Counts(**voxels).metrics()
    assert {k: metrics[k] for k in together} == pytest.approx(together)
    dice = [n["metrics"]["dice"] for s in scans for n in s["nodules"]]
    assert metrics["nodule_dice"] == pytest.approx(np.mean(dice))
    assert metrics["hd95_mm"] is None and metrics["nsd_2mm"] is None
    assert metrics["found"] == np.mean(np.array(dice) > 0.2)
    assert metrics["cpm"] == froc_of(scans).cpm
    assert list(metrics["sensitivity"].values()) == froc_of(scans).sensitivity
    sure = sum(m[3] > 0.5 for s in scans for m in s["marks"][2:])
    assert metrics["froc"]["at_threshold"]["false_positives_per_scan"] == sure / 7


def test_intervals_hold_the_value_and_shrink_with_more_scans():
    few, many = ([scan(i) for i in range(n)] for n in (6, 60))
    widths = []
    for scans in (few, many):
        metrics = summarise(scans, froc_of(scans))
        for name in ("dice", "nodule_dice", "cpm", "found"):
            low, high = metrics["intervals"][name]
            assert low <= metrics[name] <= high
        widths.append(np.ptp(metrics["intervals"]["nodule_dice"]))
    assert widths[1] < 0.7 * widths[0]
    same = [scan(i, dice=0.5) for i in range(4)]
    assert summarise(same, froc_of(same))["intervals"]["nodule_dice"] is None  # not [0.5, 0.5]


def test_without_nodules_nothing_of_theirs_is_defined():
    scans = [scan(i, nodules=0) for i in range(3)]
    metrics = summarise(scans, froc_of(scans))
    for name in ("nodule_dice", "hd95_mm", "found", "cpm"):
        assert metrics[name] is None and metrics["intervals"][name] is None
    assert set(metrics["sensitivity"].values()) == {None}
    assert metrics["froc"]["at_threshold"]["sensitivity"] is None
    assert metrics["dice"] is not None and metrics["nodules"] == 0


def test_resamples_that_define_nothing_are_left_out():
    scans = [scan(0), *(scan(i, nodules=0) for i in (1, 2))]
    values, samples = measure(scans, froc_of(scans))
    assert 0 < np.isnan(samples["nodule_dice"]).sum() < RESAMPLES
    assert bounds(samples["nodule_dice"]) is not None
    assert samples.keys() == values.keys()


def test_scans_of_one_patient_are_resampled_together():
    """Each patient's scans copied four times, metrics are no surer than with one scan each."""
    once = [scan(i) | {"patient": f"P{i}"} for i in range(8)]
    copies = [scan(i) | {"patient": f"P{i}", "series_uid": f"{i}.{k}"} for i in range(8)
              for k in range(4)]  # fmt: skip
    one, four = (summarise(scans, froc_of(scans)) for scans in (once, copies))
    assert (one["resampled"], one["patients"]) == ("scans", 8) and "intervals_by_scan" not in one
    assert (four["resampled"], four["patients"]) == ("patients", 8)
    for name in ("dice", "nodule_dice", "cpm", "false_positives_per_scan"):
        assert four[name] == pytest.approx(one[name])
        assert four["intervals"][name] == pytest.approx(one["intervals"][name])
        surer = np.ptp(four["intervals_by_scan"][name])
        assert surer < 0.75 * np.ptp(four["intervals"][name]), name


@pytest.mark.parametrize(
    ("patients", "by"),
    [("PPPP", "scans"), ("PQRS", "scans"), ("PPQR", "patients"), ((None,) * 4, "scans"),
     (("P", "P", None, None), "patients")],
)  # fmt: skip
def test_patients_are_resampled_where_that_means_something(patients, by):
    scans = [scan(i) | {"patient": patient} for i, patient in enumerate(patients)]
    metrics = summarise(scans, froc_of(scans))
    assert metrics["resampled"] == by
    assert metrics["patients"] == (len(set(patients) - {None}) or None)
