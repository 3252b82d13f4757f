"""How well scores tell two kinds apart, and predicted ratings the readers'."""

import numpy as np

MIDDLE = 3  # of LIDC's five ratings of malignancy: indeterminate


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The area under the ROC curve: the share of pairs in order, equal ones counted half (Hanley &
    McNeil 1982, doi 10.1148/radiology.143.1.7063747). None where there is one kind only.

    Both (n,); positive is bool.
    """
    ours, others = scores[positive], np.sort(scores[~positive])
    if not len(ours) or not len(others):
        return None
    below, not_above = (np.searchsorted(others, ours, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(others)))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The mean over the positives of the precision down to each; None where there are none.

    Of equal scores, all count at once.
    """
    if not positive.any():
        return None
    levels, place = np.unique(-scores, return_inverse=True)  # falling scores
    hits = np.bincount(place, positive, len(levels))
    precision = np.cumsum(hits) / np.cumsum(np.bincount(place))
    return float(hits @ precision / hits.sum())


def malignancy_scores(predicted: np.ndarray, ratings: np.ndarray) -> dict[str, float | None]:
    """How near predictions (n,) are to the readers' mean ratings (n,), both 1 to 5.

    malignancy_mae: the mean absolute difference; malignancy_auc: benign against malignant, a mean
    of 3 left out. None is what is not defined: no ratings, or those of one kind only.
    """
    decided = ratings != MIDDLE
    return {
        "malignancy_mae": float(np.abs(predicted - ratings).mean()) if len(ratings) else None,
        "malignancy_auc": auc(predicted[decided], ratings[decided] > MIDDLE),
    }
