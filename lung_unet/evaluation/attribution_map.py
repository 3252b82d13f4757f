"""What the classifier looked at: three planes of a candidate, coloured by each voxel's share."""

import numpy as np
from matplotlib.colors import to_rgb
from scipy import ndimage

from lung_unet.evaluation.overlay import PANEL, PLANES, WINDOW_HU, plane
from lung_unet.evaluation.panels import as_png

FOR, AGAINST = "#ff8c1a", "#4aa8ff"  # apart in every common colour blindness
SMOOTH = 1.0  # voxels: single gradients are noisy
STRONGEST = 99.8  # percentile that is drawn in the deepest colour
DEEPEST = 0.75  # what lies below is still seen


def draw_attribution(hu: np.ndarray, attribution: np.ndarray, large: bool = False) -> bytes:
    """A PNG of the axial, coronal and sagittal plane through the middle, as overlay.py turns them.

    Both are (z, y, x) of equal spacing. The lung window in grey gives way to orange where voxels
    speak for a nodule and to blue where they speak against it. A pixel is a voxel, which a browser
    scales, or with `large` the planes are as large as overlay.py's.
    """
    low, high = WINDOW_HU
    smooth = ndimage.gaussian_filter(attribution, SMOOTH)
    strength = np.percentile(np.abs(smooth), STRONGEST)
    share = np.clip(smooth / strength, -1, 1) if strength > 0 else np.zeros_like(smooth)
    middle = tuple(n // 2 for n in hu.shape)
    zoom = max(1, PANEL // max(hu.shape)) if large else 1
    panels = []
    for axis in range(len(PLANES)):
        grey, part = (
            ndimage.zoom(plane(volume, axis, middle), zoom, order=1)[..., None]
            for volume in (np.clip((hu - float(low)) / (high - low), 0, 1), DEEPEST * share)
        )
        colour = np.where(part > 0, to_rgb(FOR), to_rgb(AGAINST))
        panels.append(grey * (1 - np.abs(part)) + colour * np.abs(part))
    return as_png(panels)
