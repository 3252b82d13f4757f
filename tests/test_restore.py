"""A restored model predicts the same, whatever runs the network."""

import csv
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.data.shard_reader import scan_records
from lung_unet.errors import InputError
from lung_unet.evaluation.operating_point import choose
from lung_unet.evaluation.resume import member
from lung_unet.evaluation.session import BACKENDS
from lung_unet.predict import predict
from lung_unet.restore import restore_predictor, restore_runs
from lung_unet.workdir import claim, load


def test_mask_and_findings_are_the_same_on_every_backend(workdir, luna16, tmp_path):
    masks, findings = {}, {}
    for backend in ("jax", *BACKENDS):
        out = tmp_path / backend
        predict([workdir], luna16 / "subset0" / "1.2.0.mhd", out, backend)
        masks[backend] = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "1.2.0_mask.nii.gz")))
        with open(out / "1.2.0_findings.csv") as file:
            rows = list(csv.DictReader(file))
        findings[backend] = [[float(row[f"coord{axis}"]) for axis in "XYZ"] for row in rows]
    assert 0.01 < masks["jax"].mean() < 0.99 and findings["jax"]
    for backend in BACKENDS:
        assert (masks[backend] != masks["jax"]).mean() < 1e-4
        np.testing.assert_allclose(findings[backend], findings["jax"], atol=0.1)


@pytest.fixture
def runs(shrunk_config, make_run, dataset, tmp_path):
    """Two seeds of one network, and the first of them again with windows that overlap less."""
    workdirs = []
    for seed in range(2):
        config = shrunk_config()
        config.seed = seed
        workdirs.append(make_run(str(seed), config))
        config.evaluation.threshold = None  # to be chosen
        claim(workdirs[-1], config, dataset)
    again = shutil.copytree(workdirs[0], tmp_path / "again")
    config = load(again).config
    config.evaluation.overlap = 0.0
    claim(again, config, dataset)
    return [load(workdir) for workdir in (*workdirs, again)]


def test_runs_are_averaged_by_one_program_a_network(runs, dataset):
    volume = scan_records(dataset, "test")[0].volume
    together, steps = restore_runs(runs)
    assert steps == [0, 0, 0]
    alone = [restore_runs([run])[0](volume.hu, volume.lungs) for run in runs]
    np.testing.assert_allclose(together(volume.hu, volume.lungs), np.mean(alone, 0), atol=1e-6)
    assert min(np.abs(alone[0] - other).max() for other in alone[1:]) > 0.01
    first, second, third = (member._forward for member in together.members)
    assert first is second is not third


def test_several_runs_predict_with_the_thresholds_chosen_for_them(
    runs, dataset, oracle, luna16, tmp_path
):
    others, runs = runs[1:], runs[:2]
    scan, chosen = luna16 / "subset0" / "1.2.0.mhd", tmp_path / "together"
    members = [member(run, 0) for run in runs]
    point = choose(oracle(dataset), runs[0].config, dataset, chosen, members)
    workdirs = [run.workdir for run in runs]
    with pytest.raises(InputError, match="chosen yet for these together"):
        predict([run.workdir for run in others], scan, tmp_path / "out", thresholds=chosen)
    predict(
        workdirs[::-1], scan, tmp_path / "out", "onnx", thresholds=chosen
    )  # a mean has no order
    found = json.loads((tmp_path / "out" / "1.2.0_findings.json").read_text(encoding="utf-8"))
    assert found["threshold"] == point.threshold and found["checkpoint_step"] == [0, 0]


def test_an_unknown_backend_is_named(workdir, config):
    with pytest.raises(InputError, match="--backend=torch: choose one of jax, onnx, openvino"):
        restore_predictor(workdir, config, "torch")
