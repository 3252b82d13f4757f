"""Panels side by side as a PNG, as far apart as the planes of overlay.py."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imsave

from lung_unet.evaluation.overlay import BACKGROUND, GAP, PANEL


def as_png(panels: Sequence[np.ndarray]) -> bytes:
    """A PNG of panels of equal height, each (rows, columns, 3) in 0..1, from left to right."""
    height = len(panels[0])
    gap = np.broadcast_to(to_rgb(BACKGROUND), (height, max(1, round(height * GAP / PANEL)), 3))
    first, *others = panels
    picture = np.concatenate([first, *(part for p in others for part in (gap, p))], axis=1)
    buffer = io.BytesIO()
    imsave(buffer, np.rint(255 * picture).astype(np.uint8), format="png")
    return buffer.getvalue()
