"""The peers themselves, for seconds: what a change of theirs, or ours, would break after hours.

Only where PEERS_PYTHON is that of an environment of requirements-peers.txt.
"""

import os
import pathlib
import subprocess

import pytest

from lung_unet.benchmark.peers.convert import convert
from lung_unet.benchmark.peers.exchange import read_probability, read_system, scored_images
from lung_unet.data.images import read_image
from lung_unet.data.source import open_source

ROOT = pathlib.Path(__file__).parents[3]
PYTHON = os.environ.get("PEERS_PYTHON", "")
COMPILED = """
import functools, torch
from lung_unet.benchmark.peers import nnunet
torch.compile = functools.partial(torch.compile, backend="eager")
nnunet.BudgetTrainer._do_i_compile = lambda self: True  # as on a GPU
nnunet.main()
"""

pytestmark = pytest.mark.skipif(not PYTHON, reason="PEERS_PYTHON is not set")


@pytest.mark.parametrize(
    "system",
    [
        ["-m", "lung_unet.benchmark.peers.nnunet", "--plan_gb=1"],
        ["-c", COMPILED, "--plan_gb=1"],
        ["-m", "lung_unet.benchmark.peers.monai_dynunet", "--spacing_mm=4", "--channels", "4", "8",
         "16", "--strides", "1", *["2"] * 5, "--patch", *["16"] * 3, "--window", *["16"] * 3],
    ],
    ids=["nnU-Net", "nnU-Net compiled", "MONAI"],
)  # fmt: skip
@pytest.mark.parametrize("mirrors", [0, 1])
def test_a_peer_trains_and_predicts(system, mirrors, luna16, dataset, config, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    convert(open_source(luna16), dataset, config.data, raw)
    given = [f"--raw={raw}", f"--out={out}", "--minutes=0.02", f"--mirrors={mirrors}"]
    done = subprocess.run([PYTHON, *system, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_system(out)["iterations"] >= 1
    for uid, path in scored_images(raw).items():
        read_probability(out, uid, read_image(path)[1].shape)
