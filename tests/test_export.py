"""An exported network does without this package what it does with it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from lung_unet.errors import InputError
from lung_unet.export import export_network
from lung_unet.restore import restore_module
from lung_unet.train.augment import window
from lung_unet.train.step import make_apply

# Run where this package cannot be imported: python -c USE[runtime] network hu.npy probability.npy
ALONE = """
import importlib.util, sys
import numpy as np
assert importlib.util.find_spec("lung_unet") is None
network, hu, out = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
"""
USE = {
    "stablehlo": """
from jax import export
exported = export.deserialize(bytearray(open(network, "rb").read()))
assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
np.save(out, exported.call(hu))
""",
    "onnx": """
import onnxruntime
np.save(out, onnxruntime.InferenceSession(network).run(["probability"], {"hu": hu})[0])
""",
    "openvino": """
import openvino
model = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(out, model({"hu": hu})["probability"])
""",
}


@pytest.mark.parametrize("runtime", USE)
def test_runs_without_this_package(config, workdir, tmp_path, runtime):
    network = tmp_path / "elsewhere" / "nodules.net"
    export_network(workdir, "stablehlo" if runtime == "stablehlo" else "onnx", network)
    description = json.loads((network.parent / "nodules.net.json").read_text(encoding="utf-8"))
    assert description["spacing_mm"] == 4.0 and description["checkpoint_step"] == 0
    assert description["threshold"] == config.evaluation.threshold
    shape = (3, *description["input"]["shape"][1:])
    hu = np.random.default_rng(0).normal(-500, 400, shape).astype(np.float32)
    hu_path, out = tmp_path / "hu.npy", tmp_path / "probability.npy"
    np.save(hu_path, hu)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    process = subprocess.run(
        [sys.executable, "-c", ALONE + USE[runtime], network, hu_path, out],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    apply, _ = make_apply(config)
    params = nnx.to_pure_dict(nnx.state(restore_module(workdir, config)[0]))
    logits = jax.jit(apply)(params, window(hu, config.data.window_hu)[..., None])[..., 0]
    wanted = 1 / (1 + np.exp(-np.asarray(logits)))
    assert wanted.std() > 0.05
    np.testing.assert_allclose(np.load(out), wanted, atol=1e-4)


def test_what_cannot_be_done_is_named(workdir, tmp_path, monkeypatch):
    out = tmp_path / "nodules.onnx"
    with pytest.raises(InputError, match="--format=torch: choose one of stablehlo, onnx"):
        export_network(workdir, "torch", out)
    with pytest.raises(InputError, match="no such folder"):
        export_network(tmp_path / "nowhere", "onnx", out)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/nodules\.onnx: cannot be written"):
        export_network(workdir, "onnx", tmp_path / "file" / out.name)
    with pytest.raises(InputError, match="cannot be written"):
        export_network(workdir, "onnx", workdir)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "lung_unet.model.onnx", raising=False)
    with pytest.raises(InputError, match=r"onnx: pip install -r requirements-export\.txt"):
        export_network(workdir, "onnx", out)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(InputError, match="holds no checkpoint"):
        export_network(workdir, "stablehlo", out)
    assert not list(tmp_path.glob("*nodules*"))


ALLOWED = """
import importlib.metadata, pathlib, re, sys

def closure(names):
    found, left = set(), list(names)
    while left:
        name = re.sub("[-_.]+", "-", left.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            left += [re.match("[A-Za-z0-9._-]+", n)[0] for n in needs if "extra ==" not in n]
    return found

lines = pathlib.Path("requirements.txt").read_text(encoding="utf-8").splitlines()
wanted = closure(line.partition("==")[0] for line in lines if "==" in line)
owners = importlib.metadata.packages_distributions()

class OthersAreMissing:
    def find_spec(self, name, path=None, target=None):
        own = {re.sub("[-_.]+", "-", d).lower() for d in owners.get(name.partition(".")[0], ())}
        if own and not own & wanted:
            raise ModuleNotFoundError(f"{name} is not in requirements.txt", name=name)

sys.meta_path.insert(0, OthersAreMissing())
from lung_unet.export import export_network
export_network(pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]))
"""


def test_stablehlo_needs_requirements_txt_alone(workdir, tmp_path):
    def export(format: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", ALLOWED, workdir, format, tmp_path / format],
            cwd=pathlib.Path(__file__).parent.parent,
            capture_output=True, encoding="utf-8", timeout=300,
        )  # fmt: skip

    done = export("stablehlo")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stablehlo").stat().st_size > 1000
    assert "pip install -r requirements-export.txt" in export("onnx").stderr
