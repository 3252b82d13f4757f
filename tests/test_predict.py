"""predict on many inputs: each gets its files, and one that fails costs no other."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from lung_unet import predict, workdir
from lung_unet.data.images import write_image
from lung_unet.errors import InputError
from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.operating_point import operating_point
from lung_unet.evaluation.resume import member

SUFFIXES = (
    "_mask.nii.gz", "_probability.nii.gz", "_findings.csv", "_findings.json", "_finding_001.png",
)  # fmt: skip


@pytest.fixture
def run(config, dataset, tmp_path, monkeypatch):
    """A run whose model finds what is dense deep in the lungs, and how often it was restored."""
    folder = tmp_path / "run"
    folder.mkdir()
    config.evaluation.update(
        threshold=0.5, finding_threshold=0.5, candidate_threshold=0.1, min_diameter_mm=3.0
    )
    workdir.claim(folder, config, dataset)
    restored = []

    def predictor(hu, lungs):
        inside = ndimage.binary_erosion(lungs, iterations=3)
        return np.where((hu > -200) & inside, 0.8, 0.0).astype(np.float32)

    def restore(*arguments):
        restored.append(arguments)
        return predictor, 600

    monkeypatch.setattr("lung_unet.restore.restore_predictor", restore)
    return folder, restored


def test_a_folder_of_everything(run, make_scan, write_series, personal, tmp_path, capsys):
    folder, restored = run
    inputs, out = tmp_path / "in", tmp_path / "out"
    centres = {}
    for number, name in enumerate(("a.mha", "b.nii.gz")):
        hu, _, grid, centre = make_scan(number)
        inputs.mkdir(exist_ok=True)
        write_image(inputs / name, hu, grid)
        centres[name.partition(".")[0]] = centre
    for number in (2, 3):
        hu, _, grid, centre = make_scan(number)
        write_series(inputs / str(number) / "ct", f"1.2.3.{number}", hu, grid, personal)
        centres[f"ct_1.2.3.{number}"] = centre
    (inputs / "broken.nii.gz").write_bytes(b"not an image")
    hu, _, grid, _ = make_scan(4)
    write_image(inputs / "scaled.nii.gz", np.clip(hu, 0, 255), grid)

    with pytest.raises(InputError, match="2 of 6 scans failed"):
        predict.predict([folder], inputs, out)

    assert len(restored) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2 and all(line.startswith("error: ") for line in said)
    assert "broken.nii.gz" in said[0] and "scaled.nii.gz" in said[1]
    expected = {name + suffix for name in centres for suffix in SUFFIXES}
    expected |= {f"{name}_segmentation.dcm" for name in centres if name.startswith("ct")}
    written = {p.name for p in out.iterdir()}
    assert expected <= written
    assert not {n for n in written - expected if not n.endswith(".png")}
    for name, centre in centres.items():
        found = json.loads((out / f"{name}_findings.json").read_text(encoding="utf-8"))
        near = [np.linalg.norm(f["centre_mm"] - centre[::-1]) < 5 for f in found["findings"]]
        (finding,) = (f for f, n in zip(found["findings"], near, strict=True) if n)
        assert finding["lung"] == "left"
        mask = sitk.ReadImage(str(out / f"{name}_mask.nii.gz"))
        assert mask[mask.TransformPhysicalPointToIndex(centre[::-1].tolist())] == 1
        with open(out / f"{name}_findings.csv") as file:
            assert next(csv.DictReader(file))["seriesuid"] == name.removeprefix("ct_")
    secrets = [v.encode() for v in (*personal.values(), "MRN-774")]
    for path in (p for p in out.iterdir() if p.suffix != ".dcm"):
        assert not any(secret in path.read_bytes() for secret in secrets)


def test_lungs_that_are_not_plausible_are_said(run, make_scan, tmp_path, capsys):
    hu, lungs, grid, _ = make_scan(0)
    hu[lungs == 4] = 30
    write_image(tmp_path / "x.mha", hu, grid)
    predict.predict([run[0]], tmp_path / "x.mha", tmp_path / "out")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    found = json.loads((tmp_path / "out" / "x_findings.json").read_text(encoding="utf-8"))
    assert len(said) == 1 and said[0].endswith(found["warnings"][0])
    assert "x.mha" in said[0] and "right" in said[0] and "body" in said[0]
    assert found["findings"]


def test_what_the_same_model_predicted_is_left_and_all_else_is_made_anew(
    run, make_scan, write_series, personal, tmp_path, capsys
):
    folder, restored = run
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for number, name in enumerate(("a.mha", "b.mha")):
        hu, _, grid, _ = make_scan(number)
        write_image(inputs / name, hu, grid)
    hu, _, grid, _ = make_scan(2)
    write_series(inputs / "ct", "1.2.3", hu, grid, personal)

    def again() -> set[str]:
        """Which scans are predicted anew."""
        before = {p: p.stat().st_mtime_ns for p in out.glob("*_findings.json")}
        predict.predict([folder], inputs, out)
        after = {p: p.stat().st_mtime_ns for p in out.glob("*_findings.json")}
        return {p.name.partition("_")[0] for p in after if after[p] != before.get(p)}

    assert again() == {"a", "b", "ct"}
    capsys.readouterr()
    assert again() == set() and "3 of 3 scans: predicted before" in capsys.readouterr().out
    (out / "a_mask.nii.gz").unlink()
    (out / "ct_segmentation.dcm").unlink()
    assert again() == {"a", "ct"}
    write_image(inputs / "b.mha", hu, grid)
    (out / "a_findings.json").write_text("{")
    assert again() == {"a", "b"}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["config"]["evaluation"]["threshold"] = 0.4
    (folder / "config.json").write_text(json.dumps(config))
    assert again() == {"a", "b", "ct"} and len(restored) == 5


class Sure:
    """A classifier that calls everything a malignant nodule."""

    def __call__(self, volume, centres_mm):
        return np.full(len(centres_mm), 0.9), np.full(len(centres_mm), 4.5)

    def attribution(self, volume, centre_mm):
        return np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.float32)


def test_a_second_stage_adds_its_columns_and_pictures(run, make_scan, tmp_path, monkeypatch):
    folder, _ = run
    hu, _, grid, _ = make_scan(0)
    write_image(tmp_path / "a.mha", hu, grid)
    out = tmp_path / "out"
    for rated, malignancy in ((True, "4.5000"), (False, "")):
        second = SecondStage(Sure(), 1.0, rated, {"step": 3})
        monkeypatch.setattr("lung_unet.second_stage.open_second_stage", lambda *_, s=second: s)
        predict.predict([folder], tmp_path / "a.mha", out, classifier=tmp_path / "cls")
        with open(out / "a_findings.csv") as file:
            row = next(csv.DictReader(file))
        assert (row["nodule_probability"], row["malignancy"], row["score"]) == (
            "0.9000", malignancy, "0.9000",
        )  # fmt: skip
        found = json.loads((out / "a_findings.json").read_text(encoding="utf-8"))
        assert found["classifier_step"] == 3
        assert found["findings"][0]["malignancy"] == (4.5 if rated else None)
        assert (out / "a_finding_001_why.png").read_bytes().startswith(b"\x89PNG")
    members = [workdir.load(folder)]
    beside = member(members[0], 600) | vars(operating_point(members, [600], folder))
    strict = SecondStage(Sure(), 1.0, True, {"step": 3}, 0.95, beside)
    monkeypatch.setattr("lung_unet.second_stage.open_second_stage", lambda *_: strict)
    predict.predict([folder], tmp_path / "a.mha", out, classifier=tmp_path / "cls")
    found = json.loads((out / "a_findings.json").read_text(encoding="utf-8"))
    assert found["findings"] == [] and found["score_threshold"] == 0.95
    assert not sitk.GetArrayFromImage(sitk.ReadImage(out / "a_mask.nii.gz")).any()
    predict.predict([folder], tmp_path / "a.mha", out)
    assert not list(out.glob("*_why.png"))
    assert "malignancy" not in (out / "a_findings.csv").read_text(encoding="utf-8")


def test_one_scan_that_fails_is_the_error_itself(run, tmp_path, capsys):
    folder, _ = run
    (tmp_path / "broken.nii.gz").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"broken\.nii\.gz"):
        predict.predict([folder], tmp_path / "broken.nii.gz", tmp_path / "out")
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "out").exists()


def test_what_nobody_foresaw_costs_one_scan_and_is_named_at_the_end(
    run, make_scan, tmp_path, monkeypatch, capsys
):
    folder, _ = run
    hu, _, grid, _ = make_scan(0)
    for name in "abcd":
        write_image(tmp_path / "in" / f"{name}.nii.gz", hu, grid)
    from lung_unet.evaluation import prediction, prediction_files

    predict_scan, write = prediction.predict_scan, prediction_files.write_prediction

    def fails(predictor, scan, *arguments):
        if scan.series_uid == "b":
            raise ZeroDivisionError("in two\nlines")
        return predict_scan(predictor, scan, *arguments)

    def full(output, name, *arguments):
        if name == "c":
            raise OSError("no space left")
        return write(output, name, *arguments)

    monkeypatch.setattr(prediction, "predict_scan", fails)
    monkeypatch.setattr(prediction_files, "write_prediction", full)
    with pytest.raises(InputError, match="2 of 4 scans failed") as error:
        predict.predict([folder], tmp_path / "in", tmp_path / "out")
    assert "b.nii.gz" in str(error.value) and "c.nii.gz" in str(error.value)
    said = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("error: ") for line in said] == [True, True]
    assert "b.nii.gz" in said[0] and "ZeroDivisionError: in two lines" in said[0]
    assert "c.nii.gz" in said[1] and "cannot be written" in said[1]
    assert {p.name[0] for p in (tmp_path / "out").iterdir()} == {"a", "d"}


def test_an_output_that_cannot_be_written_is_one_error(run, make_scan, tmp_path):
    folder, _ = run
    hu, _, grid, _ = make_scan(0)
    write_image(tmp_path / "a.mha", hu, grid)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        predict.predict([folder], tmp_path / "a.mha", tmp_path / "file" / "out")
