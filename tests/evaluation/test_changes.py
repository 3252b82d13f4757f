"""Changes against their base: stored scores, paired by rotation, seed and scan."""

import json

import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.evaluation.changes import COLUMNS, difference, write_table
from lung_unet.evaluation.resume import folder_of

SEEDS, SCANS = 3, 12
ROTATIONS = 4


def scored(workdir, dices, data="d", fold=0, uid="1.2"):
    """A workdir whose test split is scored, with the Dice of each scan's nodule."""
    folder = folder_of(workdir, "test")
    folder.mkdir(parents=True)
    for number, dice in enumerate(dices):
        result = {
            "series_uid": f"{uid}.{number}",
            "voxels": {"hit": round(1000 * dice), "false_positive": 500, "missed": 500},
            "false_positives": 1,
            "nodules": [{"facts": {"found": True}, "metrics": {"dice": dice}}],
            "marks": [[0.0, 0.0, 0.0, dice]],
            "included": [[0.0, 0.0, 0.0, 10.0]],
            "excluded": [],
        }
        settings = {"data": data, "fold": fold, "readers": 2}
        entry = {"settings": settings, "scans": len(dices), "result": result}
        (folder / f"{uid}.{number}.json").write_text(json.dumps(entry))
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


def of_seeds(folders):
    """By rotation and seed, where the split is fixed."""
    return {(0, seed): folder for seed, folder in enumerate(folders)}


def seed_by_seed(runs, bases):
    return difference({(0, s): pair for s, pair in enumerate(zip(runs, bases, strict=True))})


def test_a_small_gain_with_every_seed_on_every_scan_is_told_from_nothing(tmp_path, bases):
    folders, dices = bases
    runs = changed(tmp_path, dices, 0.03 + 0.01 * (np.arange(SCANS) % 2))
    row = seed_by_seed(runs, folders)["nodule_dice"]
    assert row["base"] == pytest.approx(dices.mean())
    assert row["mean"] - row["base"] == pytest.approx(row["difference"]) == pytest.approx(0.035)
    assert row["by_seed"] == pytest.approx([0.035] * SEEDS)
    low, high = row["interval"]
    assert 0.03 <= low < row["difference"] < high <= 0.04
    assert seed_by_seed(folders, runs)["nodule_dice"]["difference"] == pytest.approx(-0.035)


def test_a_gain_with_one_seed_alone_is_none(tmp_path, bases):
    folders, dices = bases
    runs = changed(tmp_path, dices, np.array([0.3, -0.1, -0.1])[:, None])
    row = seed_by_seed(runs, folders)["nodule_dice"]
    assert row["difference"] == pytest.approx(0.1 / 3)
    assert row["interval"][0] <= -0.09 and row["interval"][1] >= 0.29


def test_the_table_holds_what_is_done(tmp_path, bases):
    folders, dices = bases
    done = of_seeds(changed(tmp_path, dices, 0.03))
    del done[0, 1]  # another process is at it
    only = {(0, 7): done[0, 0]}  # of a seed that the base is not done with
    workdirs = {"base": of_seeds(folders), "more": done, "early": only}
    text = write_table(workdirs, "base", tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({row.count("|") for row in rows}) == 1
    assert f"| base | 3 | {dices.mean():.3f} (" in rows[2]
    assert "| more | 2 | +0.030 (+0.030 … +0.030) * |" in rows[3] and rows[3].endswith("| 6 |")
    stored = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    assert stored["more"]["seeds"] == 2 and stored["more"]["step_ms"] == 6
    assert stored["more"]["metrics"].keys() >= COLUMNS.keys()
    assert (tmp_path / "ablation.md").read_text(encoding="utf-8") == text


def test_runs_on_other_data_are_refused(tmp_path, bases):
    folders, dices = bases
    other = [scored(tmp_path / "other" / str(i), row, data="e") for i, row in enumerate(dices)]
    with pytest.raises(InputError, match="another dataset"):
        seed_by_seed(other, folders)


def test_scans_without_nodules_leave_cpm_its_interval(tmp_path):
    """Of few scans some resamples draw no nodule, and FROC has none of these."""
    rng = np.random.default_rng(0)
    runs, bases = ([scored(tmp_path / name / str(i), rng.uniform(0.2, 0.6, 5)) for i in range(2)]
                   for name in ("run", "base"))  # fmt: skip
    for workdir in (*runs, *bases):
        for number in (0, 1, 2):
            path = folder_of(workdir, "test") / f"1.2.{number}.json"
            entry = json.loads(path.read_text(encoding="utf-8"))
            entry["result"] |= {"nodules": [], "included": []}
            path.write_text(json.dumps(entry))
    rows = seed_by_seed(runs, bases)
    assert rows["cpm"]["interval"] is not None and rows["nodule_dice"]["interval"] is not None


@pytest.fixture
def rotations(tmp_path):
    """rotations(name, by) → workdirs by rotation and seed, with so much more Dice than `base`."""
    sizes = (4, 6, 5, 9)
    rng = np.random.default_rng(1)
    dices = {(r, s): rng.uniform(0.2, 0.6, sizes[r]) for r in range(ROTATIONS) for s in range(2)}

    def make(name, by=lambda rotation, seed: 0.0):
        return {
            key: scored(
                tmp_path / name / f"fold{key[0]}_seed{key[1]}", own + by(*key), "d", key[0],
                f"1.{key[0]}",
            )
            for key, own in dices.items()
        }  # fmt: skip

    return dices, make


def test_rotations_are_pooled_by_scan_and_each_has_a_difference_of_its_own(rotations):
    dices, make = rotations
    base, run = make("base"), make("run", lambda rotation, _: 0.04 * rotation)
    rows = difference({key: (run[key], base[key]) for key in base})
    row = rows["nodule_dice"]
    pooled = [np.concatenate([dices[r, s] for r in range(ROTATIONS)]).mean() for s in range(2)]
    assert row["base"] == pytest.approx(np.mean(pooled))
    assert row["difference"] == pytest.approx(0.04 * (0 * 4 + 1 * 6 + 2 * 5 + 3 * 9) / 24)
    own = {r: part["difference"] for r, part in row["by_rotation"].items()}
    assert own == pytest.approx({str(r): 0.04 * r for r in range(ROTATIONS)})
    # the scans of a rotation gain alike, and rotations are not resampled: nothing is uncertain
    assert row["interval"] == pytest.approx([row["difference"]] * 2)
    # of each mark its own FROC: all marks are true, whatever the others' probabilities
    assert rows["cpm"]["mean"] == 1 and rows["found"]["mean"] == 1


def test_probabilities_of_one_rotation_do_not_rank_those_of_another(tmp_path):
    """One model's false positives, all below its nodules, are above those of another model."""
    pairs = {}
    for rotation, scale in enumerate((1.0, 0.1)):
        folder = scored(tmp_path / str(rotation), [0.9, 0.8], "d", rotation, f"1.{rotation}")
        for path in folder_of(folder, "test").iterdir():
            entry = json.loads(path.read_text(encoding="utf-8"))
            marks = [[*row[:3], row[3] * scale] for row in entry["result"]["marks"]]
            false = [[500.0, 0.0, 0.0, 0.5 * scale] for _ in range(9)]
            entry["result"]["marks"] = marks + false
            path.write_text(json.dumps(entry))
        pairs[rotation, 0] = folder, folder
    assert difference(pairs)["cpm"]["mean"] == 1


def test_scans_of_two_rotations_are_drawn_apart(tmp_path):
    """What is alike in the n-th scans of two rotations is no reason that both are drawn together:
    the difference of all is half as uncertain in square as each rotation's."""
    gains = np.linspace(-0.2, 0.2, 12)
    pairs = {
        (r, 0): (
            scored(tmp_path / "run" / str(r), 0.5 + gains, "d", r, f"1.{r}"),
            scored(tmp_path / "base" / str(r), 0.5 + 0 * gains, "d", r, f"1.{r}"),
        )
        for r in range(ROTATIONS)
    }
    row = difference(pairs)["nodule_dice"]
    own = np.mean([np.ptp(part["interval"]) for part in row["by_rotation"].values()])
    assert np.ptp(row["interval"]) == pytest.approx(own / ROTATIONS**0.5, rel=0.15)


def test_a_patients_scans_are_drawn_together(tmp_path):
    """Scans of one patient are alike: twice as many of them say nothing new."""
    gains = np.linspace(-0.2, 0.2, 12)

    def width(name, gains, patients):
        pair = [scored(tmp_path / name / side, 0.5 + own) for side, own in
                (("run", gains), ("base", 0 * gains))]  # fmt: skip
        for folder in pair:
            for number, patient in enumerate(patients):
                path = folder_of(folder, "test") / f"1.2.{number}.json"
                entry = json.loads(path.read_text(encoding="utf-8"))
                entry["result"]["patient"] = patient
                path.write_text(json.dumps(entry))
        return np.ptp(difference({(0, 0): tuple(pair)})["nodule_dice"]["interval"])

    once = width("once", gains, range(12))
    twice = width("twice", np.repeat(gains, 2), [str(n) for n in np.repeat(range(12), 2)])
    assert twice == pytest.approx(once, rel=0.1)
    assert width("unknown", np.repeat(gains, 2), [None] * 24) < 0.8 * once


def test_the_table_of_rotations(rotations, tmp_path):
    _, make = rotations
    base, run = make("base"), make("run", lambda rotation, _: 0.04 * rotation)
    del run[3, 1]  # under way: seed 1 does not have all rotations
    text = write_table({"base": base, "more": run}, "base", tmp_path, ["A", "B", "C", "D"], "mind")
    assert "\nmind\n" in text
    tables = text.split("\n\n")
    assert len(tables) == 4 and "does not\ncover the choice of these 4 folders" in tables[0]
    rows = tables[1].splitlines()
    assert rows[2].startswith("| base | 4 | 2 | ") and rows[3].startswith("| more | 4 | 1 | ")
    assert tables[2].splitlines()[0] == "| nodule Dice, tested on | A | B | C | D |"
    assert "| more | +0.000" in tables[2] and "+0.120" in tables[2].splitlines()[3]
    assert tables[3].startswith("| CPM, tested on | A | B | C | D |")
    stored = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    assert stored["more"]["note"] == "mind"
    assert stored["more"]["rotations"] == [0, 1, 2, 3] and stored["more"]["seeds"] == 1
    del base[2, 0], base[2, 1]  # not done yet: what there is, is compared
    write_table({"base": base, "more": run}, "base", tmp_path, ["A", "B", "C", "D"])
    stored = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    assert stored["base"]["rotations"] == stored["more"]["rotations"] == [0, 1, 3]
    assert list(stored["more"]["metrics"]["nodule_dice"]["by_rotation"]) == ["0", "1", "3"]
