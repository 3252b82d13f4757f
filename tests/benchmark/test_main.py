"""The command: what it needs, what it refuses, what it writes."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = (
    "--config=configs/unet3d.py:smoke", "--config.data.patch=(8,8,8)",
    "--config.model.channels=(4,)", "--config.model.convs=1", "--config.train.batch_size=2",
    "--repeats=1",
)  # fmt: skip
# rich comes with flax, which imports it; nothing of ours may.
ALONE = """
import builtins
others = {"grain", "array_record", "SimpleITK", "scipy", "cc3d", "matplotlib", "orbax"}
real = builtins.__import__
def checked(name, globals=None, *rest, **named):
    top, importer = name.partition(".")[0], str((globals or {}).get("__name__"))
    if top in others or top == "rich" and not importer.startswith(("flax", "rich")):
        raise ImportError(f"{importer} imports {name}")
    return real(name, globals, *rest, **named)
builtins.__import__ = checked
"""


@pytest.fixture
def run(environment):
    def run(*arguments, path=ROOT) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "lung_unet.benchmark", *map(str, arguments)],
            cwd=ROOT,
            env=environment(1) | {"PYTHONPATH": str(path)},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return run


def test_step_conv_and_augment_need_jax_and_its_kin_alone(run, flips_alone, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(ALONE)
    out = tmp_path / "numbers.json"
    done = run(*TINY, *flips_alone, "--what=step,conv,augment", f"--json={out}", path=tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(out.read_text(encoding="utf-8"))
    assert set(numbers) == {"about", "step", "conv", "augment"}
    step = numbers["step"]
    for key in ("forward_ms", "step_ms", "patches_per_s", "tflops", "peak_memory_mb", "compile_s"):
        assert step[key] > 0
    assert set(step["stages"]) == {
        "encoder 0", "heads and loss", "augmentation", "optimizer", "norm and activation",
        "remainder",
    }  # fmt: skip
    assert sum(shape["layers"] for shape in numbers["conv"]["shapes"]) == 2
    assert set(numbers["augment"]["alone"]) == {"flip"}
    assert numbers["about"]["versions"]["jax"]


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["--what=step,speed"], "--what=speed: choose some of step,conv"),
        (["--what="], "--what is empty"),
        (["--what=conv", "--profile=trace"], "add step to --what"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, saying):
    done = run(*arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and saying in line
