"""Where a model is unsure: the planes of a case, coloured by the entropy of the probability."""

import numpy as np
from matplotlib.colors import to_rgb

from lung_unet.evaluation.overlay import PLANES, WINDOW_HU, Case, plane
from lung_unet.evaluation.panels import as_png
from lung_unet.evaluation.uncertainty import entropy

UNSURE = "#ffb000"  # amber: neither the green nor the magenta of the outlines


def draw_entropy(case: Case, probability: np.ndarray) -> bytes:
    """A PNG of the three planes that `draw` shows of a case, side by side as there.

    `probability` is a crop as those of the case. The lung window in grey gives way to amber by the
    entropy: none at 0 bit, all at 1. A pixel is a voxel, or the nearest where spacings differ, so
    that the picture is small; a page scales it to the width of the other.
    """
    side = round(max(case.hu.shape * case.spacing_mm) / min(case.spacing_mm))
    low, high = WINDOW_HU
    amber = np.array(to_rgb(UNSURE))
    panels = []
    for axis in range(len(PLANES)):
        grey = np.clip((plane(case.hu, axis, case.centre) - low) / (high - low), 0, 1)[..., None]
        unsure = entropy(plane(probability, axis, case.centre))[..., None]
        panel = grey * (1 - unsure) + amber * unsure
        rows, columns = (np.arange(side) * n // side for n in panel.shape[:2])
        panels.append(panel[rows[:, None], columns])
    return as_png(panels)
