"""Several predictors as one: the mean of what each gives a voxel, and how far they are apart.

Each member cuts its own windows and mirrors and windows intensities as it was trained to, so that
members may be of any network; only the grid of the volume is theirs in common. Where their windows
are the same, the mean of volumes is the mean window by window.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lung_unet.evaluation.sliding_window import Predictor

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Ensemble:
    """Callable as each of its members: the mean of their probabilities.

    One member's volumes are in memory at a time, beside the sums.
    """

    def __init__(self, members: Sequence[Predictor]):
        self.members = members

    def __call__(self, hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
        return self.with_variance(hu, lungs)[0]

    def with_variance(self, hu: np.ndarray, lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(probability, its variance over all views: between members, and within by mirrors)."""
        mean, squares = np.zeros(hu.shape, np.float32), np.zeros(hu.shape, np.float32)
        for number, member in enumerate(self.members, 1):
            probability, within = member.with_variance(hu, lungs)
            # Welford's update: a difference of large sums would lose a small variance.
            change = probability - mean
            mean += change / number
            squares += change * np.subtract(probability, mean, out=probability)
            if within is not None:
                squares += within
        return mean, np.divide(squares, len(self.members), out=squares)


def with_variance(
    predict: Predict, hu: np.ndarray, lungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """(probability, its variance between views), the latter None where `predict` has one view."""
    if isinstance(predict, Predictor | Ensemble):
        return predict.with_variance(hu, lungs)
    return predict(hu, lungs), None
