"""A prediction's files agree with each other, as the programs that open them see them."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from lung_unet.data.images import image_of, read_image
from lung_unet.data.scan import Grid, Scan
from lung_unet.evaluation import prediction_files
from lung_unet.evaluation.overlay import HEIGHT, WIDTH
from lung_unet.evaluation.prediction import Detection, Prediction
from lung_unet.evaluation.prediction_files import write_prediction


@pytest.fixture
def prediction(direction) -> Prediction:
    """Two findings in a scan turned in any way."""
    grid = Grid((20, 40, 30), np.array([2.0, 1.0, 1.5]), np.array([-30.0, 12.0, 7.0]), direction)
    labels = np.zeros(grid.shape, np.uint16)
    labels[5:8, 20:25, 4:8], labels[12:15, 6:9, 20:25] = 1, 2
    probability = np.where(labels > 0, 230, 3).astype(np.uint8)
    detections = []
    for number, probable in ((1, 0.9), (2, 0.7)):
        voxel = np.argwhere(labels == number).mean(0)
        volume = float((labels == number).sum() * 3.0)
        centre, lung = grid.to_world(voxel), ("left", "unknown")[number - 1]
        detections.append(Detection(centre, voxel, 9.5, volume, probable, lung))
    hu = np.random.default_rng(0).integers(-900, -700, grid.shape).astype(np.int16)
    scan = Scan("1.2.3", grid, hu, np.zeros(grid.shape, np.uint8))
    return Prediction(scan, probability, labels, detections)


def test_images_lie_on_the_scans_grid_and_probability_reads_as_0_to_1(prediction, tmp_path):
    write_prediction(tmp_path, "x", prediction, {})
    expected = image_of(prediction.labels, prediction.scan.grid)
    mask, probability = (
        sitk.ReadImage(str(tmp_path / f"x_{n}.nii.gz")) for n in ("mask", "probability")
    )
    for image in (mask, probability):
        for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(image, name)(), getattr(expected, name)(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), prediction.labels > 0)
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(probability), prediction.probability / 255, atol=1e-6
    )
    read_image(tmp_path / "x_probability.nii.gz")  # whole, to the strictest reader there is


def test_tables_say_where_in_the_mask_each_finding_is(prediction, tmp_path):
    write_prediction(tmp_path, "x", prediction, {"checkpoint_step": 7})
    mask = sitk.ReadImage(str(tmp_path / "x_mask.nii.gz"))
    found = json.loads((tmp_path / "x_findings.json").read_text(encoding="utf-8"))
    assert found["series_uid"] == "1.2.3" and found["checkpoint_step"] == 7
    with open(tmp_path / "x_findings.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == [
        "seriesuid", "coordX", "coordY", "coordZ", "probability", "diameter_mm"
    ]  # fmt: skip
    assert [r["seriesuid"] for r in rows] == ["1.2.3"] * 2
    for row, finding, d in zip(rows, found["findings"], prediction.detections, strict=True):
        x, y, z = finding["centre_voxel"]
        assert mask.GetPixel(round(x), round(y), round(z)) == 1
        np.testing.assert_allclose(
            mask.TransformContinuousIndexToPhysicalPoint((x, y, z)), finding["centre_mm"], atol=0.2
        )
        np.testing.assert_allclose(
            [float(row[f"coord{axis}"]) for axis in "XYZ"], finding["centre_mm"], atol=1e-3
        )
        np.testing.assert_allclose([float(row[f"voxel{axis}"]) for axis in "XYZ"], [x, y, z])
        for name in ("probability", "diameter_mm", "volume_mm3"):
            assert float(row[name]) == finding[name] == pytest.approx(getattr(d, name))
        assert finding["lung"] == d.lung and row["lung"]


def test_each_finding_is_drawn_with_its_outline(prediction, tmp_path):
    write_prediction(tmp_path, "x", prediction, {})
    pictures = sorted(tmp_path.glob("*.png"))
    assert [p.name for p in pictures] == ["x_finding_001.png", "x_finding_002.png"]
    for path in pictures:
        picture = imread(path)[..., :3]
        assert picture.shape == (HEIGHT, WIDTH, 3)
        red, green, blue = np.moveaxis(picture[30:], -1, 0)
        magenta = np.minimum(red, blue) - green > 0.2
        assert all(part.sum() > 30 for part in np.array_split(magenta, 3, axis=1))
        assert not (green - np.maximum(red, blue) > 0.2).any()  # no truth is known


def test_the_most_probable_alone_are_drawn(prediction, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_files, "DRAWN", 1)
    write_prediction(tmp_path, "x", prediction, {})
    assert [p.name for p in tmp_path.glob("*.png")] == ["x_finding_001.png"]


def test_nothing_of_an_earlier_prediction_stays_and_nothing_of_another_goes(prediction, tmp_path):
    write_prediction(tmp_path, "x", prediction, {})
    others = ["x2_findings.json", "x_finding_1.txt", "y_finding_001.png", "x_segmentation.dcm.bak"]
    for name in (*others, "x_segmentation.dcm"):
        (tmp_path / name).touch()
    before = {p.name for p in tmp_path.iterdir()}
    nothing = Prediction(prediction.scan, prediction.probability, prediction.labels * 0, [])
    write_prediction(tmp_path, "x", nothing, {})
    after = {p.name for p in tmp_path.iterdir()}
    assert before - after == {"x_finding_001.png", "x_finding_002.png", "x_segmentation.dcm"}
    assert len((tmp_path / "x_findings.csv").read_text(encoding="utf-8").splitlines()) == 1
    assert json.loads((tmp_path / "x_findings.json").read_text(encoding="utf-8"))["findings"] == []


def test_json_alone_has_warnings_and_what_lies_outside_the_lungs(prediction, tmp_path):
    outside = [dataclasses.replace(prediction.detections[1], lung="outside")]
    scan = dataclasses.replace(prediction.scan, warnings=("no lungs",))
    write_prediction(tmp_path, "x", dataclasses.replace(prediction, scan=scan, outside=outside), {})
    found = json.loads((tmp_path / "x_findings.json").read_text(encoding="utf-8"))
    assert found["warnings"] == ["no lungs"]
    (only,) = found["outside_lungs"]
    assert only["lung"] == "outside"
    assert only["centre_mm"] == found["findings"][1]["centre_mm"]
    assert (
        len(found["findings"])
        == len((tmp_path / "x_findings.csv").read_text(encoding="utf-8").split()) - 1
        == 2
    )
    assert len(list(tmp_path.glob("*.png"))) == 2
