"""Whether a voxel's probability is one: of those given 0.7, are seven in ten nodule?

What is binned are the voxels of the network's grid that no finding makes ignored and that are
given MIN_PROBABILITY or more. The many below it are nearly all background, and would hide the rest.
"""

import numpy as np

MIN_PROBABILITY = 0.01
BINS = 10  # of equal width


def calibration_bins(probability: np.ndarray, truth: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """(3, BINS): voxels of each bin, the sum of their probabilities, and those that are nodule.

    Arguments are (z, y, x) of one shape, `truth` and `ignore` bool. Bins of several scans add up.
    """
    counted = (probability >= MIN_PROBABILITY) & ~ignore
    values, true = probability[counted], truth[counted]
    bins = np.minimum((values * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(bins, weights, BINS) for weights in (None, values, true)])


def expected_calibration_error(bins: np.ndarray) -> float | None:
    """Mean distance of probability and share of nodule, each bin weighted by its voxels.

    Guo et al., "On calibration of modern neural networks", ICML 2017. None without voxels.
    """
    voxels, probability, true = bins
    return float(np.abs(probability - true).sum() / voxels.sum()) if voxels.any() else None
