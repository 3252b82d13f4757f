"""Two runs side by side on the scans that both scored, with paired intervals of the difference."""

import dataclasses
import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from lung_unet.errors import InputError
from lung_unet.evaluation import candidates, scoring
from lung_unet.evaluation.resume import scored_split
from lung_unet.evaluation.summary import (
    Samples,
    Values,
    bounds,
    froc_of,
    measure,
    resampled,
)

SEGMENTATION = "CPM and sensitivities are of the segmentation's marks, whatever a second stage says"
SAME = ("data", "fold", "readers")  # of the settings: what was scored against what


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """One run's metrics, and their resamples, on the scans that another scored as well."""

    values: Values
    samples: Samples
    scans: int
    nodules: int
    resampled: str  # "patients" or "scans"
    by_segmentation: bool  # whether it ranks the marks, though a second stage decides on the mask


def compare(a: pathlib.Path, b: pathlib.Path, split: str) -> dict[str, Any]:
    """Each metric of run `a` and run `b`, their difference a − b, and its 95 % interval.

    The interval is over resamples of the scans, or the patients (`resampled`), the same for both
    runs, so that what makes a scan hard for both does not widen it. What only a nodule that was
    found has (its HD95, say) counts where both runs have it. None is what is not defined.

    Raises:
      InputError: a workdir whose split is not scored whole, or runs on different data or splits,
        or by versions of lung_unet that score otherwise.
    """
    first, second = measure_both(a, b, split)
    rows = {}
    for name in (n for n in first.values if n in second.values):
        one, other = first.values[name], second.values[name]
        known = one is not None and other is not None
        differences = first.samples[name] - second.samples[name]
        rows[name] = {
            "a": one,
            "b": other,
            "difference": one - other if one is not None and other is not None else None,
            "interval": bounds(differences) if known and first.scans > 1 else None,
        }
    note = SEGMENTATION if first.by_segmentation or second.by_segmentation else ""
    return {"a": str(a), "b": str(b), "split": split, "scans": first.scans,
            "nodules": first.nodules, "resampled": first.resampled, "note": note,
            "metrics": rows}  # fmt: skip


def measure_both(a: pathlib.Path, b: pathlib.Path, split: str) -> tuple[Measured, Measured]:
    """What both runs reached on the scans that both scored; resample i drew the same scans in both.

    Raises:
      InputError: as `compare`.
    """

    def measured(scans: list[dict], settings: dict) -> Measured:
        nodules = sum(len(scan["nodules"]) for scan in scans)
        alone = "second_stage" in settings and "marks" not in settings
        by = resampled(scans)
        return Measured(*measure(scans, froc_of(scans)), len(scans), nodules, by, alone)

    one, other = paired_scans(a, b, split)
    return measured(*one), measured(*other)


def paired_scans(
    a: pathlib.Path, b: pathlib.Path, split: str
) -> tuple[tuple[list[dict], dict], tuple[list[dict], dict]]:
    """(scans, settings) of each run: the scans that both scored, in one order, with what both have.

    Raises:
      InputError: as `compare`.
    """
    (first, settings), (second, others) = scored_split(a, split), scored_split(b, split)
    for name in SAME:
        if settings[name] != others[name]:
            what = {
                "data": "another dataset, or another version of it",
                "fold": f"another fold ({settings['fold']} and {others['fold']})",
                "readers": f"another truth ({settings['readers']} and {others['readers']} readers)",
            }
            raise InputError(
                f"{a} and {b}: were scored on {what[name]}; only runs on the same {split} split "
                "can be compared"
            )
    if _versions(settings) != _versions(others):
        now = (scoring.VERSION, candidates.VERSION)
        old, other = (b, a) if _versions(settings) == now else (a, b)
        raise InputError(
            f"{old}: was scored by another version of lung_unet than {other}; score it anew, by "
            f"lung_unet.evaluate --split={split} as before"
        )
    both = sorted(first.keys() & second.keys())
    if not both:
        raise InputError(f"{a} and {b}: no scan of the {split} split was scored in both")
    pairs = [(first[uid], second[uid]) for uid in both]
    patients = [{"patient": a.get("patient") or b.get("patient")} for a, b in pairs]
    return (
        ([_both_measured(*p) | own for p, own in zip(pairs, patients, strict=True)], settings),
        ([_both_measured(*p[::-1]) | own for p, own in zip(pairs, patients, strict=True)], others),
    )


def _both_measured(scan: dict, other: dict) -> dict:
    """A scan with those scores of its nodules that the other run has of the same nodules too."""
    nodules = [
        own | {"metrics": {k: v if than["metrics"].get(k) is not None else None
                           for k, v in own["metrics"].items()}}
        for own, than in zip(scan["nodules"], other["nodules"], strict=True)
    ]  # fmt: skip
    return scan | {"nodules": nodules}


def _versions(settings: dict) -> tuple[int, int | None]:
    """Of what is kept of a scan, and of how candidates are found. Results of before the first was
    kept with them are of its 1."""
    return settings.get("version", 1), settings.get("candidates")


def print_comparison(comparison: dict[str, Any]) -> None:
    """Prints a comparison as a table; a difference that its interval tells from 0 has a star."""
    table = Table(
        title=f"{comparison['split']} split, {comparison['scans']} scans with "
        f"{comparison['nodules']} nodules",
        caption=f"* the interval of the difference, over resamples of the "
        f"{comparison['resampled']}, leaves out 0",
    )
    for column in ("metric", "A", "B", "A − B", "95 % interval", ""):
        table.add_column(column, justify="left" if column == "metric" else "right")

    def shown(value: float | None, style: str = ".3f") -> str:
        return "–" if value is None else format(value, style)

    for name, row in comparison["metrics"].items():
        ends = row["interval"]
        differs = ends is not None and not ends[0] <= 0 <= ends[1]
        table.add_row(
            name, shown(row["a"]), shown(row["b"]), shown(row["difference"], "+.3f"),
            "–" if ends is None else f"{ends[0]:+.3f} … {ends[1]:+.3f}", "*" if differs else "",
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(f"A  {comparison['a']}\nB  {comparison['b']}")
    console.print(table)
    if comparison["note"]:
        console.print(comparison["note"])
