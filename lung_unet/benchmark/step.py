"""The train step on a synthetic batch: time, rate, memory, share of what the device can do."""

import pathlib

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lung_unet.benchmark import memory, peaks, stages, synthetic
from lung_unet.benchmark.augment import without_augmentation
from lung_unet.benchmark.program import compile_step, device_peak_mb, program_mb, runner
from lung_unet.benchmark.tables import print_table
from lung_unet.benchmark.timing import Timing, measure
from lung_unet.model.summary import layer_rows
from lung_unet.model.unet import compute_dtype
from lung_unet.parallel.mesh import BATCH_AND_DEPTH, REPLICATED, make_mesh, put_batch
from lung_unet.train.augment import window
from lung_unet.train.step import Batch, make_apply

TRACED_STEPS = 5


def measure_step(config: ConfigDict, repeats: int, profile: pathlib.Path | None) -> dict:
    """What the train step of a configuration takes and reaches, on the mesh that it asks for.

    Rates are a device's. FLOPs are those of the convolutions (model/summary.py): forward, and twice
    that backward, less the first layer's gradient of the image, which nobody needs. XLA's own count
    stands beside them; it counts the body of a loop once, so that it is too low where a convolution
    is a loop (the CPU). `network_step_ms` is the step without augmentation. With a folder as
    `profile`, a trace of a few steps is written to it.
    """
    mesh = make_mesh(config)
    batch = put_batch(synthetic.batch(config), mesh)
    compiled, compile_s = compile_step(config, mesh, batch)
    run = runner(config, mesh, compiled, batch)
    print("timing it")
    whole = measure(run, repeats)
    device_mb = device_peak_mb()
    resident = {"rss_mb": memory.rss_mb(), "peak_rss_mb": memory.peak_rss_mb()}
    if profile:
        with jax.profiler.trace(str(profile)):
            for _ in range(TRACED_STEPS):
                jax.block_until_ready(run())
    plain = without_augmentation(config)
    plain_compiled = compile_step(plain, mesh, batch, cached=True)[0]
    network = measure(runner(plain, mesh, plain_compiled, batch), repeats)
    forward = _measure_forward(config, mesh, batch, repeats)

    devices = mesh.size
    dtype = compute_dtype(config.model.dtype)
    seconds, gflop = whole.ms / 1000, step_flops(config) / devices / 1e9
    cost = dict(compiled.cost_analysis() or {})
    print("timing matrix products and copies, then the stages")
    matrix_tflops = peaks.matrix_product_tflops(dtype, repeats)
    copy_gb_per_s = peaks.copy_gb_per_s(repeats)
    patches_per_s = config.train.batch_size / seconds / devices
    return {
        "devices": devices,
        "batch_size": config.train.batch_size,
        "patch": list(config.data.patch),
        "dtype": str(dtype),
        "compile_s": compile_s,
        **forward.to_json("forward"),
        **network.to_json("network_step"),
        **whole.to_json("step"),
        "patches_per_s": patches_per_s,
        "mvoxel_per_s": patches_per_s * float(np.prod(config.data.patch)) / 1e6,
        "gflop": gflop,
        "tflops": gflop / seconds / 1e3,
        "xla_gflop": cost["flops"] / 1e9,
        "xla_tflops": cost["flops"] / seconds / 1e12,
        "xla_gb": cost["bytes accessed"] / 1e9,
        "matrix_product_tflops": matrix_tflops,
        "matrix_product_share": gflop / seconds / 1e3 / matrix_tflops,
        "copy_gb_per_s": copy_gb_per_s,
        "copy_share": cost["bytes accessed"] / seconds / 1e9 / copy_gb_per_s,
        "peak_memory_mb": device_mb or program_mb(compiled),
        "peak_memory_of": "device" if device_mb else "program",
        **resident,
        "stages": stages.shares(stages.measure_stages(config, mesh, batch, repeats), whole),
    }


def step_flops(config: ConfigDict) -> int:
    """FLOPs of the convolutions of one train step of the whole batch."""
    flops = [row.flops for row in layer_rows(config)]
    return config.train.batch_size * (3 * sum(flops) - flops[0])


def _measure_forward(config: ConfigDict, mesh: Mesh, batch: Batch, repeats: int) -> Timing:
    apply, init = make_apply(config)
    params = jax.device_put(init(), NamedSharding(mesh, REPLICATED))
    images = window(batch["hu"], config.data.window_hu)[..., None]
    images = jax.device_put(images, NamedSharding(mesh, BATCH_AND_DEPTH))
    forward = jax.jit(apply)
    return measure(lambda: forward(params, images), repeats)


def show_step(result: dict) -> None:
    """Prints what `measure_step` returned."""
    r = result
    patch = " × ".join(map(str, r["patch"]))
    print_table(
        f"train step: {r['batch_size']} patches of {patch}, {r['dtype']}, {r['devices']} device(s)",
        ("", "ms", "lowest", "highest", "CPU ms"),
        [
            (label, r[f"{key}_ms"], *r[f"{key}_ms_spread"], r[f"{key}_cpu_ms"])
            for label, key in (
                ("forward", "forward"),
                ("step without augmentation", "network_step"),
                ("step", "step"),
            )
        ],
    )
    print_table(
        "a device",
        ("", "value", ""),
        [
            ("rate", r["patches_per_s"], "patches/s"),
            ("", r["mvoxel_per_s"], "Mvoxel/s"),
            ("convolutions, analytic", r["tflops"], "TFLOP/s"),
            ("XLA's count, loops counted once", r["xla_tflops"], "TFLOP/s"),
            ("matrix product at its best", r["matrix_product_tflops"], "TFLOP/s"),
            ("  of it the convolutions reach", 100 * r["matrix_product_share"], "%"),
            ("copy", r["copy_gb_per_s"], "GB/s"),
            ("  of it XLA's bytes accessed take", 100 * r["copy_share"], "%"),
            (f"peak memory of the {r['peak_memory_of']}", r["peak_memory_mb"], "MB"),
            ("process now", r["rss_mb"], "MB"),
            ("process at most, compiling too", r["peak_rss_mb"], "MB"),
            ("compilation", r["compile_s"], "s"),
        ],
    )
    stages.show(r["stages"])
