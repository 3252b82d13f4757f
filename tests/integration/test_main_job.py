"""The main job as a user runs it: data to report, resume, evaluate, predict, and bad input."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.data.images import grid_of, write_image
from lung_unet.data.scan import Grid
from lung_unet.files import LOCK, held
from lung_unet.train.writer import read_rows

ROOT = pathlib.Path(__file__).parent.parent.parent


def losses(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


@pytest.fixture(scope="session")
def trained(run, tiny, luna16, tmp_path_factory):
    """A finished run on a raw LUNA16 folder, and what it printed."""
    workdir = tmp_path_factory.mktemp("trained")
    process = run("main", *tiny, f"--config.data.dir={luna16}", f"--workdir={workdir}")
    return workdir, process.stdout


def test_ends_with_metrics_and_a_report_and_prints_where(trained):
    workdir, output = trained
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    wanted = {"dice", "precision", "recall", "f1", "iou", "nodule_dice", "hd95_mm", "nsd_2mm",
              "cpm", "sensitivity", "scans", "nodules", "intervals", "strata"}  # fmt: skip
    assert wanted <= metrics.keys() and metrics["scans"] == 1 and metrics["nodules"] == 1
    assert "nodule_dice" in output and str(workdir / "report.html") in output
    assert "parameters" in output  # the table of layers
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" in report and "http://" not in report
    assert list((workdir / "figures").glob("case-*.png"))
    rows = list(csv.DictReader((workdir / "nodules.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0]["series_uid"] == "1.2.0"  # subset 0 is the test split of fold 0


def test_the_same_command_again_resumes_and_changes_nothing(run, tiny, luna16, trained):
    workdir, _ = trained
    before = losses(workdir), (workdir / "metrics.json").read_text(encoding="utf-8")
    run("main", *tiny, f"--config.data.dir={luna16}", f"--workdir={workdir}")
    assert (losses(workdir), (workdir / "metrics.json").read_text(encoding="utf-8")) == before


def test_evaluate_scores_any_split_and_replaces_no_other(run, trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    for split in ("validation", "train"):
        told = run("evaluate", f"--workdir={workdir}", f"--split={split}").stdout
        metrics = json.loads((workdir / split / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["split"] == split and f"{workdir}/{split}/report.html" in told
        names = {p.name for p in (workdir / split).iterdir()}
        assert names >= {"report.html", "scans.csv", "nodules.csv", "candidates.csv", "froc"}
    assert {p: p.read_bytes() for p in before} == before
    run("evaluate", f"--workdir={workdir}")
    assert (workdir / "metrics.json").read_bytes() == before[workdir / "metrics.json"]


def test_a_workdir_that_is_trained_in_is_evaluated_elsewhere(run, trained, tmp_path):
    workdir, _ = trained
    before = (workdir / "finished.json").stat().st_mtime_ns
    with held(workdir / LOCK):
        process = run("evaluate", f"--workdir={workdir}", fails=True)
        assert f"error: {workdir}: another process" in process.stderr
        run("evaluate", f"--workdir={workdir}", f"--output={tmp_path / 'out'}")
    assert (tmp_path / "out" / "metrics.json").exists()
    assert not (tmp_path / "out" / "finished.json").exists()
    assert (workdir / "finished.json").stat().st_mtime_ns == before


def test_a_workdir_copied_with_its_scans_goes_on(run, tiny, luna16, trained, tmp_path):
    """As by cp -r after a scratch purge: other folders, other times, the same bytes."""
    scans = shutil.copytree(luna16, tmp_path / "scans", copy_function=shutil.copy)
    workdir = shutil.copytree(trained[0], tmp_path / "run", copy_function=shutil.copy)
    shards = {p: p.stat().st_mtime_ns for p in (workdir / "data").glob("subset*/*")}
    main = ("main", *tiny, f"--workdir={workdir}")
    told = run(*main, f"--config.data.dir={scans}", "--config.train.steps=6").stdout
    assert "resuming from step 4" in told and max(losses(workdir)) == 6
    assert json.loads((workdir / "finished.json").read_text(encoding="utf-8")) == {"steps": 6}
    assert {p: p.stat().st_mtime_ns for p in shards} == shards

    changed = scans / "annotations.csv"
    whole = changed.read_text(encoding="utf-8")
    changed.write_text(whole.replace("20.0", "12.0", 1))
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    process = run(*main, f"--config.data.dir={scans}", "--config.train.steps=8", fails=True)
    assert "(1 of its scans" in process.stderr and "1.2.0" in process.stderr
    assert f"--config.data.dir={workdir}/data" in process.stderr
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    run(*main, f"--config.data.dir={workdir}/data", "--config.train.steps=8")

    shutil.rmtree(scans)
    told = run(*main, f"--config.data.dir={scans}", "--config.train.steps=9").stdout
    assert f"{scans} is not there" in told and max(losses(workdir)) == 9
    moved = workdir.rename(tmp_path / "moved")
    run("evaluate", f"--workdir={moved}", "--split=validation")


def test_killed_while_scoring_and_run_again_leaves_the_same_files(run, trained):
    workdir, _ = trained
    files = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    (workdir / "metrics.json").unlink()
    (workdir / "operating_point.json").unlink()
    for path in (workdir / "evaluation" / "test").iterdir():
        path.unlink()
    run("evaluate", f"--workdir={workdir}")
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == files


def test_two_runs_are_compared_as_typed(run, trained, tmp_path):
    workdir, _ = trained
    again = shutil.copytree(workdir / "evaluation", tmp_path / "again" / "evaluation").parent
    result = tmp_path / "result.json"
    process = run("evaluate", "--compare", workdir, again, f"--json={result}")
    assert "nodule_dice" in process.stdout and "A − B" in process.stdout
    assert json.loads(result.read_text(encoding="utf-8"))["metrics"]["dice"]["difference"] == 0
    for arguments, named in (
        (("--compare", workdir), "takes two workdirs"),
        (("--compare", workdir, again, "third"), "unexpected argument 'third'"),
        (("--compare", workdir, tmp_path / "none"), "none: no such folder"),
        ((f"--workdir={workdir}", "stray"), "unexpected argument 'stray'"),
    ):
        process = run("evaluate", *arguments, fails=True)
        assert process.stderr.startswith("error: ") and named in process.stderr


def test_the_froc_command_scores_candidates_csv(run, trained, luna16, tmp_path):
    workdir, _ = trained
    run("froc", f"--submission={workdir / 'candidates.csv'}", f"--json={tmp_path / 'froc.json'}",
        f"--annotations={luna16 / 'annotations.csv'}", "--bootstrap=0",
        f"--excluded={luna16 / 'annotations_excluded.csv'}",
        f"--seriesuids={workdir / 'froc' / 'seriesuids.csv'}")  # fmt: skip
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    froc = json.loads((tmp_path / "froc.json").read_text(encoding="utf-8"))
    assert froc["cpm"] == metrics["cpm"]
    assert froc["false_positives"] == metrics["froc"]["false_positives"]


def test_predict_writes_masks_on_the_inputs_own_grids(run, trained, luna16, tmp_path):
    workdir, _ = trained
    image = sitk.ReadImage(str(luna16 / "subset0" / "1.2.0.mhd"))
    turned = sitk.DICOMOrient(image, "RAS")  # x to the right, y to the front
    images = {"plain.mhd": image, "packed.nii.gz": image, "turned.nrrd": turned}
    (tmp_path / "in").mkdir()
    for name, image in images.items():
        write_image(tmp_path / "in" / name, sitk.GetArrayFromImage(image), grid_of(image))
    out = tmp_path / "out"
    run("predict", f"--workdir={workdir}", f"--input={tmp_path / 'in'}", f"--output={out}")
    for name, image in images.items():
        name = name.split(".")[0]
        mask = sitk.ReadImage(str(out / f"{name}_mask.nii.gz"))
        assert mask.GetSize() == image.GetSize() and mask.GetPixelID() == sitk.sitkUInt8
        for what in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(mask, what)(), getattr(image, what)(), atol=1e-5)
        text = (out / f"{name}_findings.csv").read_text(encoding="utf-8")
        assert text.startswith("seriesuid,coordX,coordY,coordZ,probability,diameter_mm,")


def test_a_second_stage_is_trained_and_judges_as_typed(run, flips_alone, trained, luna16, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "seg")
    second = tmp_path / "second"
    flags = ("--config=configs/classifier3d.py:smoke", "--config.data.patch=8,8,8",
             "--config.model.channels=2,4", "--config.model.norm=instance",
             "--config.train.steps=2", "--config.train.batch_size=2",
             "--config.evaluation.attribution_steps=2",
             *flips_alone)  # fmt: skip
    table = tmp_path / "candidates.csv"
    rows = (luna16 / "annotations.csv").read_text(encoding="utf-8").splitlines()[1:]
    at = [row.split(",") for row in rows]
    table.write_text(
        "seriesuid,coordX,coordY,coordZ,class\n"
        + "".join(f"{uid},{float(x) - 40},{y},{z},0\n" for uid, x, y, z, _ in at)
    )
    main = ("main", *flags, f"--config.candidates.workdir={workdir}",
            f"--config.candidates.csv={table}", f"--workdir={second}")  # fmt: skip
    output = run(*main).stdout
    metrics = json.loads((second / "metrics.json").read_text(encoding="utf-8"))
    assert {"cpm", "cpm_gain", "auc", "malignancy_auc"} <= metrics.keys()
    assert "AUC of malignancy is not defined" in output  # these nodules have no ratings
    output = run("evaluate", f"--workdir={workdir}", f"--classifier={second}").stdout
    assert "second stage, cpm_gain" in output
    assert (
        json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))["second_stage"]["weight"]
        is not None
    )
    source = luna16 / "subset0" / "1.2.0.mhd"
    run("predict", f"--workdir={workdir}", f"--classifier={second}", f"--input={source}",
        f"--output={tmp_path / 'out'}")  # fmt: skip
    header, *rows = (
        (tmp_path / "out" / "1.2.0_findings.csv").read_text(encoding="utf-8").splitlines()
    )
    assert header.endswith("nodule_probability,malignancy,score")
    assert len(list((tmp_path / "out").glob("*_why.png"))) == min(len(rows), 50)
    process = run("evaluate", f"--workdir={second}", fails=True)
    assert "a run of classification; give a segmentation run" in process.stderr


BAD = {
    "no such folder": (["--config.data.dir=/nowhere"], "/nowhere"),
    "unknown key": (["--config.train.epochs=3"], "epochs"),
    "wrong type": (["--config.train.steps=many"], "steps"),
    "other model": (["--config.model.channels=4,16"], "config.model.channels"),
    "patch too large": (["--config.data.patch=64,64,64"], "config.data.patch"),
    "fold": (["--config.data.fold=7"], "config.data.fold"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_it(run, tiny, luna16, trained, case):
    flags, named = BAD[case]
    workdir, _ = trained
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    process = run(
        "main", *tiny, f"--config.data.dir={luna16}", f"--workdir={workdir}", *flags, fails=True
    )
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and named in last
    assert len([l for l in process.stderr.splitlines() if l.startswith("error")]) == 1
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    assert after == before  # nothing existing is touched


@pytest.mark.parametrize("flag", ["evaluation.overlap=2", "evaluation.threshold=3"])
def test_an_evaluation_that_cannot_be_is_refused_before_data_are_made(run, tiny, tmp_path, flag):
    process = run("main", *tiny, f"--config.{flag}", f"--workdir={tmp_path / 'run'}", fails=True)
    assert process.stderr.startswith(f"error: config.{flag.partition('=')[0]}")
    assert not (tmp_path / "run").exists()


def test_predict_names_what_it_cannot_read(run, trained, tmp_path):
    workdir, _ = trained
    grid = Grid((8, 8, 8), np.ones(3), np.zeros(3))
    write_image(tmp_path / "mri.nii.gz", np.full(grid.shape, 200, np.int16), grid)
    process = run(
        "predict", f"--workdir={workdir}", f"--input={tmp_path / 'mri.nii.gz'}",
        f"--output={tmp_path / 'out'}", fails=True,
    )  # fmt: skip
    assert process.stderr.startswith("error: ") and "mri.nii.gz" in process.stderr
    assert not (tmp_path / "out").exists()
