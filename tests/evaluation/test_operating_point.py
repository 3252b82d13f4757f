"""Thresholds: the best on the validation split, kept for their checkpoint, given by the user."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.data.labels import agreement
from lung_unet.data.scan import IGNORE
from lung_unet.data.shard_reader import scan_records
from lung_unet.data.volume import make_labels
from lung_unet.errors import InputError
from lung_unet.evaluation.candidates import find_candidates, marks_of, mask_on_source
from lung_unet.evaluation.operating_point import OperatingPoint, choose, operating_point
from lung_unet.evaluation.operating_search import DEFAULT, GRID, best, examine, overlap
from lung_unet.evaluation.resume import member
from lung_unet.evaluation.scoring import score_scan
from lung_unet.evaluation.voxel import Counts, score
from lung_unet.workdir import claim, load

STEP_7 = [{"step": 7}]


@pytest.fixture
def workdir(config, dataset, tmp_path):
    claim(tmp_path, config, dataset)
    return tmp_path


@pytest.fixture
def record(dataset):
    return scan_records(dataset, "validation")[0]


@pytest.fixture
def blurred(oracle):
    """A predictor that knows the truth, falls off around it, and sees other things as well."""
    right = oracle(gain=1.0)

    def predict(hu, lungs):
        truth = right(hu, lungs)
        wide = np.mean([np.roll(truth, n, axis) for n in (-2, -1, 1, 2) for axis in range(3)], 0)
        noise = np.roll(truth, 9, 1) * np.linspace(0, 0.5, truth.shape[0])[:, None, None]
        return np.maximum(0.65 * truth + 0.3 * wide, noise).astype(np.float32)

    return predict


def test_thresholds_are_those_of_the_highest_dice(blurred, config, dataset, workdir, record):
    point = choose(blurred, config, dataset, workdir, STEP_7)
    scan = examine(blurred, config, record, GRID)
    dice = np.array([[Counts(*row).dice or 0 for row in rows] for rows in scan["voxels"]])
    chosen = (GRID["threshold"].index(point.threshold),
              GRID["finding_threshold"].index(point.finding_threshold))  # fmt: skip
    assert np.ptp(dice) > 0.1 and dice[chosen] == dice.max()
    assert point.candidate_threshold <= point.threshold <= point.finding_threshold
    stored = json.loads((workdir / "operating_point.json").read_text(encoding="utf-8"))
    assert stored["chosen_on"]["nodules"] == 1
    assert stored["chosen_on"]["dice"] == pytest.approx(dice.max())


def test_overlap_is_that_of_the_masks(blurred, config, dataset, record):
    volume, readers = record.volume, agreement(config.data)
    probability = blurred(volume.hu, volume.lungs)
    highest = float(probability.max())  # nothing is above it
    values = {"threshold": (0.1, 0.3, 0.5, highest), "finding_threshold": (0.1, 0.3, 0.5, 0.9)}
    found = {t: find_candidates(probability, volume, t, 0.0) for t in values["threshold"]}
    counts = overlap(probability, found, record, readers, values)
    kept = set()
    for threshold, rows in zip(values["threshold"], counts, strict=True):
        for limit, row in zip(values["finding_threshold"], rows, strict=True):
            regions = [c for c in found[threshold] if c.probability > limit]
            kept.add(len(regions))
            mask = mask_on_source(probability, regions, volume, threshold)
            whole = score(mask, record.findings, record.ignored(), readers, np.ones(3))
            assert Counts(*row) == whole.counts and row[0] + row[2] > 0
    assert len(kept) > 2 and 0 in kept


def test_a_nodule_is_drawn_to_its_faint_edge_and_what_is_faint_everywhere_is_not(
    config, dataset, workdir, record
):
    def predict(hu, lungs):
        labels = make_labels(record.findings, record.volume)
        truth = ((labels > 0) & (labels != IGNORE)).astype(np.float32)
        core = ndimage.binary_erosion(truth)
        others = np.roll(truth, truth.shape[1] // 2, 1) * 0.45
        return np.where(core, 0.99, np.maximum(0.35 * truth, others)).astype(np.float32)

    point = choose(predict, config, dataset, workdir, STEP_7)
    assert point.threshold < 0.35 and point.finding_threshold >= 0.45
    scores = score_scan(predict, config, record, point)
    assert scores["false_positives"] == 0 and scores["nodules"][0]["metrics"]["dice"] > 0.8
    assert min(mark[3] for mark in scores["marks"]) < point.finding_threshold


def test_marks_of_the_search_are_those_of_the_scan(blurred, config, record):
    values = GRID | {"threshold": (0.3,), "candidate_threshold": (0.1,), "min_diameter_mm": (6.0,)}
    scan = examine(blurred, config, record, values)
    probability = blurred(record.volume.hu, record.volume.lungs)
    levels = [find_candidates(probability, record.volume, t, 6.0) for t in (0.3, 0.1)]
    marks = marks_of(*levels, 0.3)
    sure, faint = (scan["regions"][level] for level in ("0.3", "0.1"))
    rows = [*sure, *(r for r in faint if r[5] <= 0.3)]
    assert [m.probability for m in marks] == [r[3] for r in rows] and len(marks) > 0


def test_faint_regions_that_are_nodules_lower_the_candidate_threshold():
    far = [0.0, 300.0, 0.0]
    scan = {
        "nodules": [[0.0, 0.0, 0.0, 8.0], [50.0, 0.0, 0.0, 8.0]],
        "excluded": [],
        "voxels": [[[4, 1, 5]]],
        "regions": {
            "0.5": [[0.0, 0.0, 0.0, 0.8, 8.0, 0.9]],
            "0.1": [[0.0, 0.0, 0.0, 0.4, 9.0, 0.9]],
            "0.05": [
                [50.0, 0.0, 0.0, 0.07, 4.5, 0.07],
                [*far, 0.09, 3.5, 0.09],
                [*far, 0.08, 3.5, 0.08],
            ],
        },
    }
    values = {"threshold": (0.5,), "finding_threshold": (0.6,), "candidate_threshold": (0.05, 0.1),
              "min_diameter_mm": (0.0, 3.0, 4.0)}  # fmt: skip
    chosen, scores = best([scan], values)
    assert chosen == {"threshold": 0.5, "finding_threshold": 0.6, "candidate_threshold": 0.05,
                      "min_diameter_mm": 4.0}  # fmt: skip
    assert scores["chosen_on"]["cpm"] == 1.0


def test_equal_scores_and_no_nodules_take_the_default():
    levels = [str(t) for values in GRID.values() for t in values]
    mark, nodule = [0.0, 0.0, 0.0, 0.93, 9.0, 0.95], [0.0, 0.0, 0.0, 8.0]
    scan = {"nodules": [nodule], "excluded": [], "voxels": [[[3, 1, 1]] * 11] * 9,
            "regions": {level: [mark] for level in levels}}  # fmt: skip
    chosen, scores = best([scan], GRID)
    assert chosen == DEFAULT and scores["chosen_on"]["dice"] == 0.75
    empty = {"nodules": [], "excluded": [], "voxels": [[[0, 5, 0]] * 11] * 9,
             "regions": {level: [mark] for level in levels}}  # fmt: skip
    assert best([empty], GRID) == (DEFAULT, {"chosen_on": {"scans": 1, "nodules": 0}})


def test_it_is_kept_for_its_checkpoints_and_settings(oracle, config, dataset, workdir):
    run = dataclasses.replace(load(workdir), config=config)
    first = oracle()
    point = choose(first, config, dataset, workdir, [member(run, 7)])
    assert first.calls == 1 and operating_point([run], [7], workdir) == point
    again = oracle()
    assert choose(again, config, dataset, workdir, [member(run, 7)]) == point and again.calls == 0
    with pytest.raises(InputError, match=r"step 8; run python -m lung_unet\.evaluate"):
        operating_point([run], [8], workdir)
    both = [member(run, 7), member(run, 8)]
    choose(again, config, dataset, workdir, both)
    assert again.calls == 1 and operating_point([run, run], [7, 8], workdir) == point
    with pytest.raises(InputError, match=r"yet for these together.*--thresholds=DIR"):
        operating_point([run, run], [8, 8], workdir)
    assert operating_point([run, run], [8, 7], workdir) == point  # in any order
    config.evaluation.overlap = 0.1
    with pytest.raises(InputError, match="no thresholds were chosen"):
        operating_point([run, run], [7, 8], workdir)


def test_a_version_that_stored_augmentations_never_drawn_is_understood(
    oracle, config, dataset, workdir
):
    run = dataclasses.replace(load(workdir), config=config)
    point = choose(oracle(), config, dataset, workdir, [member(run, 7)])
    path = workdir / "operating_point.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    recipe = stored["settings"]["members"][0]["config"]
    recipe |= {"augment.gone.probability": 0.0, "augment.gone.sigma": [1.0, 2.0]}
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert operating_point([run], [7], workdir) == point
    recipe["augment.gone.probability"] = 0.1
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(InputError, match="no thresholds were chosen"):
        operating_point([run], [7], workdir)


def test_what_to_run_writes_where_it_is_read(config, workdir, tmp_path):
    run, new = dataclasses.replace(load(workdir), config=config), tmp_path / "new"
    for members in ([run], [run, run]):
        with pytest.raises(InputError, match=rf"in {new}; run .* --output={new}$"):
            operating_point(members, [7] * len(members), new)
    with pytest.raises(InputError, match=rf"--workdir={workdir}$"):
        operating_point([run], [7], workdir)
    new.mkdir()
    (new / "config.json").touch()  # another run's, where evaluate does not write these scores
    with pytest.raises(InputError, match=r"--output=DIR, then give --thresholds=DIR$"):
        operating_point([run], [7], new)


def test_it_is_chosen_anew_of_another_grid(oracle, config, dataset, workdir, monkeypatch):
    run = dataclasses.replace(load(workdir), config=config)
    members = [member(run, 7)]
    choose(oracle(), config, dataset, workdir, members)
    monkeypatch.setitem(GRID, "min_diameter_mm", (1.0,))
    with pytest.raises(InputError, match="no thresholds were chosen"):
        operating_point([run], [7], workdir)
    again = oracle()
    point = choose(again, config, dataset, workdir, members)
    assert again.calls == 1 and point.min_diameter_mm == 1.0
    assert operating_point([run], [7], workdir) == point


def test_numbers_of_the_configuration_hold(oracle, config, dataset, workdir):
    run = dataclasses.replace(load(workdir), config=config)
    config.evaluation.threshold = 0.15
    predictor = oracle()
    assert choose(predictor, config, dataset, workdir, STEP_7).threshold == 0.15
    config.evaluation.update(
        threshold=0.15, finding_threshold=0.25, candidate_threshold=0.01, min_diameter_mm=1.0
    )
    given = OperatingPoint(0.15, 0.25, 0.01, 1.0)
    assert choose(predictor, config, dataset, workdir, STEP_7) == given
    assert operating_point([run], [9], workdir) == given
    assert predictor.calls == 1  # with all four given nothing is predicted
    with pytest.raises(InputError, match=r"--thresholds=other: is not read, .*; leave it out"):
        operating_point([run], [9], pathlib.Path("other"))


def test_a_threshold_above_all_that_is_tried_of_a_region_is_the_regions_too(
    oracle, config, dataset, workdir
):
    config.evaluation.threshold = 0.995
    point = choose(oracle(), config, dataset, workdir, STEP_7)
    assert point.threshold == point.finding_threshold == 0.995


def test_a_threshold_below_all_that_is_tried_of_a_mark_is_the_marks_too(
    oracle, config, dataset, workdir
):
    config.evaluation.threshold = 0.01
    point = choose(oracle(), config, dataset, workdir, STEP_7)
    assert point.threshold == point.candidate_threshold == 0.01


@pytest.mark.parametrize(
    ("values", "named"),
    [({"threshold": 1.5}, "threshold = 1.5"), ({"min_diameter_mm": -1.0}, "min_diameter_mm = -1"),
     ({"threshold": 0.2, "candidate_threshold": 0.3}, "candidate_threshold = 0.3: choose 0.2"),
     ({"candidate_threshold": 0.3}, "candidate_threshold = 0.3: choose 0.1"),
     ({"threshold": 0.2, "finding_threshold": 0.1}, "finding_threshold = 0.1: choose 0.2")],
)  # fmt: skip
def test_what_cannot_be_is_refused(config, workdir, values, named):
    config.evaluation.update(values)
    with pytest.raises(InputError, match=named):
        operating_point([dataclasses.replace(load(workdir), config=config)], [7], workdir)
