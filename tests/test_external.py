"""External validation: all scans of a dataset, nothing chosen on it, and what it may claim."""

import json
import shutil

import pytest

from lung_unet.data.manifest import NAME, Dataset
from lung_unet.data.phantom import write_metaimage
from lung_unet.data.preparation import prepare
from lung_unet.errors import InputError
from lung_unet.evaluate import _check_output, evaluate
from lung_unet.evaluation.resume import folder_of
from lung_unet.workdir import claim, identity, load

NEW = ["9.0", "9.1", "9.2", "9.3"]


@pytest.fixture(scope="session")
def others(make_scan, settings, tmp_path_factory):
    """A prepared dataset of the same volumes as `prepared`, as scans of other names."""
    root = tmp_path_factory.mktemp("others")
    rows = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    for number, uid in enumerate(NEW):
        hu, lungs, grid, (z, y, x) = make_scan(number)
        for folder, array in ((f"subset{number}", hu), ("seg-lungs-LUNA16", lungs)):
            (root / folder).mkdir(exist_ok=True)
            write_metaimage(root / folder / f"{uid}.mhd", array, grid)
        rows.append(f"{uid},{x},{y},{z},20.0")
    (root / "annotations.csv").write_text("\n".join(rows) + "\n")
    prepare(root, root / "prepared", settings, workers=1)
    return root / "prepared"


@pytest.fixture
def new(others, tmp_path):
    """new(patients) → the dataset, opened as a whole, with patients."""

    def make(patients=(None,) * 4, name="new"):
        folder = shutil.copytree(others, tmp_path / name)
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
        for entry, patient in zip(manifest["scans"], patients, strict=True):
            entry["patient"] = patient
            entry["made_from"]["input"] += name
            entry["voxels"] += name
        (folder / NAME).write_text(json.dumps(manifest))
        return Dataset(folder, None)

    return make


@pytest.fixture
def runs(shrunk_config, dataset, tmp_path):
    for name in "ab":
        claim(tmp_path / name, shrunk_config(), dataset)
    return [load(tmp_path / name) for name in "ab"]


@pytest.fixture
def score(oracle, dataset, monkeypatch):
    """score(runs, …) as `evaluate`, by an oracle; (metrics, how many scans it predicted)."""

    def score(runs, of, split, output, gain=0.9, **kwargs):
        predictor = oracle(dataset, gain=gain)  # by its voxels: the new scans' are the same
        steps = [7] * len(runs)
        monkeypatch.setattr("lung_unet.restore.restore_runs", lambda _: (predictor, steps))
        return evaluate(runs, of, split, output, **kwargs), predictor.calls

    return score


def test_every_scan_is_scored_at_the_runs_own_thresholds(score, runs, dataset, new, tmp_path):
    (run, _), out = runs, tmp_path / "out"
    own, _ = score([run], dataset, "test", run.workdir, gain=0.35)
    chosen = (run.workdir / "operating_point.json").read_bytes()
    metrics, calls = score([run], new(), "all", out, gain=0.35)
    assert calls == metrics["scans"] == 4  # none to choose thresholds on
    assert metrics["thresholds"] == own["thresholds"]
    assert (run.workdir / "operating_point.json").read_bytes() == chosen
    assert not (out / "operating_point.json").exists()
    assert {path.stem for path in folder_of(out, "all").iterdir()} == set(NEW)
    # at the thresholds of another model nothing is found: they are not chosen anew
    entry = json.loads(chosen)
    entry |= {"threshold": 0.8, "finding_threshold": 0.8}
    (run.workdir / "operating_point.json").write_text(json.dumps(entry))
    assert score([run], new(name="again"), "all", tmp_path / "o2", gain=0.35)[0]["found"] == 0


def test_the_report_says_on_what_and_what_is_known_of_patients(score, runs, dataset, new, tmp_path):
    (run, _), out = runs, tmp_path / "out"
    score([run], dataset, "test", run.workdir)
    unknown, _ = score([run], new(["P", "P", "Q", None]), "all", out)
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "external validation on new" in report
    said = unknown["external_validation"]["said"]
    assert all(line in report.replace("&#x27;", "'") for line in said)
    assert "The patient is known for 3 of these 4 scans, and for 0 of the 3 scans" in said[1]
    assert unknown["external_validation"]["data"] == "new"
    assert unknown["resampled"] == "patients" and unknown["patients"] == 2
    assert "over resamples of the patients" in report
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == unknown
    one, _ = score([run], new(["P"] * 4, "one"), "all", tmp_path / "one_out")
    assert one["resampled"] == "scans"  # a single patient cannot be resampled
    assert "All scans are of one patient" in one["external_validation"]["said"][-1]


def test_test_scans_of_the_run_are_told(score, runs, dataset, new, tmp_path):
    run = runs[0]
    score([run], dataset, "test", run.workdir)
    folder = new().folder
    manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
    manifest["scans"][0]["voxels"] = dataset.scans("test")[0]["voxels"]
    (folder / NAME).write_text(json.dumps(manifest))
    metrics, _ = score([run], Dataset(folder, None), "all", tmp_path / "out")
    assert metrics["external_validation"]["tested"] == 1
    assert any("1 of them are test scans" in s for s in metrics["external_validation"]["said"])


def test_what_no_thresholds_were_chosen_for_is_refused(score, runs, new, tmp_path):
    with pytest.raises(InputError, match="no thresholds were chosen yet"):
        score(runs[:1], new(), "all", tmp_path / "out")


def test_several_runs_have_thresholds_of_their_own(score, runs, dataset, new, tmp_path):
    together, here = tmp_path / "together", new()
    with pytest.raises(InputError, match="--thresholds is missing"):
        score(runs, here, "all", tmp_path / "out")
    own, _ = score(runs, dataset, "test", together)
    metrics, calls = score(runs, here, "all", tmp_path / "out", thresholds=together)
    assert calls == 4 and metrics["thresholds"] == own["thresholds"] and metrics["step"] == [7, 7]
    assert "validation split" in metrics["external_validation"]["thresholds"]


def test_thresholds_that_were_chosen_on_the_scans_are_refused(score, runs, new, tmp_path):
    here, other = new(), new(name="other")
    assert identity(here) != identity(other)
    for name in ("new", "other"):  # the same series, prepared twice
        chosen = tmp_path / f"on_{name}"
        score(runs, Dataset(tmp_path / name, 0), "test", chosen)
        with pytest.raises(InputError, match=f"on_{name}: its thresholds were chosen on scans of"):
            score(runs, here, "all", tmp_path / "out", thresholds=chosen)


@pytest.mark.parametrize(("there", "split"), [("test", "all"), ("all", "test")])
def test_neither_test_split_nor_external_validation_replaces_the_other(tmp_path, there, split):
    (tmp_path / "metrics.json").write_text(json.dumps({"split": there}))
    _check_output(tmp_path, there)
    _check_output(tmp_path, "validation")  # which has a folder of its own
    with pytest.raises(InputError, match=f"is of --split={there}; choose another --output"):
        _check_output(tmp_path, split)
