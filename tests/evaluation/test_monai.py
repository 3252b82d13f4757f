"""Equal to MONAI's metrics on random masks: to values it gave, and to MONAI where it is there."""

import warnings

import numpy as np
import pytest

from lung_unet.evaluation.surface import surface_distances
from lung_unet.evaluation.voxel import count

NAMES = ("dice", "iou", "precision", "recall", "hd95_mm", "nsd_1mm", "nsd_2mm")
STORED = {  # of MONAI 1.6.1, by seed
    0: [0.50583655, 0.33854166, 0.46762589, 0.55084747, 4.0599999, 0.5479452, 0.55251139],
    1: [0.41048035, 0.25824177, 0.51648355, 0.34057972, 4.71173, 0.28155339, 0.58737862],
    2: [0.51320755, 0.34517765, 0.7157895, 0.40000001, 4.8349147, 0.58798283, 0.78111589],
    3: [0.5272727, 0.35802469, 0.42335767, 0.6987952, 1.7335801, 0.71859294, 0.99497485],
    4: [0.54767728, 0.37710437, 0.63999999, 0.47863248, 3.0269623, 0.66756755, 0.94594592],
    5: [0.38356164, 0.23728813, 0.27317074, 0.64367819, 2.2655022, 0.54940712, 0.90909094],
}


def random_masks(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(prediction, truth, spacing_mm): two boxes that overlap, ragged, and a few stray voxels."""
    rng = np.random.default_rng(seed)
    shape = 6 + (8 * rng.random(3)).astype(int)
    spacing_mm = np.round(0.4 + 2 * rng.random(3), 2)
    masks = []
    for _ in range(2):
        mask = rng.random(shape) < 0.01
        low = (2 * rng.random(3)).astype(int)
        box = tuple(slice(l, l + 4 + int(4 * rng.random())) for l in low)
        mask[box] |= rng.random(mask[box].shape) < 0.9
        masks.append(mask)
    return masks[0], masks[1], spacing_mm


def our_metrics(prediction, truth, spacing_mm):
    distances = surface_distances(prediction, truth, spacing_mm)
    found = count(prediction, truth).metrics() | {
        "hd95_mm": distances.hd95_mm(),
        "nsd_1mm": distances.surface_dice(1.0),
        "nsd_2mm": distances.surface_dice(2.0),
    }
    return [found[name] for name in NAMES]


def monai_metrics(prediction, truth, spacing_mm):
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    pair = [torch.from_numpy(m)[None, None].float() for m in (prediction, truth)]
    kwargs = {"include_background": True, "spacing": spacing_mm.tolist()}
    confusion = metrics.get_confusion_matrix(*pair, include_background=True)
    values = [
        metrics.compute_dice(*pair),
        metrics.compute_iou(*pair),
        metrics.compute_confusion_matrix_metric("precision", confusion),
        metrics.compute_confusion_matrix_metric("recall", confusion),
        metrics.compute_hausdorff_distance(*pair, percentile=95, **kwargs),
        metrics.compute_surface_dice(*pair, [1.0], **kwargs),
        metrics.compute_surface_dice(*pair, [2.0], **kwargs),
    ]
    return [float(value) for value in values]


@pytest.mark.parametrize("seed", STORED)
def test_equal_to_the_values_of_monai(seed):
    assert our_metrics(*random_masks(seed)) == pytest.approx(STORED[seed], rel=1e-6)


def test_equal_to_monai_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(60):
            masks = random_masks(seed)
            assert our_metrics(*masks) == pytest.approx(monai_metrics(*masks), rel=1e-6)
