"""Changes of a recipe against its base: runs of several seeds, paired by seed and scan."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lung_unet.evaluation.compare import measure_both
from lung_unet.evaluation.summary import RESAMPLES, bounds
from lung_unet.files import write_text

COLUMNS = {"nodule_dice": "nodule Dice", "cpm": "CPM", "dice": "voxel Dice",
           "false_positives_per_scan": "FP a scan"}  # fmt: skip


def difference(
    runs: Sequence[pathlib.Path], bases: Sequence[pathlib.Path], split: str = "test"
) -> dict[str, dict[str, Any]]:
    """Of each metric: the mean of the runs, that of the bases, their difference, and its interval.

    Run i and base i have the same seed, and all were scored on the same scans. A resample draws
    scans and seeds with replacement, the same for run and base. `by_seed` are the differences one
    by one. With few seeds the interval is too narrow for what seeds do, as any bootstrap of few.

    Raises:
      InputError: a run that is not scored whole, or on other data.
    """
    pairs = [measure_both(run, base, split) for run, base in zip(runs, bases, strict=True)]
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(pairs), size=(RESAMPLES, len(pairs)))
    result: dict[str, dict[str, Any]] = {}
    for name in pairs[0][0].values:
        if any(name not in side.values for pair in pairs for side in pair):
            continue
        values = [[side.values[name] for side in pair] for pair in pairs]
        if any(value is None for pair in values for value in pair):
            result[name] = {"mean": None, "base": None, "difference": None, "interval": None}
            continue
        ours, base = np.array(values, float).T
        samples = np.stack([run.samples[name] - base.samples[name] for run, base in pairs])
        count = samples.shape[1]  # fewer of FROC's: those without a nodule, the same in all runs
        resampled = samples[drawn[:count], np.arange(count)[:, None]].mean(1)
        ends = bounds(resampled) if pairs[0][0].scans > 1 else None
        result[name] = {
            "mean": float(ours.mean()),
            "base": float(base.mean()),
            "difference": float((ours - base).mean()),
            "by_seed": (ours - base).tolist(),
            "interval": ends,
        }
    return result


def write_table(
    workdirs: Mapping[str, Mapping[int, pathlib.Path]], base: str, out: pathlib.Path
) -> str:
    """Writes ablation.json and ablation.md of the workdirs of each change; returns the latter.

    The workdirs are by change and by seed; a change is compared on the seeds that it and `base`
    both have, and left out while there are none.
    """
    entries = {}
    for change, runs in workdirs.items():
        seeds = sorted(runs.keys() & workdirs.get(base, {}).keys())
        if seeds:
            entries[change] = {
                "seeds": len(seeds),
                "step_ms": float(np.median([_step_ms(runs[seed]) for seed in seeds])),
                "metrics": difference(
                    [runs[seed] for seed in seeds], [workdirs[base][seed] for seed in seeds]
                ),
            }
    text = markdown(entries, base)
    write_text(out / "ablation.json", json.dumps(entries, indent=1, allow_nan=False))
    write_text(out / "ablation.md", text)
    return text


def markdown(entries: dict[str, dict[str, Any]], base: str) -> str:
    """The table: the base's own metrics, then what each change adds to them."""
    lines = [["", "seeds", *COLUMNS.values(), "ms a step"], ["---"] * (len(COLUMNS) + 3)]
    for change, entry in entries.items():
        cells = []
        for name in COLUMNS:
            row = entry["metrics"][name]
            value = row["mean"] if change == base else row["difference"]
            cells.append("–" if value is None else f"{value:.3f}" if change == base else
                         f"{value:+.3f}{_around(row['interval'])}")  # fmt: skip
        lines.append([change, str(entry["seeds"]), *cells, f"{entry['step_ms']:.0f}"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"The first row is the {base}; the others are differences to it, paired by seed and scan, "
        "with 95% intervals over\nresamples of scans and seeds; * where it leaves out 0.\n\n"
        f"{table}\n"
    )


def _around(ends: Sequence[float] | None) -> str:
    if ends is None:
        return ""
    star = "" if ends[0] <= 0 <= ends[1] else " *"
    return f" ({ends[0]:+.3f} … {ends[1]:+.3f}){star}"


def _step_ms(workdir: pathlib.Path) -> float:
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(np.median([row["step_ms"] for row in map(json.loads, lines) if "step_ms" in row]))
