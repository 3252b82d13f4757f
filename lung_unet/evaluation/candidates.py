"""Findings of a model: connected regions of high probability."""

import dataclasses

import cc3d
import numpy as np

from lung_unet.data.scan import Grid
from lung_unet.data.volume import Volume, onto_source
from lung_unet.evaluation.froc import MAX_MARKS


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
    labels = cc3d.connected_components(probability > threshold, connectivity=26)
    statistics = cc3d.statistics(labels)
    volume_mm3 = statistics["voxel_counts"] * np.prod(grid.spacing_mm)
    diameters = 2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    candidates = []
    for label in 1 + np.flatnonzero(diameters[1:] >= min_diameter_mm):
        box = statistics["bounding_boxes"][label]
        mask = labels[box] == label
        values = probability[box][mask]
        middle = np.average(np.argwhere(mask), 0, values) + [s.start for s in box]
        candidates.append(
            Candidate(
                grid.to_world(middle), float(diameters[label]), float(values.max()), box, mask
            )
        )
    return sorted(candidates, key=lambda c: -c.probability)


def marks_of(sure: list[Candidate], faint: list[Candidate], threshold: float) -> list[Candidate]:
    """What FROC is given: the candidates found above `threshold`, and, so that its curve goes on
    beyond them, those found above a lower one that nowhere exceed it.

    Left out are those that cannot be among a scan's MAX_MARKS.
    """
    marks = [*sure, *(c for c in faint if np.float32(c.probability) <= threshold)]
    scores = sorted((c.probability for c in marks), reverse=True)
    lowest = scores[MAX_MARKS] if len(scores) > MAX_MARKS else 0.0
    return [c for c in marks if c.probability >= lowest]  # ties with the first one over it decide


def mask_of(candidates: list[Candidate], shape: tuple[int, ...]) -> np.ndarray:
    """bool (z, y, x): the voxels of all candidates."""
    mask = np.zeros(shape, bool)
    for candidate in candidates:
        mask[candidate.box] |= candidate.mask
    return mask


def mask_on_source(
    probability: np.ndarray, candidates: list[Candidate], volume: Volume, threshold: float
) -> np.ndarray:
    """bool (z, y, x) on the scan's own grid: the candidates' voxels, by their probability there.

    Regions that are no candidates are taken out of `probability`; around candidates it stays, so
    that a surface lies where the probability crosses the threshold.
    """
    dropped = (probability > threshold) & ~mask_of(candidates, probability.shape)
    low, box = onto_source(np.where(dropped, 0, probability), volume.grid, volume.source)
    mask = np.zeros(volume.source.shape, bool)
    mask[tuple(slice(l, l + n) for l, n in zip(low, box.shape, strict=True))] = box > threshold
    return mask
