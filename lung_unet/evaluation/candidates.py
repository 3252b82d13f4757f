"""Findings of a model: connected regions of high probability."""

import dataclasses

import cc3d
import numpy as np
from scipy.special import expit, logit

from lung_unet.data.volume import Volume, onto_source
from lung_unet.evaluation.froc import MAX_MARKS

NEAR_MM = 10.0  # a nodule at the pleura may lie beside what counts as lung
VERSION = 3  # raised where the same probabilities give other candidates
EPSILON = 2.0**-24  # from 1 to the float32 below it


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """One region. `box` and `mask` are its voxels on the volume's grid; positions are z, y, x."""

    centre_mm: np.ndarray  # (3,) world, weighted by probability
    diameter_mm: float  # of the sphere of equal volume
    probability: float  # that of its voxels' mean logit
    peak: float  # the highest probability in it
    box: tuple[slice, ...]
    mask: np.ndarray


def find_candidates(
    probability: np.ndarray, volume: Volume, threshold: float, min_diameter_mm: float
) -> list[Candidate]:
    """The regions (26-connected) above `threshold`, of some size, most probable first.

    Left out is what lies further than NEAR_MM from the lungs, in bones or on the skin.
    """
    return find_regions(probability, volume, threshold, min_diameter_mm)[0]


def find_regions(
    probability: np.ndarray, volume: Volume, threshold: float, min_diameter_mm: float
) -> tuple[list[Candidate], list[Candidate]]:
    """(candidates, others): as `find_candidates`, and the regions that it leaves out."""
    grid = volume.grid
    reach = np.ceil(NEAR_MM / grid.spacing_mm).astype(int)
    labels = cc3d.connected_components(probability > threshold, connectivity=26)
    statistics = cc3d.statistics(labels)
    volume_mm3 = statistics["voxel_counts"] * np.prod(grid.spacing_mm)
    diameters = 2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    near: list[Candidate] = []
    far: list[Candidate] = []
    for label in 1 + np.flatnonzero(diameters[1:] >= min_diameter_mm):
        box = statistics["bounding_boxes"][label]
        mask = labels[box] == label
        values = probability[box][mask]
        middle = np.average(np.argwhere(mask), 0, values) + [s.start for s in box]
        (near if volume.lungs[grown(box, reach)].any() else far).append(
            Candidate(
                grid.to_world(middle),
                float(diameters[label]),
                _mean_by_logit(values),
                float(values.max()),
                box,
                mask,
            )
        )
    for candidates in (near, far):
        candidates.sort(key=lambda c: -c.probability)
    return near, far


def _mean_by_logit(probability: np.ndarray) -> float:
    """The probability of the mean logit; between the lowest and the highest, so beyond a threshold
    that all are beyond."""
    p = np.clip(probability.astype(np.float64), EPSILON, 1 - EPSILON)
    return float(np.clip(expit(logit(p).mean()), probability.min(), probability.max()))


def marks_of(sure: list[Candidate], faint: list[Candidate], threshold: float) -> list[Candidate]:
    """What FROC is given: the candidates found above `threshold`, and, so that its curve goes on
    beyond them, those found above a lower one that nowhere exceed it.

    Left out are those that cannot be among a scan's MAX_MARKS.
    """
    marks = [*sure, *(c for c in faint if np.float32(c.peak) <= threshold)]
    scores = sorted((c.probability for c in marks), reverse=True)
    lowest = scores[MAX_MARKS] if len(scores) > MAX_MARKS else 0.0
    return [c for c in marks if c.probability >= lowest]  # ties with the first one over it decide


def grown(box: tuple[slice, ...], reach: np.ndarray) -> tuple[slice, ...]:
    """A box with `reach` (3,) voxels more on each side, as far as the array goes."""
    return tuple(
        slice(max(0, s.start - int(n)), s.stop + int(n)) for s, n in zip(box, reach, strict=True)
    )


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

    A surface lies where the probability crosses the threshold.
    """
    # What is not above the threshold stays: a region cut out of its surroundings would shrink.
    dropped = (probability > threshold) & ~mask_of(candidates, probability.shape)
    low, box = onto_source(np.where(dropped, 0, probability), volume.grid, volume.source)
    own = np.zeros(volume.source.shape, bool)
    own[tuple(slice(l, l + n) for l, n in zip(low, box.shape, strict=True))] = box > threshold
    return own
