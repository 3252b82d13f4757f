"""Metrics of many scans, with 95 % intervals over resamples of the patients or the scans.

A metric is a sum over scans by another sum over scans, or comes of the FROC; so all of a resample
follows from how often it draws each scan. Two runs on the same scans draw the same resamples.
A patient with several scans is drawn with all of them, since these are alike.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lung_unet.evaluation.calibration import expected_calibration_error
from lung_unet.evaluation.froc import (
    COARSE,
    FPS_PER_SCAN,
    Froc,
    draws,
    evaluate_marks,
    interval,
)

RESAMPLES = 1000
VOXEL_METRICS = ("dice", "precision", "recall", "f1", "iou")
# Of nodules, whatever of them was measured; these are in metrics.json even where nothing was.
NODULE_METRICS = ("nodule_dice", "hd95_mm", "nsd_2mm")
SENSITIVITY = "sensitivity at {:g}"

Values = dict[str, float | None]
Samples = dict[str, np.ndarray]  # (resamples,) of each metric, NaN where not defined


def resampled(scans: Sequence[dict]) -> str:
    """What a resample draws: "patients" where one has several scans and there are others, else
    "scans". A scan that names no "patient" is taken for the only one of its own."""
    patients = [scan.get("patient") or scan["series_uid"] for scan in scans]
    return "patients" if 1 < len(set(patients)) < len(patients) else "scans"


def clusters(scans: Sequence[dict], by: str) -> np.ndarray:
    """The number of what a resample draws each scan with, "patients" or "scans"."""
    if by == "scans":
        return np.arange(len(scans))
    numbers: dict[str, int] = {}
    names = (scan.get("patient") or scan["series_uid"] for scan in scans)
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], int)


def froc_of(scans: list[dict], by: str | None = None, seed: int = 0) -> Froc:
    """The FROC of scans as `score_scan` gives them, resampled where there are several, `by`
    patients or scans: by default as `resampled` says."""
    own = clusters(scans, by or resampled(scans))
    return _froc(scans, False, RESAMPLES if len(scans) > 1 else 0, seed, own)


def _froc(
    scans: list[dict],
    of_mask: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    own: np.ndarray | None = None,
) -> Froc:
    """The FROC of all marks, or of those alone that are in the mask."""
    marks, nodules, excluded = (
        [np.reshape(scan[k], (-1, 4)) for scan in scans] for k in ("marks", "included", "excluded")
    )
    if of_mask:
        marks = [m[s["in_mask"]] for m, s in zip(marks, scans, strict=True)]
    return evaluate_marks(marks, nodules, excluded, bootstrap, seed, own)


def measure(scans: list[dict], froc: Froc, by: str | None = None) -> tuple[Values, Samples]:
    """Each metric by its name, None where not defined, and of resamples, as `froc_of`'s."""
    values, samples = _measure_ratios(scans, _draws(scans, by))
    own, resamples = _measure_froc(froc)
    return values | own, samples | resamples


def measure_rotations(rotations: Sequence[list[dict]]) -> tuple[Values, Samples]:
    """As `measure`, of scans that several models were tested on, each on those of its rotation.

    What is counted is that of all scans together. CPM and sensitivities are the mean of those of
    the rotations that have nodules: the models' probabilities do not rank each other's marks. A
    resample draws within each rotation, so that the rotations themselves stay.
    """
    weights = np.hstack([_draws(own, seed=number) for number, own in enumerate(rotations)])
    values, samples = _measure_ratios([scan for own in rotations for scan in own], weights)
    frocs = [_measure_froc(froc_of(own, seed=number)) for number, own in enumerate(rotations)]
    known = [(own, drawn) for own, drawn in frocs if own["cpm"] is not None]
    for name in frocs[0][0]:
        values[name] = float(np.mean([own[name] for own, _ in known])) if known else None
        # One scan is not resampled; without the resamples that drew no nodule, some have fewer.
        count = min((len(drawn[name]) for _, drawn in known if len(drawn[name])), default=0)
        parts = [drawn[name][:count] if len(drawn[name]) else np.full(count, own[name])
                 for own, drawn in known]  # fmt: skip
        samples[name] = np.mean(parts, 0) if parts else np.empty(0)
    return values, samples


def _measure_ratios(scans: list[dict], weights: np.ndarray) -> tuple[Values, Samples]:
    values: Values = {}
    samples: Samples = {}
    for name, (part, whole) in _ratios(scans).items():
        values[name] = float(part.sum() / whole.sum()) if whole.any() else None
        with np.errstate(invalid="ignore", divide="ignore"):
            samples[name] = (weights @ part) / (weights @ whole)
    return values, samples


def _measure_froc(froc: Froc) -> tuple[Values, Samples]:
    names = ["cpm", *(SENSITIVITY.format(rate) for rate in FPS_PER_SCAN)]
    coarse = froc.resamples[:, COARSE]
    columns = np.column_stack([coarse.mean(1), coarse]).T
    values = dict(zip(names, [froc.cpm, *froc.sensitivity], strict=True))
    return values, dict(zip(names, columns, strict=True))


def _ratios(scans: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each metric the two sums, scan by scan."""
    hit, wrong, missed = (
        np.array([scan["voxels"][k] for scan in scans], float)
        for k in ("hit", "false_positive", "missed")
    )
    ratios = {
        "dice": (2 * hit, 2 * hit + wrong + missed),
        "precision": (hit, hit + wrong),
        "recall": (hit, hit + missed),
        "f1": (2 * hit, 2 * hit + wrong + missed),
        "iou": (hit, hit + wrong + missed),
    }
    keys = dict.fromkeys(k for scan in scans for n in scan["nodules"] for k in n["metrics"])
    for key in keys:
        values = [[n["metrics"][key] for n in scan["nodules"]] for scan in scans]
        known = [[v for v in own if v is not None] for own in values]
        name = f"nodule_{key}" if key in VOXEL_METRICS else key
        ratios[name] = (np.array([sum(own) for own in known], float),
                        np.array([len(own) for own in known], float))  # fmt: skip
    for name in NODULE_METRICS:
        ratios.setdefault(name, (np.zeros(len(scans)), np.zeros(len(scans))))
    found = [sum(n["facts"]["found"] for n in scan["nodules"]) for scan in scans]
    ratios["found"] = np.array(found, float), np.array([float(len(s["nodules"])) for s in scans])
    regions = np.array([scan["false_positives"] for scan in scans], float)
    ratios["false_positives_per_scan"] = regions, np.ones(len(scans))
    return ratios


def _draws(scans: Sequence[dict], by: str | None = None, seed: int = 0) -> np.ndarray:
    """float (RESAMPLES, scans): how often each resample draws each scan."""
    return draws(clusters(scans, by or resampled(scans)), RESAMPLES, seed).astype(float)


def bounds(samples: np.ndarray) -> list[float] | None:
    """[lower, upper] of the 95 % interval; None where no resample is defined."""
    defined = samples[np.isfinite(samples)]
    if not len(defined):
        return None
    ends = interval(defined)
    return [float(ends["lower"]), float(ends["upper"])]


def _told(samples: np.ndarray) -> list[float] | None:
    ends = bounds(samples)
    return ends if ends and ends[0] < ends[1] else None


def summarise(scans: list[dict], froc: Froc) -> dict[str, Any]:
    """What metrics.json holds of scans as `score_scan` gives them; None is what is not defined.

    `intervals` are [lower, upper], None where all resamples agree: that a resample of scans without
    false positives has none either says nothing of other scans, and one scan alone cannot be
    resampled. They are over resamples of what `resampled` says; where that is patients,
    `intervals_by_scan` are those of the scans. `patients` counts those that are known. What FROC
    makes of the marks that are in the mask is its `at_threshold`.
    """
    values, samples = measure(scans, froc)
    by = resampled(scans)
    by_scan = {}
    if by == "patients":
        others = measure(scans, froc_of(scans, "scans"), "scans")[1]
        by_scan = {"intervals_by_scan": _nested({k: _told(own) for k, own in others.items()})}
    intervals = {name: _told(own) if len(scans) > 1 else None for name, own in samples.items()}
    bins = np.sum([scan["calibration"] for scan in scans], 0)
    voxels, probability, true = bins.tolist()
    counts = froc.to_json()
    sure = _froc(scans, of_mask=True)
    return {
        **_nested(values),
        "scans": len(scans),
        "patients": len({scan["patient"] for scan in scans if scan.get("patient")}) or None,
        "nodules": sum(len(scan["nodules"]) for scan in scans),
        "froc": {
            **{k: counts[k] for k in counts if k.startswith(("true_", "false_", "ignored_"))},
            "at_threshold": {
                "sensitivity": sure.true_positives / sure.nodules if sure.nodules else None,
                "false_positives_per_scan": sure.false_positives / sure.scans,
            },
        },
        "calibration": {
            "expected_error": expected_calibration_error(bins),
            "voxels": voxels,
            "probability": [p / n if n else None for p, n in zip(probability, voxels, strict=True)],
            "nodule": [t / n if n else None for t, n in zip(true, voxels, strict=True)],
        },
        "resampled": by,
        "intervals": _nested(intervals),
        **by_scan,
    }


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """With the sensitivities as one object, by false positives a scan."""
    names = {SENSITIVITY.format(rate): f"{rate:g}" for rate in FPS_PER_SCAN}
    rest = {name: value for name, value in flat.items() if name not in names}
    return {**rest, "sensitivity": {key: flat[name] for name, key in names.items()}}
