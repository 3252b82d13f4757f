"""Preparation of one synthetic scan of clinical size, by one worker process."""

import concurrent.futures
import multiprocessing
import pathlib
import statistics
import tempfile
import time

import numpy as np
from ml_collections import ConfigDict

from lung_unet.benchmark import memory, synthetic
from lung_unet.benchmark.tables import print_table
from lung_unet.data.datasets import settings_of
from lung_unet.data.luna16 import Luna16
from lung_unet.data.phantom import HEADER, write_metaimage
from lung_unet.data.scan import Grid
from lung_unet.data.shards import Settings, prepare_scan
from lung_unet.files import write_text

SHAPE, SPACING_MM = (200, 512, 512), (2.0, 0.7, 0.7)  # (z, y, x)
UID = "1.2.3"


def measure_prepare(config: ConfigDict, repeats: int, shape: tuple[int, int, int] = SHAPE) -> dict:
    """Seconds from a .mhd with a .zraw and a lung mask to shards, as `config.data` asks for.

    The worker has prepared the scan once before, so that imports and the disk's cache are warm.
    """
    settings = settings_of(config.data)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _write_scan(folder, shape)
        with concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn")
        ) as worker:
            runs = [
                worker.submit(_prepare, folder, folder / f"out{i}", settings).result()
                for i in range(repeats + 1)
            ][1:]
        written = sum(p.stat().st_size for p in (folder / "out0").rglob("*.arrayrecord"))
    seconds, cpu, peak = zip(*runs, strict=True)
    return {
        "shape": list(shape),
        "spacing_mm": [*SPACING_MM],
        "to_mm": settings.spacing_mm,
        "s_per_scan": statistics.median(seconds),
        "s_per_scan_spread": [min(seconds), max(seconds)],
        "cpu_s_per_scan": statistics.median(cpu),
        "peak_memory_mb": max(peak),
        "written_mb": written / 1e6,
    }


def _write_scan(folder: pathlib.Path, shape: tuple[int, int, int]) -> None:
    grid = Grid(shape, np.array(SPACING_MM), np.zeros(3))
    for name, array in zip(("subset0", "seg-lungs-LUNA16"), synthetic.chest(shape), strict=True):
        (folder / name).mkdir()
        write_metaimage(folder / name / f"{UID}.mhd", array, grid)
    z, y, x = grid.to_world(np.array(shape) * (0.5, 0.5, 0.7))
    write_text(folder / "annotations.csv", f"{','.join(HEADER)}\n{UID},{x},{y},{z},8.0\n")


def _prepare(
    folder: pathlib.Path, out: pathlib.Path, settings: Settings
) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak memory MB of the process)."""
    start, start_cpu = time.perf_counter(), time.process_time()
    prepare_scan(Luna16(folder), UID, out, settings)
    return (
        time.perf_counter() - start, time.process_time() - start_cpu, memory.peak_rss_mb()
    )  # fmt: skip


def show_prepare(result: dict) -> None:
    """Prints what `measure_prepare` returned."""
    shape = " × ".join(map(str, result["shape"]))
    spacing = " × ".join(f"{v:g}" for v in result["spacing_mm"])
    print_table(
        f"preparation of {shape} voxels of {spacing} mm to {result['to_mm']:g} mm, one worker",
        ("", "s a scan", "lowest", "highest", "CPU s", "peak MB", "MB written"),
        [
            (
                "", result["s_per_scan"], *result["s_per_scan_spread"], result["cpu_s_per_scan"],
                result["peak_memory_mb"], result["written_mb"],
            )
        ],
    )  # fmt: skip
