"""The search for an operating point: what is needed of each scan, and the best of all scans."""

import itertools

import numpy as np
from ml_collections import ConfigDict

from lung_unet.data.labels import agreement
from lung_unet.data.records import ScanRecord
from lung_unet.evaluation.candidates import find_candidates, probability_on_source
from lung_unet.evaluation.ensemble import Predict
from lung_unet.evaluation.froc import evaluate_marks, finding_rows
from lung_unet.evaluation.voxel import Counts, truth_mask

Values = dict[str, tuple[float, ...]]
GRID: Values = {
    "threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "candidate_threshold": (0.02, 0.05, 0.1, 0.2, 0.3),
    "min_diameter_mm": (0.0, 2.0, 3.0, 4.0, 5.0),
}
DEFAULT = {"threshold": 0.5, "candidate_threshold": 0.1, "min_diameter_mm": 3.0}


def examine(predictor: Predict, config: ConfigDict, record: ScanRecord, values: Values) -> dict:
    """What the search needs of one scan, JSON-able.

    voxels (thresholds, 3) of `overlap`; regions: at each level that may be one of the two
    thresholds, every region's z, y, x, probability, diameter and peak; nodules and excluded
    findings as FROC takes them.
    """
    volume = record.volume
    probability = predictor(volume.hu, volume.lungs)
    smallest, lowest = min(values["min_diameter_mm"]), min(values["threshold"])
    found = {
        level: find_candidates(probability, volume, level, smallest)
        for level in sorted({*values["threshold"], *values["candidate_threshold"]})
    }
    own = probability_on_source(probability, found[lowest], volume, lowest)
    nodules, excluded = finding_rows(record.findings)
    return {
        "voxels": overlap(own, record, agreement(config.data), values["threshold"]),
        "regions": {
            str(level): [
                [*c.centre_mm.tolist(), c.probability, c.diameter_mm, c.peak] for c in candidates
            ]
            for level, candidates in found.items()
        },
        "nodules": nodules,
        "excluded": excluded,
    }


def overlap(
    probability: np.ndarray, record: ScanRecord, consensus: int, thresholds: tuple[float, ...]
) -> list[list[int]]:
    """Voxels (hit, false_positive, missed) at each threshold; on the scan's own grid."""
    truth = truth_mask(probability.shape, record.findings, consensus)
    false = (probability > min(thresholds)) & ~truth & ~record.ignored()
    inside, outside = np.sort(probability[truth]), np.sort(probability[false])
    hits = len(inside) - np.searchsorted(inside, thresholds, "right")
    wrong = len(outside) - np.searchsorted(outside, thresholds, "right")
    return np.stack([hits, wrong, len(inside) - hits], 1).tolist()


def best(scans: list[dict], values: Values) -> tuple[dict[str, float], dict]:
    """(settings, scores) of the best of `values` on scans as `examine` gives them.

    Equal scores are decided by nearness to DEFAULT, and so is all where there is no nodule.
    """
    nodules = [np.reshape(scan["nodules"], (-1, 4)) for scan in scans]
    excluded = [np.reshape(scan["excluded"], (-1, 4)) for scan in scans]
    counts = np.sum([scan["voxels"] for scan in scans], 0).tolist()
    dice = [Counts(*row).dice or 0.0 for row in counts]

    def nearness(names: tuple[str, ...], numbers: tuple[float, ...]) -> list[float]:
        return [-abs(n - DEFAULT[name]) for name, n in zip(names, numbers, strict=True)]

    highest, _, threshold = max(
        (d, nearness(("threshold",), (t,)), t)
        for d, t in zip(dice, values["threshold"], strict=True)
    )
    names = ("candidate_threshold", "min_diameter_mm")
    options = []
    for faint, diameter in itertools.product(*(values[name] for name in names)):
        if faint <= threshold:
            marks = [_marks(scan["regions"], threshold, faint, diameter) for scan in scans]
            cpm = evaluate_marks(marks, nodules, excluded).cpm or 0.0
            options.append((cpm, nearness(names, (faint, diameter)), (faint, diameter)))
    cpm, _, chosen = max(options)
    settings = {"threshold": threshold, **dict(zip(names, chosen, strict=True))}
    size = {"scans": len(scans), "nodules": sum(map(len, nodules))}
    scores = {"dice": highest, "cpm": cpm} if size["nodules"] else {}
    return settings, {"chosen_on": {**size, **scores}}


def _marks(
    regions: dict[str, list], threshold: float, faint: float, min_diameter_mm: float
) -> np.ndarray:
    """One scan's marks (n, 4) at a setting, as `marks_of` gives them."""
    sure, more = (np.reshape(regions[str(level)], (-1, 6)) for level in (threshold, faint))
    more = more[more[:, 5].astype(np.float32) <= threshold]
    rows = np.concatenate([sure, more])
    return rows[rows[:, 4] >= min_diameter_mm, :4]
