"""Runs compared on the scans that both scored: paired, and only where they can be."""

import json
import re

import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.evaluation import candidates, scoring
from lung_unet.evaluation.compare import compare, print_comparison
from lung_unet.evaluation.resume import folder_of

SETTINGS = {"data": "d", "fold": 0, "readers": 2, "members": [{"step": 1}]}


def scored(workdir, dices, settings=SETTINGS):
    """A workdir whose test split is scored: scan number → its two nodules' Dice."""
    folder = folder_of(workdir, "test")
    folder.mkdir(parents=True)
    for number, dice in dices.items():
        included = [[0.0, 0.0, 0.0, 10.0], [90.0, 0.0, 0.0, 10.0]]
        result = {
            "series_uid": f"1.2.{number}",
            "voxels": {"hit": round(100 * dice), "false_positive": 50, "missed": 50},
            "false_positives": 1,
            "nodules": [{"facts": {"found": True}, "metrics": {"dice": dice}}] * 2,
            "marks": [[0.0, 0.0, 0.0, dice]],
            "included": included,
            "excluded": [],
        }
        entry = {"settings": settings, "scans": len(dices), "result": result}
        (folder / f"1.2.{number}.json").write_text(json.dumps(entry))
    return workdir


@pytest.fixture
def dices():
    return dict(enumerate(np.random.default_rng(0).uniform(0.1, 0.7, 12).tolist()))


def test_a_small_difference_on_every_scan_is_told_from_nothing(tmp_path, dices, capsys):
    """Unpaired it would drown in the difference between scans."""
    a = scored(tmp_path / "a", {i: d + 0.05 + 0.01 * (i % 2) for i, d in dices.items()})
    b = scored(tmp_path / "b", dices)
    comparison = compare(a, b, "test")
    row = comparison["metrics"]["nodule_dice"]
    assert row["a"] - row["b"] == pytest.approx(row["difference"]) == pytest.approx(0.055)
    low, high = row["interval"]
    assert 0.05 <= low <= row["difference"] <= high <= 0.06
    assert np.std(list(dices.values())) > 0.1
    print_comparison(comparison)
    assert re.search(r"nodule_dice .* \+0\.055 .* \*", capsys.readouterr().out)


def test_a_run_does_not_differ_from_itself(tmp_path, dices):
    workdir = scored(tmp_path / "a", dices)
    rows = compare(workdir, workdir, "test")["metrics"]
    assert {"nodule_dice", "dice", "cpm", "sensitivity at 1"} <= rows.keys()
    for row in rows.values():
        assert row["difference"] in (0, None) and row["interval"] in ([0, 0], None)


def test_swapping_turns_the_sign(tmp_path, dices):
    a = scored(tmp_path / "a", {i: 0.8 - d for i, d in dices.items()})
    b = scored(tmp_path / "b", dices)
    one, other = (compare(*pair, "test")["metrics"]["cpm"] for pair in ((a, b), (b, a)))
    assert one["difference"] == -other["difference"] and one["a"] == other["b"]


def test_only_scans_that_both_scored_count(tmp_path, dices):
    a = scored(tmp_path / "a", dices | {99: 0.0})
    b = scored(tmp_path / "b", dices | {98: 1.0})
    comparison = compare(a, b, "test")
    assert comparison["scans"] == 12 and comparison["metrics"]["dice"]["difference"] == 0


@pytest.mark.parametrize(
    ("others", "told"),
    [({"data": "e"}, "another dataset"), ({"fold": 3}, r"another fold \(0 and 3\)"),
     ({"readers": 1}, r"another truth \(2 and 1 readers\)")],
)  # fmt: skip
def test_runs_on_different_things_are_refused(tmp_path, dices, others, told):
    a = scored(tmp_path / "a", dices)
    b = scored(tmp_path / "b", dices, SETTINGS | others)
    with pytest.raises(InputError, match=told) as error:
        compare(a, b, "test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", [{"version": 0}, {"candidates": candidates.VERSION - 1}])
def test_scores_of_another_version_are_refused_and_the_older_is_named(tmp_path, dices, other):
    now = SETTINGS | {"version": scoring.VERSION, "candidates": candidates.VERSION}
    a, b = scored(tmp_path / "a", dices, now), scored(tmp_path / "b", dices, now | other)
    for pair in ((a, b), (b, a)):
        with pytest.raises(InputError, match=rf"^{b}: was scored by another .* than {a}; score"):
            compare(*pair, "test")
    c = scored(tmp_path / "c", dices, now | other)
    assert compare(b, c, "test")["scans"] == 12  # of one version, whichever


def test_results_without_a_version_are_of_the_first(tmp_path, dices):
    a = scored(tmp_path / "a", dices)
    b = scored(tmp_path / "b", dices, SETTINGS | {"version": 1})
    assert compare(a, b, "test")["scans"] == 12


def test_a_classifiers_own_results_are_refused(tmp_path, dices):
    a = scored(tmp_path / "a", dices)
    second = scored(tmp_path / "cls", dices, {"marks": {}, "second_stage": {}, "weight": 0.5})
    for pair in ((a, second), (second, a)):
        with pytest.raises(InputError, match="cls: is a run of classification; give") as error:
            compare(*pair, "test")
        assert f"--classifier={second}" in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_scored_is_refused(tmp_path, dices):
    a = scored(tmp_path / "a", dices)
    with pytest.raises(InputError, match="no such folder"):
        compare(a, tmp_path / "none", "test")
    with pytest.raises(InputError, match="validation split is not scored yet; run python"):
        compare(a, a, "validation")
    with pytest.raises(InputError, match="no scan of the test split was scored in both"):
        compare(a, scored(tmp_path / "b", {77: 0.5}), "test")
    mixed = folder_of(a, "test") / "1.2.3.json"
    mixed.write_text(mixed.read_text(encoding="utf-8").replace('"step": 1', '"step": 2'))
    with pytest.raises(InputError, match="scored in part only; run python"):
        compare(a, a, "test")
    mixed.unlink()  # as where scoring was interrupted
    with pytest.raises(InputError, match="scored in part only; run python"):
        compare(a, a, "test")


def rescored(workdir, change):
    for path in folder_of(workdir, "test").iterdir():
        entry = json.loads(path.read_text(encoding="utf-8"))
        change(entry)
        path.write_text(json.dumps(entry))
    return workdir


def test_what_only_a_found_nodule_has_is_compared_where_both_have_it(tmp_path, dices):
    """Else a run that misses what is hard would have the better surfaces."""

    def distances(easy, hard):
        def change(entry):
            pair = [{"facts": {"found": True}, "metrics": {"dice": 0.5, "hd95_mm": value}}
                    for value in (easy, hard)]  # fmt: skip
            entry["result"]["nodules"] = pair

        return change

    a = rescored(scored(tmp_path / "a", dices), distances(1.0, 9.0))
    b = rescored(scored(tmp_path / "b", dices), distances(2.0, None))
    row = compare(a, b, "test")["metrics"]["hd95_mm"]
    assert (row["a"], row["b"], row["difference"]) == (1.0, 2.0, -1.0)
    assert compare(a, a, "test")["metrics"]["hd95_mm"]["a"] == 5.0


def test_marks_that_the_segmentation_ranks_are_said_to_be(tmp_path, dices, capsys):
    a = scored(tmp_path / "a", dices)
    b = rescored(scored(tmp_path / "b", dices), lambda e: e["settings"].update(second_stage={}))
    print_comparison(compare(a, b, "test"))
    assert "of the segmentation's marks" in capsys.readouterr().out
    rescored(b, lambda entry: entry["settings"].update(marks="of both stages"))
    assert compare(a, b, "test")["note"] == compare(a, a, "test")["note"] == ""
