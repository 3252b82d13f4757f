"""Changes against their base: the arithmetic of stored scores, paired by seed and scan."""

import json

import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.evaluation.changes import COLUMNS, difference, write_table
from lung_unet.evaluation.resume import folder_of

SEEDS, SCANS = 3, 12


def scored(workdir, dices, data="d"):
    """A workdir whose test split is scored, with the Dice of each scan's nodule."""
    folder = folder_of(workdir, "test")
    folder.mkdir(parents=True)
    for number, dice in enumerate(dices):
        result = {
            "series_uid": f"1.2.{number}",
            "voxels": {"hit": round(1000 * dice), "false_positive": 500, "missed": 500},
            "false_positives": 1,
            "nodules": [{"facts": {"found": True}, "metrics": {"dice": dice}}],
            "marks": [[0.0, 0.0, 0.0, dice]],
            "included": [[0.0, 0.0, 0.0, 10.0]],
            "excluded": [],
        }
        settings = {"data": data, "fold": 0, "readers": 2}
        entry = {"settings": settings, "scans": len(dices), "result": result}
        (folder / f"1.2.{number}.json").write_text(json.dumps(entry))
    rows = [{"step": 1}, {"step": 2, "step_ms": 5.0}, {"step": 3, "step_ms": 7.0}]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return workdir


@pytest.fixture
def bases(tmp_path):
    """Seeds and scans that differ much more among themselves than a change makes them."""
    dices = np.random.default_rng(0).uniform(0.2, 0.6, (SEEDS, SCANS))
    return [scored(tmp_path / "base" / str(i), row) for i, row in enumerate(dices)], dices


def changed(tmp_path, dices, by, name="change"):
    return [scored(tmp_path / name / str(i), row) for i, row in enumerate(dices + by)]


def test_a_small_gain_with_every_seed_on_every_scan_is_told_from_nothing(tmp_path, bases):
    folders, dices = bases
    runs = changed(tmp_path, dices, 0.03 + 0.01 * (np.arange(SCANS) % 2))
    row = difference(runs, folders)["nodule_dice"]
    assert row["base"] == pytest.approx(dices.mean())
    assert row["mean"] - row["base"] == pytest.approx(row["difference"]) == pytest.approx(0.035)
    assert row["by_seed"] == pytest.approx([0.035] * SEEDS)
    low, high = row["interval"]
    assert 0.03 <= low < row["difference"] < high <= 0.04
    assert difference(folders, runs)["nodule_dice"]["difference"] == pytest.approx(-0.035)


def test_a_gain_with_one_seed_alone_is_none(tmp_path, bases):
    folders, dices = bases
    runs = changed(tmp_path, dices, np.array([0.3, -0.1, -0.1])[:, None])
    row = difference(runs, folders)["nodule_dice"]
    assert row["difference"] == pytest.approx(0.1 / 3)
    assert row["interval"][0] <= -0.09 and row["interval"][1] >= 0.29


def test_the_table_holds_what_is_done(tmp_path, bases, capsys):
    folders, dices = bases
    done = dict(enumerate(changed(tmp_path, dices, 0.03)))
    del done[1]  # another process is at it
    only = {7: done[0]}  # of a seed that the base is not done with
    workdirs = {"base": dict(enumerate(folders)), "more": done, "early": only}
    text = write_table(workdirs, "base", tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({row.count("|") for row in rows}) == 1
    assert f"| base | 3 | {dices.mean():.3f} |" in rows[2]
    assert "| more | 2 | +0.030 (+0.030 … +0.030) * |" in rows[3] and rows[3].endswith("| 6 |")
    stored = json.loads((tmp_path / "ablation.json").read_text())
    assert stored["more"]["seeds"] == 2 and stored["more"]["step_ms"] == 6
    assert stored["more"]["metrics"].keys() >= COLUMNS.keys()
    assert (tmp_path / "ablation.md").read_text() == text


def test_runs_on_other_data_are_refused(tmp_path, bases):
    folders, dices = bases
    other = [scored(tmp_path / "other" / str(i), row, data="e") for i, row in enumerate(dices)]
    with pytest.raises(InputError, match="another dataset"):
        difference(other, folders)


def test_scans_without_nodules_leave_cpm_its_interval(tmp_path):
    """Of few scans some resamples draw no nodule, and FROC has none of these."""
    rng = np.random.default_rng(0)
    runs, bases = ([scored(tmp_path / name / str(i), rng.uniform(0.2, 0.6, 5)) for i in range(2)]
                   for name in ("run", "base"))  # fmt: skip
    for workdir in (*runs, *bases):
        for number in (0, 1, 2):
            path = folder_of(workdir, "test") / f"1.2.{number}.json"
            entry = json.loads(path.read_text())
            entry["result"] |= {"nodules": [], "included": []}
            path.write_text(json.dumps(entry))
    rows = difference(runs, bases)
    assert rows["cpm"]["interval"] is not None and rows["nodule_dice"]["interval"] is not None
