"""FROC: LUNA16's numbers for a real submission, each of its rules, and what users get wrong."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lung_unet import froc as froc_command
from lung_unet.errors import InputError
from lung_unet.evaluation.froc import FINE_RATES, FPS_PER_SCAN, Froc, evaluate_marks, interval

FAR = (500.0, 0, 0)  # from every nodule
COUNTS = (
    "scans", "nodules", "true_positives", "false_negatives", "false_positives",
    "ignored_on_excluded_findings", "ignored_double_detections",
)  # fmt: skip


def rows(values=()) -> np.ndarray:
    return np.reshape(np.array(values, float), (-1, 4))


def evaluate(marks=(), nodules=(), excluded=(), scans=1, **options) -> Froc:
    """The FROC of one scan's marks and findings, beside `scans` - 1 scans without any."""
    return evaluate_marks(
        *([rows(values)] + [rows()] * (scans - 1) for values in (marks, nodules, excluded)),
        **options,
    )


def slow_reference(marks, nodules, excluded) -> tuple[dict, list[float]]:
    """The counts and sensitivities by LUNA16's rules, taken one by one."""
    found, false, on_excluded, double = [], [], 0, 0

    def is_hit(mark, finding):
        (z, y, x, _), (z2, y2, x2, diameter) = mark, finding
        radius = 5.0 if diameter < 0 else diameter / 2
        return (x - x2) ** 2 + (y - y2) ** 2 + (z - z2) ** 2 < radius**2

    for all_marks, included, ignored in zip(marks, nodules, excluded, strict=True):
        kept = sorted(all_marks.tolist(), key=lambda mark: -mark[3])
        if len(kept) > 100:
            kept = [mark for mark in kept if mark[3] > kept[100][3]]
        left = list(range(len(kept)))
        for nodule in included:
            hits = [i for i, mark in enumerate(kept) if is_hit(mark, nodule)]
            left = [i for i in left if i not in hits]
            if hits:
                found.append(max(kept[i][3] for i in hits))
                double += len(hits) - 1
        for finding in ignored:
            hits = [i for i in left if is_hit(kept[i], finding)]
            left = [i for i in left if i not in hits]
            on_excluded += len(hits)
        false += [kept[i][3] for i in left]
    total = sum(map(len, nodules))
    counts = (len(marks), total, len(found), total - len(found), len(false), on_excluded, double)
    points = [(0.0, 0.0)]
    for threshold in sorted({*found, *false}, reverse=True):
        share = sum(s >= threshold for s in false) / max(len(false), 1)
        true = sum(s >= threshold for s in found)
        points.append((share * len(false) / len(marks), true / max(total, 1)))
    sensitivity = []
    for rate in FPS_PER_SCAN:
        at = max(i for i, point in enumerate(points) if point[0] <= rate)
        x0, y0 = points[at]
        x1, y1 = points[at + 1] if at + 1 < len(points) else (np.inf, y0)
        sensitivity.append(y0 + (y1 - y0) * (rate - x0) / (x1 - x0))
    return dict(zip(COUNTS, counts, strict=True)), sensitivity


def make_case(seed: int) -> list[list[np.ndarray]]:
    """Marks, nodules and excluded findings of some scans, with many ties and touching spheres."""
    rng = np.random.default_rng(seed)
    scans, size = rng.choice([1, 2, 8, 16]), rng.choice([4, 8, 12])

    def scan(most, values):
        count = rng.integers(most + 1)
        return np.column_stack([rng.integers(size, size=(count, 3)), rng.choice(values, count)])

    scores = rng.random(rng.choice([3, 200]))
    most = rng.choice([4, 20, 130])
    return [
        [scan(limit, values).astype(float) for _ in range(scans)]
        for limit, values in ((most, scores), (2, [0, 2, 4, 6, 10, -1]), (3, [2, 4, 6, -1]))
    ]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_agrees_with_the_rules_taken_one_by_one(seed):
    case = make_case(seed)
    froc = evaluate_marks(*case)
    counts, sensitivity = slow_reference(*case)
    assert {name: getattr(froc, name) for name in COUNTS} == counts
    if counts["nodules"]:
        assert froc.sensitivity == pytest.approx(sensitivity, abs=1e-12)


def test_luna16_official_numbers(real_data):
    folder = real_data / "froc"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    names = ("submission", "annotations", "annotations_excluded", "seriesuids")
    froc = froc_command.score(*(folder / f"{name}.csv" for name in names), bootstrap=1000).to_json()
    for name in COUNTS:
        assert froc[name] == expected[name], name
    assert [round(s, 6) for s in froc["sensitivity"]] == expected["sensitivity"]
    assert round(froc["cpm"], 6) == expected["cpm"]
    for name in ("mean", "lower", "upper"):
        np.testing.assert_allclose(
            froc["bootstrap"][name], expected["bootstrap_1000_95pct"][name], atol=0.02
        )


def test_a_scan_keeps_100_marks_and_drops_ties_with_the_next():
    hit, better = (0, 0, 0, 0.5), [(*FAR, 0.9)] * 98
    nodule = [(0, 0, 0, 8)]
    assert evaluate([*better, hit, (*FAR, 0.5)], nodule).true_positives == 1  # 100 marks in all
    tied = evaluate([*better, hit, (*FAR, 0.5), (*FAR, 0.5)], nodule)
    assert (tied.true_positives, tied.false_positives) == (0, 98)
    assert evaluate([*better, hit, (*FAR, 0.4), (*FAR, 0.3)], nodule).true_positives == 1


@pytest.mark.parametrize(("diameter", "radius"), [(8, 4), (-1, 5)])
def test_a_hit_lies_strictly_within_the_radius(diameter, radius):
    nodule = [(10, 20, 30, diameter)]
    assert evaluate([(10, 20, 30 + radius, 1)], nodule).true_positives == 0
    assert evaluate([(10, 20 - radius + 1e-9, 30, 1)], nodule).true_positives == 1


def test_a_nodule_takes_its_best_mark_and_the_others_are_ignored():
    froc = evaluate(
        [(0, 0, 0, 0.2), (1, 0, 0, 0.9), (0, 1, 0, 0.4), (*FAR, 0.5)], [(0, 0, 0, 8)], scans=8
    )
    assert (froc.ignored_double_detections, froc.false_positives) == (2, 1)
    assert froc.sensitivity == [1] * 7  # found above the false positive, at 0.9


def test_a_mark_on_two_nodules_finds_both():
    froc = evaluate([(0, 0, 1, 0.5)], [(0, 0, 0, 8), (0, 0, 2, 8)])
    assert (froc.true_positives, froc.false_positives) == (2, 0)
    assert froc.ignored_double_detections == 0


def test_marks_on_excluded_findings_are_ignored_unless_they_find_a_nodule():
    froc = evaluate([(0, 0, 0, 0.5), (0, 0, 6, 0.9)], [(0, 0, 0, 4)], [(0, 0, 2, -1)] * 2)
    assert (froc.true_positives, froc.false_positives) == (1, 0)
    assert froc.ignored_on_excluded_findings == 1


def test_missed_nodules_and_scans_without_marks_count():
    marks = [(0, 0, 0, 0.9), (*FAR, 0.8), (0, 50, 0, 0.7)]
    froc = evaluate(marks, [(0, 0, 0, 8), (0, 50, 0, 8), (0, 0, 50, 8)], scans=4)
    assert froc.false_negatives == 1
    # one false positive on four scans: 1/4 a scan
    assert froc.sensitivity == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])


def test_between_two_scores_the_curve_is_a_straight_line():
    marks = [(0, 0, 0, 0.9), *[(*FAR, 0.9)] * 2]
    assert evaluate(marks, [(0, 0, 0, 8)], scans=2).sensitivity[:4] == [0.125, 0.25, 0.5, 1]


def test_a_step_at_exactly_one_of_the_rates_is_read_as_the_official_script_rounds_it():
    # 11 / 85 * 85 / 88 is above 1/8, so the nodule found there counts from the next rate on
    marks = [rows([(*FAR, 0.9)]) if scan < 11 else rows([(*FAR, 0.1)]) for scan in range(85)]
    marks += [rows([(0, 0, 0, 0.5)]), rows(), rows()]
    nodules = [rows([(0, 0, 0, 8)]) if scan == 85 else rows() for scan in range(88)]
    assert evaluate_marks(marks, nodules, [rows()] * 88).sensitivity == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_resample_is_the_evaluation_of_the_scans_it_draws(seed):
    case = make_case(seed)
    scans = len(case[0])
    froc = evaluate_marks(*case, bootstrap=3, seed=seed)
    drawn = np.random.default_rng(seed).integers(scans, size=scans)
    again = evaluate_marks(*([part[i] for i in drawn] for part in case))
    assert again.nodules
    np.testing.assert_array_equal(froc.resamples[0], np.interp(FINE_RATES, *again.curve))


def test_the_bootstrap_follows_its_seed():
    case = make_case(2)
    first, same, other = (evaluate_marks(*case, bootstrap=20, seed=s).resamples for s in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_the_interval_holds_95_percent():
    values = np.random.default_rng(0).permutation(np.arange(1000.0))[:, None]
    assert {k: v.item() for k, v in interval(values).items()} == {
        "mean": 499.5, "lower": 25, "upper": 975
    }  # fmt: skip


def test_without_marks_every_nodule_is_missed():
    froc = evaluate([], [(0, 0, 0, 8)], bootstrap=2)
    assert froc.sensitivity == [0] * 7
    assert froc.cpm == 0


def test_without_nodules_the_sensitivity_is_undefined():
    values = evaluate([(*FAR, 0.5)], scans=2, bootstrap=5).to_json()
    assert values["sensitivity"] == [None] * 7
    assert values["cpm"] is None and values["bootstrap"] is None
    json.dumps(values, allow_nan=False)


def test_resamples_without_a_nodule_are_left_out():
    froc = evaluate([(0, 0, 0, 0.5)], [(0, 0, 0, 8)], scans=2, bootstrap=100)
    assert 50 < len(froc.resamples) < 100
    assert (froc.resamples == 1).all()


@pytest.fixture
def files(tmp_path) -> dict[str, pathlib.Path]:
    """A submission on two scans that finds their only nodule, and LUNA16's three files."""
    place = "seriesuid,coordX,coordY,coordZ"
    texts = {
        "submission": f"{place},probability\na,-11,-20,-30,0.9\nb,1,2,3,0.4\n",
        "annotations": f"{place},diameter_mm\na,-10,-20,-30,8\nelsewhere,0,0,0,5\n",
        "excluded": f"{place},diameter_mm\nb,1,2,30,-1\n",
        "seriesuids": "a\nb\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in texts}


def run(files: dict[str, pathlib.Path], *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lung_unet.froc", *(f"--{k}={v}" for k, v in files.items()), *flags],
        capture_output=True,
        encoding="utf-8",
        cwd=pathlib.Path(__file__).parents[2],
    )


def test_the_command_writes_numbers_and_a_picture(files, tmp_path):
    done = run(files, f"--json={tmp_path}/new/froc.json", f"--plot={tmp_path}/froc.png")
    assert done.returncode == 0, done.stderr
    assert "1.000000" in done.stdout
    values = json.loads((tmp_path / "new" / "froc.json").read_text(encoding="utf-8"))
    assert [values[name] for name in COUNTS] == [2, 1, 1, 0, 1, 0, 0]
    assert values["cpm"] == 1
    assert values["rows"]["annotations"] == {"rows": 2, "matched": 1, "left": 1}
    assert "annotations: 2 rows read, 1 of scans that are here, 1 of scans" in done.stdout
    assert len(values["bootstrap"]["lower"]) == 7
    assert (tmp_path / "froc.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_tells_a_mistake_in_one_line(files):
    done = run(files | {"submission": files["submission"].with_name("absent.csv")})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --submission=")
    assert "absent.csv: no such file" in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("submission", "c,1,2,3,0.5\nd,1,2,3,0.5\nd,1,2,4,0.5\n", "2 of its series, first 'c'"),
        ("submission", "a,1,2,3,nan\n", "line 4"),
        ("submission", "a,1,2,3,\n", "line 4"),
        ("submission", "a,inf,2,3,0.5\n", "line 4"),
        ("submission", "b,1,2,3,0.4\n", "line 4 repeats line 3"),
        ("submission", "".join(f"b,{i},9,9,1\n" for i in range(9)), None),
        ("seriesuids", "a\n", "series a twice"),
    ],
)
def test_bad_rows_are_named(files, name, text, told):
    with files[name].open("a") as file:
        file.write(text)
    if told is None:
        assert froc_command.score(**files).false_positives == 10
    else:
        with pytest.raises(InputError, match=told) as error:
            froc_command.score(**files)
        assert str(error.value).startswith(str(files[name]))


def test_names_of_scans_are_read_as_people_write_them(files):
    expected = froc_command.score(**files).to_json()
    for name in ("submission", "annotations", "seriesuids"):
        text = files[name].read_text(encoding="utf-8")
        files[name].write_text(text.replace("a,", "a.mhd ,").replace("b\n", "b \n"))
    assert froc_command.score(**files).to_json() == expected
    files["annotations"].write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\nc,1,2,3,4\n")
    with pytest.raises(InputError, match="none of its 1 rows"):
        froc_command.score(**files)


def test_another_header_is_refused(files):
    text = files["submission"].read_text(encoding="utf-8")
    files["submission"].write_text(text.replace("probability", "score"))
    with pytest.raises(InputError, match="probability"):
        froc_command.score(**files)


def test_marks_in_voxels_are_refused(files):
    header = "seriesuid,coordX,coordY,coordZ,probability\n"
    voxels = "".join(f"a,{200 + i},250,80,0.5\n" for i in range(12))
    files["submission"].write_text(header + voxels)
    with pytest.raises(InputError, match="voxels"):
        froc_command.score(**files)
    for one_more in ("b,-1,250,80,0.5\n", "a,20,0,0,0.5\n"):  # a world position; one near a nodule
        files["submission"].write_text(header + voxels + one_more)
        assert froc_command.score(**files).false_positives == 13
    files["submission"].write_text(header + voxels)
    files["annotations"].write_text(
        files["annotations"].read_text(encoding="utf-8").replace("-", "")
    )
    assert froc_command.score(**files).false_positives == 12  # nodules so too: a world of its own


def test_an_empty_submission_is_scored(files):
    files["submission"].write_text("seriesuid,coordX,coordY,coordZ,probability\n")
    froc = froc_command.score(**files)
    assert (froc.cpm, froc.false_negatives) == (0, 1)
