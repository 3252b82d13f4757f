"""One program of a configuration, compiled for an accelerator that is not there, and read.

A process of its own, since plug-ins are chosen by the environment: `target_program.py` starts it.
It reads what to do as JSON from its input and writes what it found as JSON to a file.
"""

import importlib.util
import json
import re
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lung_unet import command
from lung_unet.benchmark import traffic
from lung_unet.benchmark.collectives import collectives
from lung_unet.benchmark.hlo import Program
from lung_unet.benchmark.predicted import predict
from lung_unet.benchmark.program import compile_lowered, compile_step, program_mb
from lung_unet.benchmark.synthetic import abstract_batch
from lung_unet.benchmark.targets import INSTALL, PLATFORMS, Target, find
from lung_unet.errors import OUT_OF_MEMORY, InputError
from lung_unet.evaluation.sliding_window import check_windows, make_window_step
from lung_unet.files import write_text
from lung_unet.model.levels import scales_of
from lung_unet.parallel.mesh import REPLICATED, make_mesh
from lung_unet.train import classification, step
from lung_unet.train.step import make_apply

PROGRAMS = ("train_step", "sliding_window")


def main() -> None:
    given = json.load(sys.stdin)
    target = find(given["target"])
    plugin = PLATFORMS[target.platform]
    if importlib.util.find_spec(plugin.split(".")[0]) is None or not importlib.util.find_spec(
        plugin
    ):
        raise InputError(
            f"--target={target.name}: the compiler for {target.platform} is not installed here; "
            f"{INSTALL} makes an environment that has it"
        )
    command.set_up_jax()
    config = ConfigDict(given["config"])
    result = analyse(config, target, given["program"])
    write_text(given["out"], json.dumps(result))


def analyse(config: ConfigDict, target: Target, which: str) -> dict[str, Any]:
    """Compiles one of PROGRAMS and returns what is in it, and what it would take.

    Raises:
      InputError: an impossible mesh.
    """
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"
    mesh = make_mesh(config, target.devices(config.mesh.data * config.mesh.space))
    _, init = make_apply(config)
    params = jax.tree.map(
        partial(_abstract, sharding=NamedSharding(mesh, REPLICATED)), jax.eval_shape(init)
    )
    lower = {"train_step": _lower_train_step, "sliding_window": _lower_window}[which]
    try:
        compiled, seconds, patches = lower(config, mesh, params)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        return _too_large(str(error))
    program = Program(compiled.as_text() or "")
    found = traffic.convolutions(program)
    moved = traffic.bytes_by_kind(program)
    sent = collectives(compiled)
    cycles = traffic.estimated_cycles(program)
    bytes_sent = sum(entry["bytes"] for entry in sent.values())
    times = predict(target, found, sum(moved.values()), bytes_sent, cycles, config.model.dtype)
    memory = program_mb(compiled) / 1e3
    kinds: Any = compiled.memory_analysis()
    voxels = _coarsest_voxels(config, mesh)
    weights = {leaf.size for leaf in jax.tree.leaves(params)}
    return {
        "convolutions": traffic.layouts(found),
        "convolutions_gflop": sum(n * c.flops for c, n in found) / 1e9,
        "memory_gb": memory,
        "memory_by_kind_gb": {
            "arguments": kinds.argument_size_in_bytes / 1e9,
            "results": kinds.output_size_in_bytes / 1e9,
            "of them in the arguments' place": kinds.alias_size_in_bytes / 1e9,
            "temporaries": kinds.temp_size_in_bytes / 1e9,
            "code": kinds.generated_code_size_in_bytes / 1e9,
        },
        "fits": memory <= target.memory_gb,
        "bytes_gb": sum(moved.values()) / 1e9,
        "bytes_by_kind_gb": {kind: n / 1e9 for kind, n in moved.items() if n},
        "moved_activations": traffic.moved_activations(program, voxels, weights),
        "collectives": sent,
        "all_gathers": sum(e["count"] for kind, e in sent.items() if kind.startswith("all-gather")),
        "compile_s": seconds,
        "estimated_cycles": cycles,
        "predicted_ms": {
            "convolutions": times.convolutions_ms,
            "bytes": times.bytes_ms,
            "collectives": times.collectives_ms,
            "the compiler's estimate": times.compiler_ms,
            "program": times.step_ms,
        },
        "predicted_patches_per_s": 1e3 * patches / times.step_ms,
        "patches": patches,
    }


def _abstract(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _lower_train_step(
    config: ConfigDict, mesh: Mesh, params: dict
) -> tuple[jax.stages.Compiled, float, int]:
    """(the compiled step, seconds, patches of a device)."""
    second = config.get("task") == "classification"
    make_gradient = classification.make_gradient if second else step.make_gradient
    batch: Any = abstract_batch(config, mesh)
    compiled, seconds = compile_step(config, mesh, batch, make_gradient=make_gradient)
    return compiled, seconds, config.train.batch_size // mesh.shape["data"]


def _lower_window(
    config: ConfigDict, mesh: Mesh, params: dict
) -> tuple[jax.stages.Compiled, float, int]:
    """(the compiled program of a batch of windows, seconds, windows of a device)."""
    check_windows(config)
    size = tuple(config.evaluation.window or config.data.patch)
    count = -(-config.evaluation.batch_size // mesh.size)
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    windows = jax.ShapeDtypeStruct((count * mesh.size, *size), jnp.int16, sharding=split)
    blend = jax.ShapeDtypeStruct(size, jnp.float32, sharding=NamedSharding(mesh, REPLICATED))
    program = make_window_step(config, make_apply(config)[0], mesh)
    compiled, seconds = compile_lowered(program.lower(params, windows, blend))
    return compiled, seconds, count


def _coarsest_voxels(config: ConfigDict, mesh: Mesh) -> int:
    """Voxels of the network's coarsest level of one patch of a device."""
    scale = scales_of(config.model)[-1] if "strides" in config.model else (1, 1, 1)
    depth, height, width = (n // m for n, m in zip(config.data.patch, scale, strict=True))
    return max(1, depth // mesh.shape["space"]) * height * width


def _too_large(error: str) -> dict[str, Any]:
    """What the TPU's compiler says of a program that does not fit; others say nothing."""
    used = re.search(r"[Uu]sed ([\d.]+)([MGT]) of ([\d.]+)([MGT])", error)
    unit = {"M": 2**20 / 1e9, "G": 2**30 / 1e9, "T": 2**40 / 1e9}
    memory = float(used[1]) * unit[used[2]] if used else None
    return {"memory_gb": memory, "fits": False, "error": " ".join(error.split())[:300]}


if __name__ == "__main__":
    command.run(main)
