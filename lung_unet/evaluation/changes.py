"""Changes of a recipe against its base: runs of several rotations and seeds, compared in pairs."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lung_unet.evaluation.compare import paired_scans
from lung_unet.evaluation.summary import RESAMPLES, bounds, measure_rotations
from lung_unet.files import write_text

COLUMNS = {"nodule_dice": "nodule Dice", "cpm": "CPM", "dice": "voxel Dice", "found": "found",
           "false_positives_per_scan": "FPs/scan"}  # fmt: skip
BY_ROTATION = ("nodule_dice", "cpm")

Key = tuple[int, int]  # (rotation, seed)
Pair = tuple[list[dict], list[dict]]  # scans of a run and of its base, the same


def difference(
    pairs: Mapping[Key, tuple[pathlib.Path, pathlib.Path]], split: str = "test"
) -> dict[str, dict[str, Any]]:
    """Of each metric: the mean of the runs, that of the bases, their difference, and its interval.

    `pairs` are the workdirs of run and base, each seed's of the same rotations. A pair was scored
    on the same scans, and rotations have no scan in common: a seed's metrics are those of all its
    rotations' scans (`measure_rotations`). A resample draws seeds, and scans (or patients, where
    some have several) within each rotation, the same for run and base. `by_seed` are the
    differences one by one, `by_rotation` the same of each rotation alone. The interval does not
    cover the choice of the rotations, and with few seeds it is too narrow for what seeds do, as any
    bootstrap of few.

    Raises:
      InputError: a run that is not scored whole, or on other data.
    """
    rotations, seeds = (sorted({key[i] for key in pairs}) for i in (0, 1))
    scans: dict[Key, Pair] = {}
    for key, (run, base) in pairs.items():
        (ours, _), (others, _) = paired_scans(run, base, split)
        scans[key] = ours, others
    result = _differences([[scans[r, seed] for r in rotations] for seed in seeds])
    if len(rotations) > 1:
        for rotation in rotations:
            own = _differences([[scans[rotation, seed]] for seed in seeds])
            for name, row in result.items():
                row.setdefault("by_rotation", {})[str(rotation)] = own.get(name)
    return result


def _differences(seeds: Sequence[Sequence[Pair]]) -> dict[str, dict[str, Any]]:
    """As `difference`, of the scans of each seed's rotations."""
    sides = [
        [measure_rotations(own) for own in zip(*rotations, strict=True)] for rotations in seeds
    ]
    several = any(len(ours) > 1 for ours, _ in seeds[0])
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(seeds), size=(RESAMPLES, len(seeds)))

    def interval(samples: Sequence[np.ndarray]) -> list[float] | None:
        count = len(samples[0])  # fewer of FROC's: those without a nodule, the same in all runs
        resampled = np.stack(samples)[drawn[:count], np.arange(count)[:, None]].mean(1)
        return bounds(resampled) if several else None

    result: dict[str, dict[str, Any]] = {}
    for name in sides[0][0][0]:
        if any(name not in values for pair in sides for values, _ in pair):
            continue
        of_both = [[values[name] for values, _ in pair] for pair in sides]
        if any(value is None for pair in of_both for value in pair):
            result[name] = dict.fromkeys(("mean", "base", "difference", "interval"))
            continue
        ours, base = np.array(of_both, float).T
        samples = [[drawn_of[name] for _, drawn_of in pair] for pair in sides]
        result[name] = {
            "mean": float(ours.mean()),
            "mean_interval": interval([run for run, _ in samples]),
            "base": float(base.mean()),
            "difference": float((ours - base).mean()),
            "by_seed": (ours - base).tolist(),
            "interval": interval([run - other for run, other in samples]),
        }
    return result


def write_table(
    workdirs: Mapping[str, Mapping[Key, pathlib.Path]],
    base: str,
    out: pathlib.Path,
    tested: Sequence[str] = (),
    note: str = "",
) -> str:
    """Writes ablation.json and ablation.md of the workdirs of each change; returns the latter.

    The workdirs are by change, rotation and seed; a change is compared where it and `base` both
    are done, on the same rotations for each seed, and left out while there is none. `tested` names
    what each rotation is tested on, where there are several; `note` is added to the text.
    """
    entries: dict[str, dict[str, Any]] = {}
    for change, runs in workdirs.items():
        keys = _complete(runs.keys() & workdirs.get(base, {}).keys())
        if keys:
            entries[change] = {
                "seeds": len({seed for _, seed in keys}),
                "rotations": sorted({rotation for rotation, _ in keys}),
                "step_ms": float(np.median([_step_ms(runs[key]) for key in keys])),
                **({"note": note} if note else {}),
                "metrics": difference({key: (runs[key], workdirs[base][key]) for key in keys}),
            }
    text = markdown(entries, base, tested, note)
    write_text(out / "ablation.json", json.dumps(entries, indent=1, allow_nan=False))
    write_text(out / "ablation.md", text)
    return text


def _complete(keys: set[Key]) -> list[Key]:
    """Those of seeds that have all rotations which the seed with the most has."""
    own: dict[int, set[int]] = {}
    for rotation, seed in keys:
        own.setdefault(seed, set()).add(rotation)
    most = max(own.values(), key=len, default=set())
    return sorted((r, seed) for seed, rotations in own.items() if rotations >= most for r in most)


def markdown(
    entries: dict[str, dict[str, Any]], base: str, tested: Sequence[str] = (), note: str = ""
) -> str:
    """The table: the base's own metrics, then what each change adds to them."""
    several = len(tested) > 1
    rows = [["", *["rotations"] * several, "seeds", *COLUMNS.values(), "ms/step"]]
    for change, entry in entries.items():
        counts = [str(len(entry["rotations"]))] * several + [str(entry["seeds"])]
        cells = [_cell(entry["metrics"][name], change == base) for name in COLUMNS]
        rows.append([change, *counts, *cells, f"{entry['step_ms']:.0f}"])
    text = (
        f"The first row is the {base}; the others are differences to it, paired by seed and scan, "
        "with 95% intervals over\nresamples of scans and seeds; * where it leaves out 0.\n"
    )
    if several:
        text += (
            "Each rotation is tested on one folder, chooses on the next and trains on the others. "
            "Scans of all rotations are\npooled, CPM is the mean of the rotations'; a resample "
            f"draws scans within each rotation. The interval does not\ncover the choice of these "
            f"{len(tested)} folders: it says nothing of other patients.\n"
        )
    text += f"{note}\n" if note else ""
    text += f"\n{_table(rows)}\n"
    for name in BY_ROTATION if several else ():
        rows = [[f"{COLUMNS[name]}, tested on", *tested]]
        for change, entry in entries.items():
            own = entry["metrics"][name].get("by_rotation", {})
            values = [own.get(str(number)) for number in range(len(tested))]
            rows.append([change, *(_cell(value, change == base) for value in values)])
        text += f"\n{_table(rows)}\n"
    return text


def _table(rows: list[list[str]]) -> str:
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(row: dict[str, Any] | None, itself: bool) -> str:
    """A metric, of the base itself or as a difference to it, with its interval."""
    value = row and (row["mean"] if itself else row["difference"])
    if row is None or value is None:
        return "–"
    style, ends = ("", row["mean_interval"]) if itself else ("+", row["interval"])
    around = f" ({ends[0]:{style}.3f} … {ends[1]:{style}.3f})" if ends else ""
    star = " *" if ends and not itself and not ends[0] <= 0 <= ends[1] else ""
    return f"{value:{style}.3f}{around}{star}"


def _step_ms(workdir: pathlib.Path) -> float:
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(np.median([row["step_ms"] for row in map(json.loads, lines) if "step_ms" in row]))
