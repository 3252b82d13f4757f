"""Systems side by side: what each scored and took, and how far lung_unet is from each, paired."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from lung_unet.benchmark.peers.exchange import read_system
from lung_unet.evaluation.compare import compare
from lung_unet.files import write_text

METRICS = {"nodule_dice": "nodule Dice", "cpm": "CPM", "false_positives_per_scan": "FP a scan"}
SECONDS = ("prepare", "train")
LONGER = 1.01  # than the minutes, which is told


def side_by_side(ours: pathlib.Path, peers: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Each system's name, iterations, seconds, metrics with intervals and, of a peer, our metrics
    less its own, with paired intervals; all on the test split."""
    rows = []
    for folder in (ours, *peers):
        system = read_system(folder)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        row = {
            **{key: system[key] for key in ("name", "iterations", "seconds")},
            "metrics": {name: metrics[name] for name in METRICS},
            "intervals": {name: metrics["intervals"][name] for name in METRICS},
        }
        if folder != ours:
            paired = compare(ours, folder, "test")["metrics"]
            row["ours_less_this"] = {name: paired[name] for name in METRICS}
        rows.append(row)
    return {"scans": metrics["scans"], "nodules": metrics["nodules"], "systems": rows}


def markdown(comparison: dict[str, Any], minutes: float) -> str:
    """The comparison as a table."""
    columns = ["system", "iterations", *METRICS.values(), "ours less this: nodule Dice", "CPM"]
    columns += [f"{name} s" for name in SECONDS]
    lines = [columns, ["---"] * len(columns)]
    for row in comparison["systems"]:
        scores = [_shown(row["metrics"][m], row["intervals"][m]) for m in METRICS]
        paired = [row["ours_less_this"][m] if "ours_less_this" in row else None
                  for m in ("nodule_dice", "cpm")]  # fmt: skip
        differences = ["" if p is None else _shown(p["difference"], p["interval"], "+.2f")
                       for p in paired]  # fmt: skip
        seconds = [row["seconds"].get(name) for name in SECONDS]
        took = ["–" if s is None else f"{s:.0f}" for s in seconds]
        lines.append([row["name"], str(row["iterations"]), *scores, *differences, *took])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    longer = [
        f"\n{row['name']} trained for {share:.0%} of the minutes: not equal time.\n"
        for row in comparison["systems"]
        if (share := row["seconds"].get("train", 0) / (60 * minutes)) > LONGER
    ]
    return (
        f"{comparison['scans']} test scans with {comparison['nodules']} nodules, "
        f"{minutes:g} minutes of training each; 95% intervals over resamples of the scans.\n\n"
        f"{table}\n{''.join(longer)}"
    )


def write_table(comparison: dict[str, Any], minutes: float, out: pathlib.Path) -> str:
    """Writes comparison.json and comparison.md; returns the latter."""
    text = markdown(comparison, minutes)
    write_text(out / "comparison.json", json.dumps(comparison, indent=1, allow_nan=False))
    write_text(out / "comparison.md", text)
    return text


def _shown(value: float | None, ends: Sequence[float] | None, style: str = ".2f") -> str:
    if value is None:
        return "–"
    around = f" ({format(ends[0], style)} … {format(ends[1], style)})" if ends else ""
    return format(value, style) + around
