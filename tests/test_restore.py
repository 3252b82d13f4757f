"""A restored model predicts the same, whatever runs the network."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.errors import InputError
from lung_unet.evaluation.session import BACKENDS
from lung_unet.predict import predict
from lung_unet.restore import restore_predictor


def test_mask_and_findings_are_the_same_on_every_backend(workdir, luna16, tmp_path):
    masks, findings = {}, {}
    for backend in ("jax", *BACKENDS):
        out = tmp_path / backend
        predict(workdir, luna16 / "subset0" / "1.2.0.mhd", out, backend)
        masks[backend] = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "1.2.0_mask.nii.gz")))
        with open(out / "1.2.0_findings.csv") as file:
            rows = list(csv.DictReader(file))
        findings[backend] = [[float(row[f"coord{axis}"]) for axis in "XYZ"] for row in rows]
    assert 0.01 < masks["jax"].mean() < 0.99 and findings["jax"]
    for backend in BACKENDS:
        assert (masks[backend] != masks["jax"]).mean() < 1e-4
        np.testing.assert_allclose(findings[backend], findings["jax"], atol=0.1)


def test_an_unknown_backend_is_named(workdir, config):
    with pytest.raises(InputError, match="--backend=torch: choose one of jax, onnx, openvino"):
        restore_predictor(workdir, config, "torch")
