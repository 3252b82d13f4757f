"""A split scored with a predictor that is known to be right, wrong, or silent."""

import csv
import json
import math
import shutil

import pytest

from lung_unet.command import frozen
from lung_unet.data.manifest import Dataset
from lung_unet.data.preparation import prepare
from lung_unet.evaluation.froc import FPS_PER_SCAN
from lung_unet.evaluation.operating_search import DEFAULT
from lung_unet.evaluation.resume import folder_of, scored_split
from lung_unet.evaluation.split import evaluate_split
from lung_unet.froc import score as froc

WANTED = {
    "dice", "precision", "recall", "f1", "iou", "nodule_dice", "hd95_mm", "nsd_2mm", "cpm",
    "sensitivity", "scans", "nodules",
}  # fmt: skip


@pytest.fixture
def score(config, dataset, oracle, tmp_path):
    def score(predictor=None, workdir=tmp_path, split="test", **kwargs):
        members = [{"step": 7, "evaluation": frozen(config.evaluation)}]
        predictor = predictor or oracle(**kwargs)
        return evaluate_split(predictor, config, dataset, split, workdir, members)

    return score


def results(workdir):
    """Every file that a scored run leaves, by its path."""
    files = (p for p in workdir.rglob("*") if p.is_file())
    return {p.relative_to(workdir): p.read_bytes() for p in files}


def test_the_truth_scores_near_one_on_the_scans_own_grid(score, tmp_path):
    metrics = score(gain=0.9)
    assert metrics["nodule_dice"] > 0.8 and metrics["found"] == metrics["nodules"] == 1
    assert metrics["false_positives_per_scan"] == 0 and metrics["step"] == 7
    assert metrics.keys() >= WANTED
    assert list(metrics["sensitivity"]) == [f"{rate:g}" for rate in FPS_PER_SCAN]
    assert metrics["intervals"]["dice"] is None  # one scan cannot be resampled
    assert set(metrics["intervals"]["sensitivity"].values()) == {None}
    assert metrics["cpm"] == 1 and set(metrics["sensitivity"].values()) == {1.0}
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    (nodule,) = csv.DictReader((tmp_path / "nodules.csv").read_text(encoding="utf-8").splitlines())
    assert float(nodule["probability"]) == pytest.approx(0.9)
    assert float(nodule["dice"]) == metrics["nodule_dice"]
    # the voxels within are given 0.9, those without 0, and there is one view
    assert 0.05 < float(nodule["boundary_entropy"]) < 0.469 and "boundary_spread" not in nodule
    assert (tmp_path / "report.html").stat().st_size > 10_000
    (scan,) = csv.DictReader((tmp_path / "scans.csv").read_text(encoding="utf-8").splitlines())
    assert (scan["searched"], scan["warnings"]) == ("lungs", "")
    assert "<th>Searched</th>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_wrong_place_is_a_miss_and_a_false_positive(score):
    metrics = score(shift=9)
    assert metrics["boundary_entropy"] is None
    assert metrics["nodule_dice"] == 0 and metrics["found"] == 0 and metrics["cpm"] == 0
    assert metrics["false_positives_per_scan"] == 1 and metrics["precision"] == 0
    assert metrics["froc"]["at_threshold"] == {
        "sensitivity": 0.0, "false_positives_per_scan": 1.0,
    }  # fmt: skip


def test_silence_has_no_precision_and_is_never_nan(score, tmp_path):
    metrics = score(gain=0.0)
    assert metrics["precision"] is None and metrics["recall"] == 0
    assert "NaN" not in (tmp_path / "metrics.json").read_text(encoding="utf-8")
    assert (tmp_path / "candidates.csv").read_text(encoding="utf-8").split() == [
        "seriesuid,coordX,coordY,coordZ,probability"
    ]


def test_the_froc_command_gives_the_same_of_candidates_csv(score, luna16, tmp_path):
    metrics = score(shift=2)  # near enough to be found, by a mark that is not in the middle
    for folder in (luna16, tmp_path / "froc"):
        again = froc(
            tmp_path / "candidates.csv",
            folder / "annotations.csv",
            folder / "annotations_excluded.csv",
            tmp_path / "froc" / "seriesuids.csv",
        )
        assert again.cpm == metrics["cpm"] > 0
        assert again.sensitivity == list(metrics["sensitivity"].values())
        assert again.true_positives == metrics["froc"]["true_positives"]


def test_interrupted_and_run_again_equals_undisturbed(score, oracle, config, dataset, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    score(workdir=undisturbed, split="train")

    class Killed(Exception):
        pass

    right = oracle()

    def dies(hu, lungs):
        if right.calls == 2:  # one validation scan, one of the two training scans
            raise Killed
        return right(hu, lungs)

    with pytest.raises(Killed):
        score(dies, disturbed, "train")
    assert not (disturbed / "train" / "metrics.json").exists()
    again = oracle()
    score(again, disturbed, "train")
    assert again.calls == 1
    assert results(disturbed) == results(undisturbed)


def test_who_finds_metrics_finds_the_report_that_belongs_to_them(score, tmp_path, monkeypatch):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    score(workdir=undisturbed)
    score(workdir=disturbed)  # the evaluation before

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lung_unet.evaluation.split.write_report", dies)
        with pytest.raises(KeyboardInterrupt):
            score(workdir=disturbed)
    assert not (disturbed / "metrics.json").exists()
    score(workdir=disturbed)
    assert results(disturbed) == results(undisturbed)


def test_each_split_has_results_of_its_own(score, tmp_path):
    score(workdir=tmp_path)
    before = results(tmp_path)
    metrics = score(workdir=tmp_path, split="validation")
    assert (
        json.loads((tmp_path / "validation" / "metrics.json").read_text(encoding="utf-8"))
        == metrics
    )
    assert (tmp_path / "validation" / "report.html").exists()
    assert before.items() <= results(tmp_path).items()


def test_what_a_kill_left_half_written_is_no_scan(score, tmp_path):
    score()
    folder = folder_of(tmp_path, "test")
    (path,) = folder.glob("*.json")
    (folder / f".0123abcd.{path.name}").write_text(path.read_text(encoding="utf-8"))
    assert list(scored_split(tmp_path, "test")[0]) == [path.stem]


def test_other_weights_or_settings_are_scored_anew(score, oracle, config, tmp_path):
    score()
    config.evaluation.overlap = 0.25
    predictor = oracle(gain=0.8)
    score(predictor)
    assert predictor.calls == 2  # the thresholds are chosen again, too
    (nodule,) = csv.DictReader((tmp_path / "nodules.csv").read_text(encoding="utf-8").splitlines())
    assert math.isclose(float(nodule["probability"]), 0.8, rel_tol=1e-6)


def test_a_split_without_nodules_is_scored_and_says_what_is_not_defined(
    config, luna16, settings, oracle, tmp_path
):
    healthy = shutil.copytree(luna16, tmp_path / "healthy")
    (healthy / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    prepare(healthy, tmp_path / "prepared", settings, workers=1)
    dataset = Dataset(tmp_path / "prepared")
    metrics = evaluate_split(
        oracle(dataset), config, dataset, "test", tmp_path / "run", [{"step": 7}]
    )
    assert metrics["thresholds"] == DEFAULT and metrics["nodules"] == 0
    for name in ("dice", "nodule_dice", "hd95_mm", "recall", "cpm"):
        assert metrics[name] is None
    assert metrics["false_positives_per_scan"] == 0
    assert set(metrics["sensitivity"].values()) == {None}
    assert (tmp_path / "run" / "nodules.csv").read_text(encoding="utf-8").split() == []
    assert (tmp_path / "run" / "figures" / "froc.png").exists()
