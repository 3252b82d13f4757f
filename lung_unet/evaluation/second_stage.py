"""The second stage beside the segmentation: how their scores become one, and what that brings.

A mark's score is their logarithmic opinion pool (Genest & Zidek 1986, doi 10.1214/ss/1177013825):
the logit is the mean of both logits, the classifier's with a weight of 0 to 1, so that either alone
is a choice too. The weight is chosen on the validation split by CPM and kept, with the classifier's
checkpoint and the segmentation that it was chosen beside, in second_stage.json of the classifier's
workdir; ties go to one half. So is the score that a region of the mask must exceed to be a finding,
by the Dice of all scans' voxels.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit

from lung_unet.evaluation.froc import (
    COARSE,
    FPS_PER_SCAN,
    Froc,
    evaluate_marks,
    within,
)
from lung_unet.evaluation.summary import RESAMPLES, bounds, clusters, resampled
from lung_unet.train.ranking import auc, average_precision, malignancy_scores

WEIGHTS = tuple(np.linspace(0, 1, 11).round(1).tolist())
CERTAIN = 1e-7  # never nearer to 0 or 1, so that one stage cannot silence the other


class Opinion(NamedTuple):
    """What the second stage says of one finding."""

    nodule_probability: float
    malignancy: float | None  # 1 to 5; None where it was trained without ratings
    score: float  # of both stages


def pooled(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """The score of marks with the segmentation's probability, NaN where there is none, and the
    classifier's."""
    first, second = (np.clip(np.asarray(p, float), CERTAIN, 1 - CERTAIN) for p in (first, second))
    both = expit((1 - weight) * logit(first) + weight * logit(second))
    return np.where(np.isnan(first), second, both)


def rows_of(scans: list[dict], weight: float | None) -> list[np.ndarray]:
    """Each scan's marks as FROC takes them, scored by both stages; without a weight by the first.

    A scan is {"marks", "nodules", "excluded", "opinions"}; marks are rows z, y, x and the
    segmentation's probability (or None), opinions (probability, malignancy) of each.
    """
    rows = []
    for scan in scans:
        marks = np.array(scan["marks"], float).reshape(-1, 4)
        second = np.array(scan["opinions"], float).reshape(-1, 2)[:, 0]
        if weight is not None:
            marks[:, 3] = pooled(marks[:, 3], second, weight)
        rows.append(marks)
    return rows


def froc_at(scans: list[dict], weight: float | None, bootstrap: int = 0) -> Froc:
    """The FROC of scans, given as to `rows_of`, at a weight."""
    nodules, excluded = (
        [np.reshape(scan[kind], (-1, 4)) for scan in scans] for kind in ("nodules", "excluded")
    )
    own = clusters(scans, resampled(scans))
    return evaluate_marks(rows_of(scans, weight), nodules, excluded, bootstrap, clusters=own)


def best_weight(scans: list[dict]) -> tuple[float, float | None]:
    """(weight, CPM) of the highest CPM; without nodules, or at equal ones, nearest to one half."""
    options = [(froc_at(scans, weight).cpm, weight) for weight in WEIGHTS]
    cpm, weight = max(options, key=lambda option: (option[0] or 0.0, -abs(option[1] - 0.5)))
    return weight, cpm


def best_finding_threshold(scans: list[dict], weight: float) -> float | None:
    """The score of both stages above which the regions of the mask have together the highest Dice
    of all scans' voxels; None where there is no such region or no nodule.

    A scan is as `rows_of` takes it, with the "voxels" of its marks and its "truth", as
    collect.py:Collector gives them. The threshold lies midway to the best region left out, by
    logits; where none is, it is 0.
    """
    rows = [
        (score, *voxels)
        for scan, marks in zip(scans, rows_of(scans, weight), strict=True)
        for score, voxels in zip(marks[:, 3].tolist(), scan["voxels"], strict=True)
        if voxels is not None
    ]
    truth = sum(scan["truth"] or 0 for scan in scans)
    if not rows or not truth:
        return None
    scores, hit, wrong = np.array(sorted(rows, reverse=True)).T
    hit, wrong = hit.cumsum(), wrong.cumsum()
    dice = 2 * hit / (hit + wrong + truth)
    following = np.append(scores[1:], 0.0)
    last = int(np.argmax(np.where(scores > following, dice, -1.0)))
    if last == len(scores) - 1:
        return 0.0
    return float(expit(logit(scores[[last, last + 1]]).mean()))


def measure(scans: list[dict], weight: float) -> tuple[dict[str, Any], Froc, Froc | None]:
    """(what metrics.json holds of the second stage, its FROC, that of the segmentation alone).

    cpm, sensitivity: of both stages; first_stage: those of the segmentation's score, where marks
    have one; cpm_gain: the difference, its interval over the same resamples; auc,
    average_precision: of the classifier alone, marks on nodules against marks on nothing. None is
    what is not defined, as the first stage's FROC where a list gave the marks.
    """
    bootstrap = RESAMPLES if len(scans) > 1 else 0
    froc = froc_at(scans, weight, bootstrap)
    scored = all(mark[3] is not None for scan in scans for mark in scan["marks"])
    first = froc_at(scans, None, bootstrap) if scored else None
    probability, on_nodule = _told_apart(scans)
    predicted, ratings = _rated(scans)
    gain = None
    if first is not None and froc.cpm is not None and first.cpm is not None:
        gain = froc.cpm - first.cpm
    both = bounds(froc.resamples[:, COARSE].mean(1))
    return {
        "weight": weight,
        "cpm": froc.cpm,
        "sensitivity": _by_rate(froc),
        "first_stage": first and {"cpm": first.cpm, "sensitivity": _by_rate(first)},
        "cpm_gain": gain,
        "auc": auc(probability, on_nodule),
        "average_precision": average_precision(probability, on_nodule),
        **malignancy_scores(predicted, ratings),
        "rated": len(ratings),
        "marks": sum(len(scan["marks"]) for scan in scans),
        "intervals": {
            "cpm": both,
            "cpm_gain": None if gain is None or first is None else bounds(
                (froc.resamples - first.resamples)[:, COARSE].mean(1)
            ),
        },
    }, froc, first  # fmt: skip


def _by_rate(froc: Froc) -> dict[str, float | None]:
    return {f"{r:g}": v for r, v in zip(FPS_PER_SCAN, froc.sensitivity, strict=True)}


def _told_apart(scans: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The classifier's probability of marks, and whether they are on a nodule; without those on
    findings that do not count."""
    probability, on_nodule = [np.zeros(0)], [np.zeros(0, bool)]
    for scan in scans:
        marks = np.array(scan["marks"], float).reshape(-1, 4)
        nodule, excluded = (
            np.any(within(marks, np.reshape(scan[kind], (-1, 4))), axis=1)
            for kind in ("nodules", "excluded")
        )
        counted = np.flatnonzero(nodule | ~excluded)
        probability.append(np.array(scan["opinions"], float).reshape(-1, 2)[counted, 0])
        on_nodule.append(nodule[counted])
    return np.concatenate(probability), np.concatenate(on_nodule)


def _rated(scans: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and the readers' malignancy of the nodules that were found and rated."""
    rows = [row for scan in scans for row in scan["malignancy"]]
    predicted, ratings = np.array(rows, float).reshape(-1, 2).T
    return predicted, ratings
