"""A split scored with a predictor that is known to be right, wrong, or silent."""

import csv
import json

import numpy as np
import pytest

from lung_unet.data.pipeline import scan_records
from lung_unet.data.volume import make_labels
from lung_unet.evaluation.scoring import evaluate_split


class Oracle:
    """Predicts the truth, or a shifted truth, or nothing."""

    def __init__(self, dataset, split, shift=0, gain=1.0):
        self._truth = {}
        for i in range(len(scan_records(dataset, split))):
            record = scan_records(dataset, split)[i]
            truth = make_labels(record.findings, record.volume) == 4
            self._truth[record.volume.hu.tobytes()] = np.roll(truth, shift, 1) * np.float32(gain)

    def __call__(self, hu, lungs):
        return self._truth[hu.tobytes()].copy()


@pytest.fixture
def score(config, dataset, tmp_path):
    def score(**kwargs):
        predictor = Oracle(dataset, "test", **kwargs)
        return evaluate_split(predictor, config, dataset, "test", tmp_path, 7)

    return score


def test_the_truth_scores_near_one_on_the_scans_own_grid(score, tmp_path):
    metrics = score(gain=0.9)
    assert metrics["nodule_dice"] > 0.8 and metrics["nodules_found"] == metrics["nodules"] == 1
    assert metrics["false_positives_per_scan"] == 0 and metrics["step"] == 7
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    (nodule,) = csv.DictReader((tmp_path / "nodules.csv").read_text().splitlines())
    assert float(nodule["probability"]) == pytest.approx(0.9)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_a_wrong_place_is_a_miss_and_a_false_positive(score):
    metrics = score(shift=9)
    assert metrics["nodule_dice"] == 0 and metrics["nodules_found"] == 0
    assert metrics["false_positives_per_scan"] == 1 and metrics["precision"] == 0


def test_silence_has_no_precision_and_is_never_nan(score, tmp_path):
    metrics = score(gain=0.0)
    assert metrics["precision"] is None and metrics["recall"] == 0
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
