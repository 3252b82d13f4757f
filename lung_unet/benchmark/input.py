"""The input pipeline alone: patches a second, CPU time a patch, and whether a device would wait."""

import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from lung_unet.benchmark import memory
from lung_unet.benchmark.tables import print_table
from lung_unet.data.datasets import open_dataset
from lung_unet.data.manifest import Dataset
from lung_unet.data.pipeline import training_batches

# MLPerf Storage v1.0's unet3d on an H100: seconds of compute for a batch of 7.
H100_S, H100_SAMPLES = 0.323, 7
REPEAT_S = 2.0  # a repeat, and
UTILISATION_S = 10.0  # the run with a pretended accelerator, take at least this


def measure_input(
    config: ConfigDict, repeats: int, step_ms: float | None, workdir: pathlib.Path | None
) -> dict:
    """What the training pipeline of `config.data` yields on one thread and on the configured ones.

    Utilisation is MLPerf Storage's: with a pretended accelerator that takes `step_ms` a batch, the
    share of the time that it computes. By default it is as fast as an H100 there. `rss_growth_mb`
    is from the first to the last repeat. The phantom is built in `workdir` where it is asked for,
    or in a temporary folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(config.data, workdir or pathlib.Path(folder))
        one = _feed(config, dataset, 1, repeats)
        result = _feed(config, dataset, config.data.threads, repeats)
        compute_s = H100_S / H100_SAMPLES * config.train.batch_size
        if step_ms is not None:
            compute_s = step_ms / 1000
        utilisation = _utilisation(config, dataset, compute_s)
    return {
        "patch": list(config.data.patch),
        "batch_size": config.train.batch_size,
        **result,
        "one_thread": one,
        "step_ms": 1000 * compute_s,
        "utilisation": utilisation,
    }


def _batches(config: ConfigDict, dataset: Dataset, threads: int) -> Iterator[dict]:
    """Batches after those that were read ahead while nobody took any."""
    batches = iter(
        training_batches(
            dataset,
            patch=tuple(config.data.patch),
            batch_size=config.train.batch_size,
            nodule_fraction=config.data.nodule_fraction,
            seed=config.seed,
            threads=threads,
            prefetch=config.data.prefetch,
        )
    )
    return itertools.islice(batches, 2 * max(threads, config.data.prefetch), None)


def _feed(config: ConfigDict, dataset: Dataset, threads: int, repeats: int) -> dict:
    batches = _batches(config, dataset, threads)
    next(batches)
    rates, cpu, megabytes, resident = [], [], [], []
    patches = 0
    for _ in range(repeats):
        taken = size = 0
        start, start_cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - start < REPEAT_S:
            batch = next(batches)
            taken += len(batch["hu"])
            size += sum(np.asarray(array).nbytes for array in batch.values())
        seconds = time.perf_counter() - start
        rates.append(taken / seconds)
        megabytes.append(size / seconds / 1e6)
        cpu.append((time.process_time() - start_cpu) / taken)
        resident.append(memory.rss_mb())
        patches += taken
    return {
        "threads": threads,
        "patches_per_s": statistics.median(rates),
        "patches_per_s_spread": [min(rates), max(rates)],
        "mb_per_s": statistics.median(megabytes),
        "cpu_s_per_patch": statistics.median(cpu),
        "patches": patches,
        "rss_mb": resident[-1],
        "rss_growth_mb": resident[-1] - resident[0],
    }


def _utilisation(config: ConfigDict, dataset: Dataset, compute_s: float) -> float:
    batches = _batches(config, dataset, config.data.threads)
    next(batches)
    steps = 0
    start = time.perf_counter()
    while time.perf_counter() - start < UTILISATION_S:
        next(batches)
        time.sleep(compute_s)
        steps += 1
    return steps * compute_s / (time.perf_counter() - start)


def show_input(result: dict) -> None:
    """Prints what `measure_input` returned."""
    patch = " × ".join(map(str, result["patch"]))
    print_table(
        f"input: batches of {result['batch_size']} patches of {patch}",
        ("threads", "patches/s", "lowest", "highest", "MB/s", "CPU s a patch", "RSS MB", "growth"),
        [
            (
                str(r["threads"]), r["patches_per_s"], *r["patches_per_s_spread"], r["mb_per_s"],
                r["cpu_s_per_patch"], r["rss_mb"],
                f"{r['rss_growth_mb']:+.0f} in {r['patches']} patches",
            )
            for r in (result["one_thread"], result)
        ],
    )  # fmt: skip
    print(
        f"  an accelerator that takes {result['step_ms']:.1f} ms a batch computes "
        f"{100 * result['utilisation']:.1f}% of the time"
    )
