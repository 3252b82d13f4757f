"""The search for an operating point: what is needed of each scan, and the best of all scans."""

import itertools

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from lung_unet.data.labels import agreement
from lung_unet.data.records import ScanRecord
from lung_unet.data.volume import Volume, onto_source
from lung_unet.evaluation.candidates import Candidate, find_candidates
from lung_unet.evaluation.ensemble import Predict
from lung_unet.evaluation.froc import evaluate_marks, finding_rows
from lung_unet.evaluation.voxel import Counts, truth_mask

Values = dict[str, tuple[float, ...]]
GRID: Values = {
    "threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "finding_threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
    "candidate_threshold": (0.02, 0.05, 0.1, 0.2, 0.3),
    "min_diameter_mm": (0.0, 2.0, 3.0),  # not above 3: the smallest nodule that LUNA16 counts
}
DEFAULT = {
    "threshold": 0.5,
    "finding_threshold": 0.5,
    "candidate_threshold": 0.1,
    "min_diameter_mm": 3.0,
}


def examine(predictor: Predict, config: ConfigDict, record: ScanRecord, values: Values) -> dict:
    """What the search needs of one scan, JSON-able.

    voxels (thresholds, finding thresholds, 3) of `overlap`; regions: at each level that may be
    threshold or candidate_threshold, every region's z, y, x, probability, diameter and peak;
    nodules and excluded findings as FROC takes them.
    """
    volume = record.volume
    probability = predictor(volume.hu, volume.lungs)
    smallest = min(values["min_diameter_mm"])
    found = {
        level: find_candidates(probability, volume, level, smallest)
        for level in sorted({*values["threshold"], *values["candidate_threshold"]})
    }
    nodules, excluded = finding_rows(record.findings)
    return {
        "voxels": overlap(probability, found, record, agreement(config.data), values),
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
    probability: np.ndarray,
    found: dict[float, list[Candidate]],
    record: ScanRecord,
    readers: int,
    values: Values,
) -> list[list[list[int]]]:
    """Voxels (hit, false_positive, missed) of the mask at each threshold, for each finding
    threshold; on the scan's own grid.

    `found` are the regions at each threshold. A voxel belongs to the most probable one beside it.
    """
    limits = np.array(values["finding_threshold"])
    regions = {threshold: found[threshold] for threshold in values["threshold"]}
    voxels, total = region_voxels(probability, regions, record, readers)
    counts = []
    for threshold, candidates in regions.items():
        kept = np.array([c.probability for c in candidates]) > limits[:, None]
        hit, wrong = (kept @ voxels[threshold]).T
        counts.append(np.stack([hit, wrong, total - hit], 1).tolist())
    return counts


def region_voxels(
    probability: np.ndarray,
    regions: dict[float, list[Candidate]],
    record: ScanRecord,
    readers: int,
) -> tuple[dict[float, np.ndarray], int]:
    """({threshold: (regions, 2)}, total): the mask's voxels that belong to each of the regions at a
    threshold, in nodules and elsewhere, and those of all nodules; on the scan's own grid.
    """
    volume = record.volume
    truth = truth_mask(volume.source.shape, record.findings, readers)
    low, box = onto_source(probability, volume.grid, volume.source)
    covered = tuple(slice(l, l + n) for l, n in zip(low, box.shape, strict=True))
    nodule, counted = truth[covered], ~record.ignored()[covered]
    voxels = {}
    for threshold, candidates in regions.items():
        numbers = onto_source(
            region_numbers(candidates, volume), volume.grid, volume.source, nearest=True
        )[1]
        mask = (box > threshold) & counted
        sides = (numbers[mask & side] for side in (nodule, ~nodule))
        counts = [np.bincount(side, minlength=len(candidates) + 1)[1:] for side in sides]
        voxels[threshold] = np.stack(counts, 1)
    return voxels, int(np.count_nonzero(truth))


def region_numbers(candidates: list[Candidate], volume: Volume) -> np.ndarray:
    """int32 (z, y, x) of the volume: in and beside each region its number, from 1; 0 elsewhere.

    Beside is as far as a voxel of the scan's grid can be from the region that it is made of.
    """
    step = volume.source.to_lps()[0].spacing_mm / volume.grid.spacing_mm
    reach = np.ceil(np.maximum(1, step)).astype(int)
    numbers = np.zeros(volume.grid.shape, np.int32)
    for number, candidate in reversed(list(enumerate(candidates, 1))):  # the most probable last
        first, last = np.array([(s.start, s.stop) for s in candidate.box]).T
        low, high = np.maximum(0, first - reach), np.minimum(numbers.shape, last + reach)
        mask = np.pad(candidate.mask, np.stack([first - low, high - last], 1))
        near = ndimage.maximum_filter(mask, tuple(2 * reach + 1))
        numbers[tuple(map(slice, low, high))][near] = number
    return numbers


def best(scans: list[dict], values: Values) -> tuple[dict[str, float], dict]:
    """(settings, scores) of the best of `values` on scans as `examine` gives them.

    Equal scores are decided by nearness to DEFAULT, and so is all where there is no nodule.
    """
    nodules = [np.reshape(scan["nodules"], (-1, 4)) for scan in scans]
    excluded = [np.reshape(scan["excluded"], (-1, 4)) for scan in scans]
    counts = np.sum([scan["voxels"] for scan in scans], 0).tolist()

    def nearness(names: tuple[str, ...], numbers: tuple[float, ...]) -> list[float]:
        return [-abs(n - DEFAULT[name]) for name, n in zip(names, numbers, strict=True)]

    names: tuple[str, ...] = ("threshold", "finding_threshold")
    pairs = [
        (Counts(*row).dice or 0.0, nearness(names, (t, f)), (t, f))
        for t, rows in zip(values["threshold"], counts, strict=True)
        for f, row in zip(values["finding_threshold"], rows, strict=True)
        if f >= t
    ]
    highest, _, mask = max(pairs)
    settings = dict(zip(names, mask, strict=True))
    threshold = settings["threshold"]
    names = ("candidate_threshold", "min_diameter_mm")
    options = []
    for faint, diameter in itertools.product(*(values[name] for name in names)):
        if faint <= threshold:
            marks = [_marks(scan["regions"], threshold, faint, diameter) for scan in scans]
            cpm = evaluate_marks(marks, nodules, excluded).cpm or 0.0
            options.append((cpm, nearness(names, (faint, diameter)), (faint, diameter)))
    cpm, _, chosen = max(options)
    settings |= zip(names, chosen, strict=True)
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
