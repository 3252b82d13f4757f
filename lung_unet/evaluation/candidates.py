"""Findings of a model: connected regions of high probability."""

import dataclasses

import cc3d
import numpy as np

from lung_unet.data.scan import Grid


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """One region. `box` and `mask` are its voxels on the volume's grid; positions are z, y, x."""

    centre_mm: np.ndarray  # (3,) world, weighted by probability
    diameter_mm: float  # of the sphere of equal volume
    probability: float  # the highest in it
    box: tuple[slice, ...]
    mask: np.ndarray


def find_candidates(
    probability: np.ndarray, grid: Grid, threshold: float, min_diameter_mm: float
) -> list[Candidate]:
    """The regions (26-connected) above `threshold`, of some size, most probable first."""
    labels, count = cc3d.connected_components(
        probability > threshold, connectivity=26, return_N=True
    )
    statistics = cc3d.statistics(labels)
    voxel_mm3 = float(np.prod(grid.spacing_mm))
    candidates = []
    for label in range(1, count + 1):
        diameter = 2 * (3 * statistics["voxel_counts"][label] * voxel_mm3 / (4 * np.pi)) ** (1 / 3)
        if diameter < min_diameter_mm:
            continue
        box = statistics["bounding_boxes"][label]
        mask = labels[box] == label
        values = probability[box] * mask
        at = np.argwhere(mask)
        middle = np.average(at, 0, values[mask]) + [s.start for s in box]
        candidates.append(
            Candidate(grid.to_world(middle), float(diameter), float(values.max()), box, mask)
        )
    return sorted(candidates, key=lambda c: -c.probability)


def mask_of(candidates: list[Candidate], shape: tuple[int, ...]) -> np.ndarray:
    """bool (z, y, x): the voxels of all candidates."""
    mask = np.zeros(shape, bool)
    for candidate in candidates:
        mask[candidate.box] |= candidate.mask
    return mask
