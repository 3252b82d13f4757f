"""Metrics of many scans, with 95 % intervals over resamples of the scans.

A metric is a sum over scans by another sum over scans, or comes of the FROC; so all of a resample
follows from how often it draws each scan. Two runs on the same scans draw the same resamples.
"""

from typing import Any

import numpy as np

from lung_unet.evaluation.calibration import expected_calibration_error
from lung_unet.evaluation.froc import COARSE, FPS_PER_SCAN, Froc, evaluate_marks, interval

RESAMPLES = 1000
VOXEL_METRICS = ("dice", "precision", "recall", "f1", "iou")
# Of nodules, whatever of them was measured; these are in metrics.json even where nothing was.
NODULE_METRICS = ("nodule_dice", "hd95_mm", "nsd_2mm")
SENSITIVITY = "sensitivity at {:g}"

Values = dict[str, float | None]
Samples = dict[str, np.ndarray]  # (resamples,) of each metric, NaN where not defined


def froc_of(scans: list[dict]) -> Froc:
    """The FROC of scans as `score_scan` gives them, resampled where there are several."""
    return _froc(scans, bootstrap=RESAMPLES if len(scans) > 1 else 0)


def _froc(scans: list[dict], of_mask: bool = False, bootstrap: int = 0) -> Froc:
    """The FROC of all marks, or of those alone that are in the mask."""
    marks, nodules, excluded = (
        [np.reshape(scan[k], (-1, 4)) for scan in scans] for k in ("marks", "included", "excluded")
    )
    if of_mask:
        marks = [m[s["in_mask"]] for m, s in zip(marks, scans, strict=True)]
    return evaluate_marks(marks, nodules, excluded, bootstrap)


def measure(scans: list[dict], froc: Froc) -> tuple[Values, Samples]:
    """Each metric by its name, None where not defined, and of resamples of the scans."""
    ratios = _ratios(scans)
    values: Values = {}
    samples: Samples = {}
    weights = _draws(len(scans))
    for name, (part, whole) in ratios.items():
        values[name] = float(part.sum() / whole.sum()) if whole.any() else None
        with np.errstate(invalid="ignore", divide="ignore"):
            samples[name] = (weights @ part) / (weights @ whole)
    names = ["cpm", *(SENSITIVITY.format(rate) for rate in FPS_PER_SCAN)]
    coarse = froc.resamples[:, COARSE]
    columns = np.column_stack([coarse.mean(1), coarse]).T
    values |= dict(zip(names, [froc.cpm, *froc.sensitivity], strict=True))
    samples |= dict(zip(names, columns, strict=True))
    return values, samples


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


def _draws(scans: int) -> np.ndarray:
    """(RESAMPLES, scans): how often each resample draws each scan."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(scans, size=scans) for _ in range(RESAMPLES))
    return np.stack([np.bincount(d, minlength=scans) for d in drawn]).astype(float)


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
    resampled. What FROC
    makes of the marks that are in the mask is its `at_threshold`.
    """
    values, samples = measure(scans, froc)
    intervals = {name: _told(own) if len(scans) > 1 else None for name, own in samples.items()}
    bins = np.sum([scan["calibration"] for scan in scans], 0)
    voxels, probability, true = bins.tolist()
    counts = froc.to_json()
    sure = _froc(scans, of_mask=True)
    return {
        **_nested(values),
        "scans": len(scans),
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
        "intervals": _nested(intervals),
    }


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """With the sensitivities as one object, by false positives a scan."""
    names = {SENSITIVITY.format(rate): f"{rate:g}" for rate in FPS_PER_SCAN}
    rest = {name: value for name, value in flat.items() if name not in names}
    return {**rest, "sensitivity": {key: flat[name] for name, key in names.items()}}
