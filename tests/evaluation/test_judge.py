"""A second stage beside a segmentation: what it says of marks, in metrics and report."""

import dataclasses
import json

import numpy as np
import pytest

from lung_unet.evaluation.candidates import Candidate
from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.operating_point import OperatingPoint, choose
from lung_unet.evaluation.resume import scored_split
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
    assert (
        json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["second_stage"] == own
    )
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "false positives of the highest, at most 3 a scan" in report
    assert "integrated gradients" in report and "no nodule that was found is rated" in report
    assert (tmp_path / "figures" / "second_stage.png").exists()
    rows = (tmp_path / "candidates_second_stage.csv").read_text(encoding="utf-8").splitlines()
    assert (
        rows[0]
        == "seriesuid,coordX,coordY,coordZ,probability,first_stage,nodule_probability,malignancy"
    )
    assert len(rows) == 1 + own["marks"]
    evaluate_split(oracle(shift=1), config, dataset, "test", tmp_path, MEMBERS)
    assert "second_stage" not in json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "figures" / "second_stage.png").exists()
    assert not (tmp_path / "candidates_second_stage.csv").exists()


def test_only_a_report_has_pictures_drawn(dataset, oracle, config, second, tmp_path):
    evaluate_split(oracle(shift=1), config, dataset, "test", tmp_path, MEMBERS)
    marks = list(scored_split(tmp_path, "test")[0].values())
    for drawn in (False, True):
        scans = second.judge_split(dataset, "test", marks, tmp_path / "judged", {}, pictures=drawn)
        assert any(scan["pictures"] for scan in scans) == drawn


def test_both_stages_decide_what_is_in_the_mask(config, dataset, oracle, second, tmp_path):
    def scored(name, finding_threshold):
        predictor, out = oracle(shift=1), tmp_path / name
        beside = MEMBERS[0] | vars(choose(predictor, config, dataset, out, MEMBERS))
        stages = dataclasses.replace(
            second, finding_threshold=finding_threshold, segmentation=beside
        )
        metrics = evaluate_split(predictor, config, dataset, "test", out, MEMBERS, stages)
        assert metrics["second_stage"]["finding_threshold"] == finding_threshold
        return metrics

    alone, kept, dropped = scored("a", None), scored("b", 0.0), scored("c", 0.99)
    assert alone["found"] == kept["found"] == 1 and alone["nodule_dice"] == kept["nodule_dice"] > 0
    assert dropped["found"] == dropped["nodule_dice"] == 0 and dropped["recall"] == 0
    assert dropped["cpm"] == alone["cpm"] == 1  # the segmentation's marks are what they were
    at = [m["froc"]["at_threshold"]["sensitivity"] for m in (alone, kept, dropped)]
    assert at == [1, 1, 0]  # of those in the mask
    again = scored("c", 0.0)  # what was scored for another threshold is scored anew
    assert again["found"] == 1


def test_beside_another_segmentation_that_one_decides_and_a_line_says_so(second, capsys):
    point = OperatingPoint(0.2, 0.5, 0.1, 3.0)
    tuned = dataclasses.replace(
        second, finding_threshold=0.7, segmentation=MEMBERS[0] | vars(point)
    )
    assert tuned.beside(MEMBERS, point) is tuned and not capsys.readouterr().out
    lower = dataclasses.replace(point, threshold=0.1)
    for members, other in (([{"step": 8}], point), (MEMBERS * 2, point), (MEMBERS, lower)):
        loose = tuned.beside(members, other)
        assert loose.finding_threshold is None and loose.weight == tuned.weight
        assert "the segmentation alone decides" in capsys.readouterr().out


def test_a_region_is_a_finding_by_the_score_of_both_stages(second):
    def region(x, probability):
        mask = np.ones((1, 1, 1), bool)
        box = (slice(0, 1),) * 3
        return Candidate(np.array([0, 0, x]), 5.0, probability, probability, box, mask)

    regions = [region(1.0, 0.6), region(-1.0, 0.6), region(2.0, 0.01)]
    point = OperatingPoint(0.005, 0.5, 0.005, 0.0)
    second = dataclasses.replace(second, finding_threshold=0.5)
    ((one, opinion),) = second.findings(None, regions, point)
    assert one is regions[0] and opinion.score > 0.5
    unset = dataclasses.replace(second, finding_threshold=None)
    assert [r for r, _ in unset.findings(None, regions, point)] == regions[:2]


def test_without_ratings_nothing_is_said_of_malignancy(second, dataset, tmp_path):
    silent = SecondStage(second.classifier, 0.5, False, {})
    (opinion,) = silent(None, [np.zeros(3)], [0.4])
    assert opinion.malignancy is None and 0 < opinion.score < 1
    (rated,) = second(None, [np.array([0, 0, 50.0])], [0.4])
    assert rated.malignancy == 4 and rated.nodule_probability == pytest.approx(0.9)
