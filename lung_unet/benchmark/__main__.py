"""Measure this machine: the train step and its parts, the input pipeline, inference, preparation.

    python -m lung_unet.benchmark --config=configs/unet3d.py[:variant] [--config.key=value]
        [--what=step,conv,augment,input,inference,prepare,collectives,scaling,program]
        [--json=FILE] [--repeats=5] [--target=h200,v5e,… [--devices=N]]

Each measurement prints a table: medians of several repeats after a warm-up, the lowest and highest
beside them, and the CPU time of the process, which other work on the machine disturbs less.

    step       the whole train step on synthetic patches: time, rate, memory, shares of the stages
    conv       each convolution of the network, conv3d against other formulations
    augment    the augmentation, and each of its transforms alone
    input      the pipeline on config.data.dir, or on the phantom; MLPerf Storage's utilisation
    inference  the sliding window over a synthetic scan of 192³ voxels
    prepare    one synthetic scan of 512 × 512 × 200 voxels, one worker
    collectives  what the devices of config.mesh say to each other in a step: counts and bytes, with
               the accelerators' convolutions; theirs is --config.model.dtype=bfloat16
    scaling    what a device computes and moves in a step, from 1 to 8 devices over each axis
    program    the train step and the sliding window's program, compiled for the accelerators of
               --target, which need not be here: layouts, memory, bytes, collectives, and the time
               that a stated model predicts. launch/targets.sh installs the compilers

The last three are read from compiled programs, not timed; a CPU counts as eight devices in the
first two.

step, conv and augment need jax, flax, optax, numpy, absl and ml_collections alone.
"""

import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

from absl import flags

from lung_unet import command
from lung_unet.benchmark import target_program, targets
from lung_unet.errors import InputError
from lung_unet.files import write_text

COMPILED = ("collectives", "scaling")
KNOWN = ("step", "conv", "augment", "input", "inference", "prepare", *COMPILED, "program")
PACKAGES = ("lung_unet", "jax", "jaxlib", "flax", "optax", "numpy", "grain")

_CONFIG = command.define_config("configs/unet3d.py")
_WHAT = flags.DEFINE_list("what", ["step"], f"What to measure: some of {','.join(KNOWN)}.")
_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Repeats of each measurement.", lower_bound=1)
_PROFILE = flags.DEFINE_string(
    "profile", None, "step: folder for an XProf trace of a few steps, taken after the timing."
)
_STEP_MS = flags.DEFINE_float(
    "step_ms",
    None,
    "input: ms that the accelerator takes for a batch. By default an H100 in MLPerf Storage's "
    "unet3d: 323 ms for 7 samples, in proportion.",
    lower_bound=0.0,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "input: folder for the phantom where config.data.dir is empty; kept."
)


_TARGET = flags.DEFINE_list(
    "target",
    None,
    "program: the accelerators to compile for, as h200,v5e, or paths of GPUs' descriptions.",
)
_DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "program: devices to compile for; config.mesh.data becomes what makes so many.",
    lower_bound=1,
)


def main() -> None:
    names = list(dict.fromkeys(_WHAT.value))
    for name in names:
        if name not in KNOWN:
            raise InputError(f"--what={name}: choose some of {','.join(KNOWN)}")
    if not names:
        raise InputError(f"--what is empty: choose some of {','.join(KNOWN)}")
    if _PROFILE.value and "step" not in names:
        raise InputError("--profile traces the train step; add step to --what")
    if "program" in names and not _TARGET.value:
        raise InputError(f"--what=program needs --target: some of {','.join(targets.known())}")
    if "program" not in names and _TARGET.value:
        raise InputError("--target is what --what=program compiles for; add program to --what")
    results = here(names[0]) if len(names) == 1 else apart(names)
    if _JSON.value:
        text = " ".join(["python -m lung_unet.benchmark", *sys.argv[1:]])
        results["about"] |= {"command": text}
        write_text(_JSON.value, json.dumps(results, indent=1))
    if told := target_program.too_large(results.get("program", {})):
        raise InputError(told)


def here(name: str) -> dict:
    """Measures one thing in this process; returns {name: numbers, "about": where}."""
    config, repeats = _CONFIG.value, _REPEATS.value
    if name == "program":
        given = _TARGET.value or []
        numbers = target_program.measure_program(config, given, _DEVICES.value)
        target_program.show_program(numbers)
        return {"about": about(), name: numbers}
    command.set_up_jax()
    if name in COMPILED:
        import jax

        if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", 8)
    else:
        print(f"{name}: {repeats} repeats of each measurement")
    module = importlib.import_module(f"lung_unet.benchmark.{name}")
    options: dict[str, object] = {}
    if name == "step":
        options["profile"] = pathlib.Path(_PROFILE.value) if _PROFILE.value else None
    if name == "input":
        options["step_ms"] = _STEP_MS.value
        options["workdir"] = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
    arguments = (config,) if name in COMPILED else (config, repeats)
    numbers = getattr(module, f"measure_{name}")(*arguments, **options)
    getattr(module, f"show_{name}")(numbers)
    return {"about": about(), name: numbers}


def apart(names: list[str]) -> dict:
    """Measures each in a process of its own, so that memory is its own and nothing lingers."""
    results: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = pathlib.Path(folder) / "result.json"
            profile = _PROFILE.value if name == "step" and _PROFILE.value else ""
            target = ",".join(_TARGET.value or ()) if name == "program" else ""
            arguments = [*sys.argv[1:], f"--what={name}", f"--json={path}", f"--profile={profile}"]
            arguments.append(f"--target={target}")
            done = subprocess.run([sys.executable, "-m", "lung_unet.benchmark", *arguments])
            if done.returncode:
                sys.exit(done.returncode)
            results |= json.loads(path.read_text(encoding="utf-8"))
    return results


def about() -> dict:
    """When, with what, and on what the numbers were measured."""
    import jax

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "versions": versions,
    }


if __name__ == "__main__":
    command.run(main)
