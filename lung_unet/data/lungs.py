"""Lungs of a chest CT where no mask came with it.

Air that is not outside the body, the two largest parts, closed so that vessels and nodules at the
pleura belong to them: the classical scheme of Hu et al. 2001 (IEEE TMI 20(6)), on a coarse grid
since it only crops, draws background and skips windows.
"""

import cc3d
import numpy as np
from scipy import ndimage

from lung_unet.data.resample import axis_weights, resample
from lung_unet.data.scan import Grid

COARSE_MM = 3.0
AIR_BELOW_HU = -400
LEFT, RIGHT = 3, 4  # LUNA16's codes; x grows to the patient's left
MIN_LITRES = 0.3
IN_PLANE = np.pad(ndimage.generate_binary_structure(2, 1)[None], ((1, 1), (0, 0), (0, 0)))


def segment_lungs(hu: np.ndarray, grid: Grid) -> np.ndarray:
    """uint8 (z, y, x): 3 the left lung, 4 the right, 0 elsewhere; all 0 where no lung is found.

    `hu` is int16 (z, y, x) on `grid`, turned in any way.
    """
    lps, axes, flips = grid.to_lps()
    return _segment(hu.transpose(axes)[flips], lps.spacing_mm)[flips].transpose(np.argsort(axes))


def _segment(hu: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    size = np.array(hu.shape)
    coarse_size = np.maximum(1, np.rint(size * spacing_mm / COARSE_MM)).astype(int)
    step = size / coarse_size
    weights = [
        axis_weights(n, m, 0.5 * s - 0.5, s)
        for n, m, s in zip(size, coarse_size, step, strict=True)
    ]
    coarse = resample(hu, tuple(weights))
    air = coarse < AIR_BELOW_HU
    # Slice by slice, since a scan may end in slices of nothing, which would join lungs and outside.
    labels, _ = ndimage.label(air, IN_PLANE)
    sides = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    outside = np.unique(np.concatenate([side.ravel() for side in sides]))
    inner = ndimage.binary_opening(air & ~np.isin(labels, outside))  # parts lungs from airways
    parts, count = cc3d.connected_components(inner, connectivity=6, return_N=True)
    volumes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    litres = volumes * COARSE_MM**3 * 1e-6
    largest = [i for i in np.argsort(litres)[::-1][:2] if litres[i] > 0.1 * litres.max(initial=0)]
    if litres[largest].sum() < MIN_LITRES:
        return np.zeros(hu.shape, np.uint8)
    lung = np.isin(parts, np.array(largest) + 1)
    radius = 3  # closes 18 mm gaps at most
    padded = np.pad(lung, radius)
    ball = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 1), radius)
    closed = ndimage.binary_closing(padded, ball)[radius:-radius, radius:-radius, radius:-radius]
    closed = np.stack([ndimage.binary_fill_holes(plane) for plane in closed])
    columns = np.flatnonzero(closed.any((0, 1)))
    left = np.arange(closed.shape[2]) > columns.mean()
    code = (closed * np.where(left, LEFT, RIGHT)).astype(np.uint8)
    nearest = [
        np.minimum(((np.arange(n) + 0.5) / s).astype(int), m - 1)
        for n, m, s in zip(size, coarse_size, step, strict=True)
    ]
    return code[np.ix_(*nearest)]
