"""Real anatomy and real outlines in small: prepare → main → evaluate → predict."""

import json
import pathlib
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.data.luna16 import read_scan


@pytest.fixture(scope="module")
def luna_like(real_data, tmp_path_factory):
    """Three scans of the real CT with implanted nodules, from the tool beside the data."""
    tool = pathlib.Path(real_data).parent / "tools" / "make_luna_like.py"
    if not tool.exists():
        pytest.skip(f"no {tool}")
    out = tmp_path_factory.mktemp("luna_like")
    subprocess.run(
        [sys.executable, tool, "--ct", real_data / "chest_ct_dicom", "--out", out, "--xml",
         real_data / "lidc_xml.tar.xz", "--scans", "3", "--matrix", "96", "--seed", "5"],
        check=True, capture_output=True,
    )  # fmt: skip
    return out


def test_votes_equal_the_readers_outlines_exactly(luna_like):
    for path in sorted((luna_like / "truth").glob("*.nii.gz")):
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        scan = read_scan(luna_like, path.name.removesuffix(".nii.gz"), luna_like / "lidc_xml")
        np.testing.assert_array_equal(scan.votes, truth)
        assert scan.hu.dtype == np.int16 and scan.hu.shape == truth.shape


def test_the_whole_way_on_real_anatomy(run, shrunk, luna_like, real_data, tmp_path):
    prepared, workdir, out = (tmp_path / n for n in ("prepared", "run", "out"))
    run = partial(run, level=None)
    run("prepare", f"--luna16={luna_like}", f"--out={prepared}", *shrunk)
    run("main", *shrunk, f"--config.data.dir={prepared}", f"--workdir={workdir}")
    run("evaluate", f"--workdir={workdir}")
    assert json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))["scans"] == 1
    run("predict", f"--workdir={workdir}", f"--input={real_data / 'chest_ct_dicom'}",
        f"--output={out}")  # fmt: skip
    mask = sitk.ReadImage(str(out / "chest_ct_dicom_mask.nii.gz"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(real_data / "chest_ct_dicom")))
    image = reader.Execute()
    assert mask.GetSize() == image.GetSize()
    np.testing.assert_allclose(mask.GetSpacing(), image.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(mask.GetOrigin(), image.GetOrigin(), rtol=1e-5)
