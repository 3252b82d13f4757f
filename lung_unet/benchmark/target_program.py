"""The programs of a configuration, compiled for accelerators that are not there."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from ml_collections import ConfigDict

from lung_unet.benchmark.tables import print_table
from lung_unet.benchmark.targets import INSTALL, PLATFORMS, Target, find
from lung_unet.command import frozen
from lung_unet.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-targets" / "bin" / "python"
# No metadata server is asked, no log written, no device looked for.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def measure_program(config: ConfigDict, names: list[str], devices: int | None) -> dict:
    """What the compilers of the targets make of the train step and the sliding window's program.

    With `devices`, `config.mesh.data` becomes what makes the mesh have so many.

    Raises:
      InputError: an unknown target, a plug-in that is not installed, or an impossible mesh.
    """
    targets = [find(name) for name in names]
    pythons = [python_for(target) for target in targets]
    config = config.copy_and_resolve_references()
    if devices is not None:
        if devices % config.mesh.space:
            raise InputError(
                f"--devices={devices} is not a multiple of config.mesh.space = {config.mesh.space}"
            )
        config.mesh.data = devices // config.mesh.space
    results = {}
    for target, python in zip(targets, pythons, strict=True):
        whole = _compile(python, config, target, "train_step")
        if config.get("task") != "classification":
            whole["sliding_window"] = _compile(python, config, target, "sliding_window")
        results[target.name] = {
            "description": target.description,
            "devices": config.mesh.data * config.mesh.space,
            "mesh": [config.mesh.data, config.mesh.space],
            "batch_size": config.train.batch_size,
            "patch": list(config.data.patch),
            "device_memory_gb": target.memory_gb,
            **whole,
        }
    return results


def python_for(target: Target) -> str:
    """The Python that has the plug-in of a target: this one, or that of .venv-targets.

    Raises:
      InputError: neither has it.
    """
    top, _, rest = PLATFORMS[target.platform].partition(".")
    if importlib.util.find_spec(top) and (
        not rest or importlib.util.find_spec(PLATFORMS[target.platform])
    ):
        return sys.executable
    if PYTHON.exists():
        return str(PYTHON)
    raise InputError(
        f"--target={target.name}: the compiler for {target.platform} is not installed; "
        f"{INSTALL} makes an environment that has it (some 6 GB)"
    )


def _compile(python: str, config: ConfigDict, target: Target, program: str) -> dict[str, Any]:
    """One program, in a process of its own.

    Raises:
      InputError: what it could not do, in one line.
    """
    print(f"{target.name}: compiling the {program.replace('_', ' ')}")
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "result.json"
        name = target.name if not target.config else str(pathlib.Path(folder) / "gpu.txtpb")
        if target.config:
            pathlib.Path(name).write_text(target.config, encoding="utf-8")
        given = {
            "config": frozen(config), "target": name, "program": program, "out": str(out),
        }  # fmt: skip
        done = subprocess.run(
            [python, "-m", "lung_unet.benchmark.compile_target"],
            input=json.dumps(given),
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1].removeprefix("error: ") if lines else f"exit code {done.returncode}"
            if reason.startswith("ModuleNotFoundError"):  # its installation was interrupted
                reason = f"{python} is incomplete ({reason}); {INSTALL} completes its environment"
            raise InputError(f"{target.name}: {reason}")
        return json.loads(out.read_text(encoding="utf-8"))


def too_large(results: dict) -> str | None:
    """One line about the programs that do not fit, by how much, and what would; None if all do."""
    told = []
    for name, result in results.items():
        for program, part in (
            ("train step", result),
            ("sliding window", result.get("sliding_window")),
        ):
            if part is None or part["fits"]:
                continue
            memory, limit = part["memory_gb"], result["device_memory_gb"]
            text = f"{name}: the {program} does not fit"
            if memory is None:
                told.append(f"{text} ({part['error']})")
                continue
            text += f": it needs {memory:.1f} GB of {limit:.1f}, {memory - limit:.1f} too many"
            told.append(f"{text}; {_remedy(program, result, memory, limit)}")
    return "; ".join(told) or None


def _remedy(program: str, result: dict, memory: float, limit: float) -> str:
    if program == "sliding window":
        return "lower config.evaluation.batch_size or window"
    each = result["batch_size"] // result["mesh"][0]
    fitting = int(each * limit / memory)  # what is not the batch's makes this a guess
    if fitting < 1:
        return "not one patch does: set config.model.remat, or a smaller config.data.patch"
    return (
        f"by proportion a batch of {fitting} a device would (config.train.batch_size or "
        "accumulate); config.model.remat needs less"
    )


def show_program(results: dict) -> None:
    """Prints what `measure_program` returned."""
    for name, result in results.items():
        size = " × ".join(map(str, result["patch"]))
        title = f"{name} ({result['description']}), {result['devices']} device(s), compiled only"
        _show(f"{title}: train step, {result['batch_size']} × {size}", result, "patches/s")
        if "sliding_window" in result:
            _show(f"{title}: sliding window", result["sliding_window"], "windows/s")
    print(
        "\n  predicted: FLOPs over a rate by layout, bytes over bandwidth, nothing overlaps "
        "(benchmark/predicted.py); a model, not a measurement"
    )


def _show(title: str, r: dict, rate: str) -> None:
    if "error" in r:
        print(f"\n{title}\n  does not fit: {r['error']}")
        return
    rows: list[tuple[object, ...]] = [
        (f"convolutions in {layout}", count, "") for layout, count in r["convolutions"].items()
    ]
    rows += [
        ("convolutions", r["convolutions_gflop"], "GFLOP"),
        ("memory", r["memory_gb"], "GB"),
        *((f"  {kind}", gb, "GB") for kind, gb in r["memory_by_kind_gb"].items()),
        ("bytes read and written", r["bytes_gb"], "GB"),
        *((f"  {kind}", gb, "GB") for kind, gb in r["bytes_by_kind_gb"].items()),
        ("transposes and copies of activations", len(r["moved_activations"]), ""),
        *(
            (kind, e["count"], f"{e['bytes'] / 1e6:,.1f} MB")
            for kind, e in r["collectives"].items()
        ),
        ("compilation", r["compile_s"], "s"),
    ]
    if r["estimated_cycles"] is not None:
        rows.append(("cycles, estimated by the compiler", r["estimated_cycles"] / 1e6, "million"))
    rows += [
        (f"predicted: {part}", ms, "ms") for part, ms in r["predicted_ms"].items() if ms is not None
    ]
    rows.append(("predicted, a device", r["predicted_patches_per_s"], rate))
    print_table(title, ("", "value", ""), rows)
