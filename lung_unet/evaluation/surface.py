"""Distances between the surfaces of two masks: Hausdorff distance and surface Dice, in mm.

A surface is the voxels of a mask that share a face with a voxel outside it; what lies beyond the
array is outside. Distances are between the centres of voxels. These are MONAI's conventions
(`compute_hausdorff_distance`, `compute_surface_dice` without subvoxels), and so are the numbers.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

PERCENTILE = 95


@dataclasses.dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """From each surface voxel of two masks to the other's surface, in mm, float32.

    Both are empty where one of the masks is; `surfaces` counts the surface voxels of both.
    """

    there: np.ndarray
    back: np.ndarray
    surfaces: int

    def hd95_mm(self) -> float | None:
        """The larger of both directions' 95th percentiles; None where a mask is empty.

        Huttenlocher et al., IEEE Trans. Pattern Anal. Mach. Intell. 15(9):850-863, 1993.
        """
        if not self.there.size:
            return None
        return float(max(np.percentile(d, PERCENTILE) for d in (self.there, self.back)))

    def surface_dice(self, tolerance_mm: float) -> float | None:
        """The share of both surfaces that lies within the tolerance of the other one.

        0 where one mask is empty, None where both are. Nikolov et al., J. Med. Internet Res.
        23(7):e26151, 2021.
        """
        if not self.surfaces:
            return None
        near = sum(int(np.count_nonzero(d <= tolerance_mm)) for d in (self.there, self.back))
        return near / self.surfaces


def surface_distances(a: np.ndarray, b: np.ndarray, spacing_mm: ArrayLike) -> SurfaceDistances:
    """Distances between the surfaces of two bool masks (z, y, x) of one shape and spacing.

    By k-d trees of the surfaces alone, so that the time depends on the masks, not on the array.
    """
    first, second = (surface(mask) * np.asarray(spacing_mm) for mask in (a, b))
    surfaces = len(first) + len(second)
    if not len(first) or not len(second):
        nothing = np.zeros(0, np.float32)
        return SurfaceDistances(nothing, nothing, surfaces)
    return SurfaceDistances(_nearest(first, second), _nearest(second, first), surfaces)


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels (n, 3) int, z, y, x, of a bool mask that share a face with what is outside it."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            inner &= padded[tuple(side if a == axis else slice(1, -1) for a in range(3))]
    return np.argwhere(mask & ~inner)


def _nearest(points_mm: np.ndarray, others_mm: np.ndarray) -> np.ndarray:
    distances, _ = cKDTree(others_mm).query(points_mm)
    return distances.astype(np.float32)  # so that what is a tolerance away is within it
