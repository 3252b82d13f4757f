"""Folds gathered: as if one run had scored all their scans, and only where that is sound."""

import json

import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.evaluation.compare import compare
from lung_unet.evaluation.froc import evaluate_marks
from lung_unet.evaluation.gather import gather
from lung_unet.evaluation.resume import folder_of, scored_split, write_result
from lung_unet.evaluation.scoring import VERSION

RECIPE = {"data.patch": [64, 64, 64], "model.channels": [16, 32], "optimizer.learning_rate": 0.01}


def result(uid: str, rng: np.random.Generator, threshold: float) -> dict:
    """A scan as `score_scan` gives it: two nodules, marks on them and beside them."""
    included = [[0.0, 0.0, 0.0, 10.0], [90.0, 0.0, 0.0, 10.0]]
    marks = [[*row[:3], float(p)] for row, p in zip(included, rng.random(2), strict=True)]
    marks += [[50.0, 500.0, 0.0, float(p)] for p in rng.random(4)]
    facts = {"series_uid": uid, "diameter_mm": 10.0, "found": True, "probability": 0.5}
    return {
        "series_uid": uid,
        "voxels": {"hit": 10, "false_positive": 5, "missed": 5},
        "metrics": {"dice": 0.5},
        "false_positives": 1,
        "nodules": [{"facts": facts, "metrics": {"dice": float(d)}} for d in rng.random(2)],
        "marks": marks,
        "in_mask": [mark[3] > threshold for mark in marks],
        "included": included,
        "excluded": [],
        "calibration": np.ones((3, 10)).tolist(),
        "pictures": [],
    }


@pytest.fixture
def fold(tmp_path):
    """fold(k, name) → the folder of a run whose test split, three scans, is scored."""

    def make(k, name="fold", threshold=0.5, scans=3, recipe=RECIPE, members=1, **settings):
        rng = np.random.default_rng(k)
        workdir = tmp_path / f"{name}{k}"
        config = recipe | {"data.fold": k, "seed": k}
        one = {"step": 100 + k, "checkpoint": k, "config": config, "evaluation": {"overlap": 0.5}}
        point = {"threshold": 0.2, "finding_threshold": threshold}
        settings = {"data": "d", "fold": k, "readers": 2, "members": [one] * members,
                    "point": point, "version": VERSION} | settings  # fmt: skip
        for number in range(scans):
            uid = f"1.2.{k}.{number}"
            write_result(folder_of(workdir, "test") / f"{uid}.json", settings, 3,
                         result(uid, rng, threshold))  # fmt: skip
        return workdir

    return make


def test_the_scores_are_those_of_all_folds_scans_together(fold, tmp_path):
    thresholds = (0.25, 0.5, 0.75)
    folders = [fold(k, threshold=t) for k, t in enumerate(thresholds)]
    metrics = gather(folders, "test", tmp_path / "all")
    stored = [
        json.loads(path.read_text(encoding="utf-8"))["result"]
        for folder in folders
        for path in sorted(folder_of(folder, "test").iterdir())
    ]
    marks, nodules = ([np.array(scan[k]) for scan in stored] for k in ("marks", "included"))
    froc = evaluate_marks(marks, nodules, [np.zeros((0, 4))] * 9)
    assert metrics["cpm"] == froc.cpm and 0 < froc.cpm < 1
    dice = [nodule["metrics"]["dice"] for scan in stored for nodule in scan["nodules"]]
    assert metrics["nodule_dice"] == pytest.approx(np.mean(dice))
    assert metrics["scans"] == 9 and metrics["intervals"]["cpm"] is not None
    # each fold's marks are cut at its own threshold
    above = [m[2:, 3] > t for m, t in zip(marks, np.repeat(thresholds, 3), strict=True)]
    at_threshold = metrics["froc"]["at_threshold"]["false_positives_per_scan"]
    assert at_threshold == np.concatenate(above).sum() / 9
    assert metrics["thresholds"] == {"threshold": 0.2, "finding_threshold": [0.25, 0.5, 0.75]}
    assert metrics["folds"] == [0, 1, 2] and metrics["step"] == [100, 101, 102]
    assert json.loads((tmp_path / "all" / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert len((tmp_path / "all" / "scans.csv").read_text(encoding="utf-8").splitlines()) == 10


def test_each_fold_keeps_the_second_stage_that_decided_in_it(fold, tmp_path):
    folders = [
        fold(k, second_stage={"weight": 0.5, "finding_threshold": t, "settings": {"fold": k}})
        for k, t in enumerate((0.9, None))
    ]
    gather(folders, "test", tmp_path / "all")
    report = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    assert "in regions above 0.9 (both stages" in report and ", 0.5, by fold" in report
    _, settings = scored_split(tmp_path / "all", "test")
    assert [own["finding_threshold"] for own in settings["second_stage"]] == [0.9, None]


def test_gathered_folds_are_compared_as_runs_are(fold, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    (before,) = folder_of(fold(9, scans=1), "test").iterdir()
    stale = folder_of(one, "test") / before.name  # a scan that is in neither of these folds
    stale.parent.mkdir(parents=True)
    stale.write_bytes(before.read_bytes())
    gather([fold(0), fold(1)], "test", one)
    assert not stale.exists()
    wider = RECIPE | {"model.channels": [32, 64]}
    gather([fold(k, "wide", recipe=wider, members=2) for k in (0, 1)], "test", other)
    comparison = compare(one, other, "test")
    assert comparison["scans"] == 6 and comparison["metrics"]["cpm"]["difference"] == 0
    with pytest.raises(InputError, match="another fold"):
        compare(one, fold(0), "test")
    with pytest.raises(InputError, match="one: holds several folds already"):
        gather([one, fold(2)], "test", tmp_path / "again")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"data": "e"}, "scored with another dataset"),
        ({"readers": 1}, r"another readers \(2 and 1\)"),
        ({"recipe": RECIPE | {"optimizer.learning_rate": 0.1}},
         r"another config\.optimizer\.learning_rate \(0\.01 and 0\.1\)"),
        ({"members": 2}, r"another count of members \(1 and 2\)"),
        ({"second_stage": {"weight": 0.5}}, r"another number of stages \(1 and 2\)"),
        ({"scans": 2}, "scored in part only"),
        ({"version": 0}, "scored by another version"),
    ],
)  # fmt: skip
def test_folds_that_differ_are_refused_by_name(fold, tmp_path, other, told):
    with pytest.raises(InputError, match=told) as error:
        gather([fold(0), fold(1, **other)], "test", tmp_path / "all")
    assert "\n" not in str(error.value) and str(tmp_path / "fold1") in str(error.value)
    assert not (tmp_path / "all").exists()


def test_folds_and_their_members_are_given_in_any_order(fold, tmp_path):
    def with_channels(workdir, *channels):
        for path in folder_of(workdir, "test").iterdir():
            entry = json.loads(path.read_text(encoding="utf-8"))
            for member, own in zip(entry["settings"]["members"], channels, strict=True):
                member["config"]["model.channels"] = own
            path.write_text(json.dumps(entry))
        return workdir

    folds = [with_channels(fold(k, members=2), *[[8], [16]][:: 1 - 2 * k]) for k in (0, 1)]
    one, other = tmp_path / "one", tmp_path / "other"
    assert gather(folds, "test", one) == gather(folds[::-1], "test", other)
    assert (one / "scans.csv").read_bytes() == (other / "scans.csv").read_bytes()
    assert compare(one, other, "test")["scans"] == 6
    with_channels(folds[1], [16], [16])
    with pytest.raises(InputError, match=r"another member 1's config\.model\.channels"):
        gather(folds, "test", one)


def test_a_scan_counts_once_and_no_fold_is_overwritten(fold, tmp_path):
    with pytest.raises(InputError, match=r"both scored 1\.2\.0\.0; give each fold once"):
        gather([fold(0), fold(0, "copy")], "test", tmp_path / "all")
    with pytest.raises(InputError, match="is one of the folds; choose another --output"):
        gather([fold(0), fold(1)], "test", fold(1))


def test_the_scores_of_another_run_are_not_replaced(fold, tmp_path):
    other = fold(2)
    (other / "config.json").touch()
    (other / "metrics.json").write_text("its own")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="fold2: is the workdir of a run; choose another --output"):
        gather([fold(0), fold(1)], "test", other)
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
