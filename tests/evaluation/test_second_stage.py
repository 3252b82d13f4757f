"""Two stages as one score, and what it brings, on marks whose truth is known."""

import numpy as np
import pytest

from lung_unet.evaluation.second_stage import (
    best_finding_threshold,
    best_weight,
    measure,
    pooled,
    rows_of,
)

RADIUS_MM = 5.0


def scan(nodules=2, others=6, second="right", first=0.6, excluded=0):
    """Marks that the segmentation cannot tell apart, on nodules, on others and on excluded ones."""
    kinds = ["nodule"] * nodules + ["other"] * others + ["excluded"] * excluded
    marks = [[100.0 * i, 0.0, 0.0, first] for i in range(len(kinds))]
    at = {kind: [[*m[:3], 2 * RADIUS_MM] for m, k in zip(marks, kinds, strict=True) if k == kind]
          for kind in ("nodule", "excluded")}  # fmt: skip
    says = {"right": 0.9, "wrong": 0.1}[second]
    opinions = [[says if kind == "nodule" else 1 - says, 3.0] for kind in kinds]
    return {"series_uid": "1.2", "marks": marks, "nodules": at["nodule"], "opinions": opinions,
            "excluded": at["excluded"], "malignancy": []}  # fmt: skip


def test_the_pool_has_either_stage_alone_and_the_mean_of_logits_between():
    first, second = np.array([0.2, 0.9, 0.5]), np.array([0.7, 0.9, 0.5])
    np.testing.assert_allclose(pooled(first, second, 0), first)
    np.testing.assert_allclose(pooled(first, second, 1), second)
    odds = np.sqrt(first / (1 - first) * second / (1 - second))
    np.testing.assert_allclose(pooled(first, second, 0.5), odds / (1 + odds))
    assert pooled(np.array([np.nan]), np.array([0.3]), 0.5) == 0.3


def test_certainty_of_one_stage_does_not_silence_the_other():
    low, high = pooled(np.ones(2), np.array([0.1, 0.9]), 0.5)
    assert low < high < 1


def test_a_right_second_stage_is_weighed_in_and_a_wrong_one_out():
    weight, cpm = best_weight([scan(first=0.6), scan(first=0.7)])
    assert weight == 0.5 and cpm == 1.0  # ties go to one half
    wrong = [scan(second="wrong")]
    for i, mark in enumerate(wrong[0]["marks"]):
        mark[3] = 0.9 - 0.05 * i  # the segmentation is right
    assert best_weight(wrong) == (0.0, 1.0)
    assert best_weight([scan(nodules=0)]) == (0.5, None)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_of_findings_has_the_highest_dice_of_all(seed):
    rng = np.random.default_rng(seed)
    scans = [scan(), scan(nodules=1, others=9), scan(nodules=0)]
    for one in scans:
        one["opinions"] = [[p, 3.0] for p in rng.choice([0.1, 0.3, 0.5, 0.8], len(one["marks"]))]
        one["voxels"] = rng.integers(0, 50, (len(one["marks"]), 2)).tolist()
        one["voxels"][-1] = None  # a fainter mark is not in the mask
        one["truth"] = 200

    def dice(limit):
        kept = [
            voxels
            for one, rows in zip(scans, rows_of(scans, 0.5), strict=True)
            for score, voxels in zip(rows[:, 3], one["voxels"], strict=True)
            if voxels is not None and score > limit
        ]
        hit, wrong = np.sum(kept, 0) if kept else (0, 0)
        return 2 * hit / (hit + wrong + 600)

    best = best_finding_threshold(scans, 0.5)
    assert dice(best) == max(dice(limit) for limit in np.linspace(0, 1, 200)) > 0


def test_without_regions_or_nodules_no_threshold_of_findings_is_chosen():
    one = scan() | {"voxels": [None] * 8, "truth": 200}
    assert best_finding_threshold([one], 0.5) is None
    assert best_finding_threshold([one | {"voxels": [[0, 9]] * 8, "truth": 0}], 0.5) is None
    assert best_finding_threshold([one | {"truth": None}], 0.5) is None
    assert best_finding_threshold([one | {"voxels": [[9, 0]] * 8}], 0.5) == 0  # all are right


def test_what_is_gained_is_the_difference_on_the_same_marks():
    scans = [scan(), scan(excluded=3), scan(nodules=1)]
    metrics, froc, first = measure(scans, 0.5)
    assert metrics["cpm"] == froc.cpm == 1 and metrics["first_stage"]["cpm"] == first.cpm < 0.9
    assert metrics["cpm_gain"] == pytest.approx(1 - first.cpm)
    low, high = metrics["intervals"]["cpm_gain"]
    assert low <= metrics["cpm_gain"] + 1e-9 and metrics["cpm_gain"] <= high + 1e-9
    assert metrics["auc"] == metrics["average_precision"] == 1 and metrics["marks"] == 26
    assert metrics["malignancy_auc"] is None and metrics["rated"] == 0


def test_listed_marks_have_no_first_stage_and_no_nodules_no_cpm():
    listed = scan()
    for mark in listed["marks"]:
        mark[3] = None
    metrics, froc, first = measure([listed], 0.5)
    assert first is None and metrics["first_stage"] is None and metrics["cpm_gain"] is None
    assert froc.cpm == 1 and metrics["intervals"]["cpm"] is None  # one scan
    metrics, *_ = measure([scan(nodules=0), scan(nodules=0)], 0.5)
    assert metrics["cpm"] is metrics["auc"] is metrics["cpm_gain"] is None
    assert metrics["intervals"] == {"cpm": None, "cpm_gain": None}
