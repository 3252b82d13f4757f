"""Sliding-window inference over a synthetic scan whose lungs are all, or half, of its voxels."""

import statistics
import time

import numpy as np
from ml_collections import ConfigDict

from lung_unet.benchmark import memory, synthetic
from lung_unet.benchmark.program import device_peak_mb
from lung_unet.benchmark.tables import print_table
from lung_unet.evaluation.sliding_window import Predictor
from lung_unet.parallel.mesh import make_mesh
from lung_unet.train.step import make_apply

SHAPE = (192, 192, 192)
LUNGS = {"full": 1.0, "half": 0.5}  # of the slices


def measure_inference(
    config: ConfigDict, repeats: int, shape: tuple[int, int, int] = SHAPE
) -> dict:
    """Seconds a scan, with fresh parameters, which take as long as trained ones.

    Windows and their overlap are the configuration's. Memory is the device's, or, where it keeps no
    count, this process's.
    """
    apply, init = make_apply(config)
    predict = Predictor(config, apply, init(), make_mesh(config))
    hu, _ = synthetic.chest(shape)
    masks = {}
    for name, share in LUNGS.items():
        masks[name] = np.zeros(shape, bool)
        masks[name][: round(share * shape[0])] = True
    corner = np.zeros(shape, bool)
    corner[0, 0, 0] = True
    predict(hu, corner)  # compiles
    runs = {}
    for name, lungs in masks.items():
        seconds, cpu = [], []
        for _ in range(repeats):
            start, start_cpu = time.perf_counter(), time.process_time()
            predict(hu, lungs)
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
        runs[name] = {
            "s_per_scan": statistics.median(seconds),
            "s_per_scan_spread": [min(seconds), max(seconds)],
            "cpu_s_per_scan": statistics.median(cpu),
            "mvoxel_per_s": hu.size / statistics.median(seconds) / 1e6,
        }
    device_mb = device_peak_mb()
    return {
        "shape": list(shape),
        "overlap": config.evaluation.overlap,
        **runs["full"],
        "half_lungs": runs["half"],
        "peak_memory_mb": device_mb or memory.peak_rss_mb(),
        "peak_memory_of": "device" if device_mb else "process",
    }


def show_inference(result: dict) -> None:
    """Prints what `measure_inference` returned."""
    print_table(
        f"sliding window over {' × '.join(map(str, result['shape']))} voxels, overlap "
        f"{result['overlap']:g}",
        ("lungs", "s a scan", "lowest", "highest", "CPU s", "Mvoxel/s"),
        [
            (
                name, r["s_per_scan"], *r["s_per_scan_spread"], r["cpu_s_per_scan"],
                r["mvoxel_per_s"],
            )
            for name, r in (("everywhere", result), ("half", result["half_lungs"]))
        ],
    )  # fmt: skip
    print(f"  peak memory of the {result['peak_memory_of']} {result['peak_memory_mb']:,.0f} MB")
