"""A second stage beside a segmentation: what it says of marks, in metrics and report."""

import json

import numpy as np
import pytest

from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.split import evaluate_split

MEMBERS = [{"step": 7}]


class Knowing:
    """Calls marks left of the middle nodules, the further the more malignant."""

    def __call__(self, volume, centres_mm):
        x = np.array([centre[2] for centre in centres_mm])
        return np.where(x > 0, 0.9, 0.2), np.clip(3 + x / 50, 1, 5)

    def attribution(self, volume, centre_mm):
        return np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.float32)


@pytest.fixture
def second():
    return SecondStage(Knowing(), 0.5, True, {"step": 3})


def test_metrics_and_report_have_both_stages(config, dataset, oracle, second, tmp_path):
    metrics = evaluate_split(oracle(shift=1), config, dataset, "test", tmp_path, MEMBERS, second)
    own = metrics["second_stage"]
    assert own["first_stage"]["cpm"] == metrics["cpm"] and own["weight"] == 0.5
    assert json.loads((tmp_path / "metrics.json").read_text())["second_stage"] == own
    report = (tmp_path / "report.html").read_text()
    assert "integrated gradients" in report and "no nodule that was found is rated" in report
    assert (tmp_path / "figures" / "second_stage.png").exists()
    rows = (tmp_path / "candidates_second_stage.csv").read_text().splitlines()
    assert (
        rows[0]
        == "seriesuid,coordX,coordY,coordZ,probability,first_stage,nodule_probability,malignancy"
    )
    assert len(rows) == 1 + own["marks"]
    evaluate_split(oracle(shift=1), config, dataset, "test", tmp_path, MEMBERS)
    assert "second_stage" not in json.loads((tmp_path / "metrics.json").read_text())
    assert not (tmp_path / "figures" / "second_stage.png").exists()


def test_without_ratings_nothing_is_said_of_malignancy(second, dataset, tmp_path):
    silent = SecondStage(second.classifier, 0.5, False, {})
    (opinion,) = silent(None, [np.zeros(3)], [0.4])
    assert opinion.malignancy is None and 0 < opinion.score < 1
    (rated,) = second(None, [np.array([0, 0, 50.0])], [0.4])
    assert rated.malignancy == 4 and rated.nodule_probability == pytest.approx(0.9)
