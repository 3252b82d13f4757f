"""How sure a segmentation is of its boundary.

The entropy of a voxel's probability p is H(p) = −p log₂ p − (1 − p) log₂(1 − p): 0 bit where the
model is sure, 1 where it would toss a coin. A region's `boundary_entropy` is the mean of H over its
shell, the voxels of the network's grid on either side of its contour: those of the region that
share a face with a voxel outside, and those outside that share one with the region. It is low where
the probability falls from 1 to 0 within two voxels, high where it fades. Its `boundary_spread` is
the standard deviation of p between views (mirrors, members of an ensemble) there, as the root of
the mean variance; it is missing where there is one view.

Predictive entropy and disagreement as in Jungo, Balsiger and Reyes, "Analyzing the quality and
challenges of uncertainty estimations for brain tumor segmentation", Frontiers in Neuroscience
14:282, 2020.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from lung_unet.data.volume import Volume
from lung_unet.evaluation.candidates import Candidate, grown
from lung_unet.evaluation.voxel import NoduleScore


def entropy(probability: np.ndarray) -> np.ndarray:
    """H of each probability, in bits, float32."""
    tiny = np.finfo(np.float32).eps
    p = np.clip(probability, tiny, 1 - tiny)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def shell(region: Candidate, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
    """(box, bool mask in it) of the voxels on either side of a region's contour, in a volume.

    What lies beyond the volume has no voxels.
    """
    around = tuple(
        slice(s.start, min(s.stop, n))
        for s, n in zip(grown(region.box, np.ones(3)), shape, strict=True)
    )
    mask = np.zeros([s.stop - s.start for s in around], bool)
    inside = zip(region.box, around, strict=True)
    mask[tuple(slice(b.start - a.start, b.stop - a.start) for b, a in inside)] = region.mask
    inner = ndimage.binary_erosion(mask, border_value=1)
    return around, ndimage.binary_dilation(mask) & ~inner


def boundary(
    regions: Sequence[Candidate], probability: np.ndarray, variance: np.ndarray | None
) -> dict[str, float | None]:
    """boundary_entropy and, with a variance, boundary_spread of a finding's regions.

    Volumes are (z, y, x) of the network's grid. None where there is no region.
    """
    shells = [shell(region, probability.shape) for region in regions]

    def mean(volume: np.ndarray, of) -> float | None:
        values = [of(volume[box][mask]) for box, mask in shells]
        return float(np.concatenate(values).mean()) if values else None

    found = {"boundary_entropy": mean(probability, entropy)}
    if variance is not None:
        between = mean(variance, np.asarray)
        found["boundary_spread"] = None if between is None else max(between, 0.0) ** 0.5
    return found


def regions_of(
    nodule: NoduleScore, candidates: Sequence[Candidate], volume: Volume
) -> list[Candidate]:
    """The candidates that a nodule's voxels were found by."""
    own = np.argwhere(nodule.truth & nodule.prediction) + [s.start for s in nodule.box]
    voxels = np.rint(volume.grid.to_voxel(volume.source.to_world(own))).astype(int)
    met = []
    for candidate in candidates:
        low, high = np.array([(s.start, s.stop) for s in candidate.box]).T
        near = voxels[((voxels >= low) & (voxels < high)).all(1)] - low
        if candidate.mask[tuple(near.T)].any():
            met.append(candidate)
    return met
