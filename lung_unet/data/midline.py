"""The left and the right of a patient: the midline, and which lung is which.

Neither is taken from how far the lungs reach: where one of them is opaque, or cut by the field of
view, the middle of what is left lies in the other.
"""

import cc3d
import numpy as np
from scipy import ndimage

from lung_unet.data.body import CROSS, Coarse
from lung_unet.data.scan import Midline

LEFT, RIGHT = 3, 4  # LUNA16's codes; x grows to the patient's left
BONE_ABOVE_HU = 160  # in voxels of 3 mm
SPINE_MM = 14.0  # standard deviation of the blur that finds the spine
MIN_BONE = 0.28  # share of bone in the spine, blurred so; ribs have less
MAX_TILT = np.deg2rad(35)
MAX_APART_MM = 45.0  # of the spine and the middle of the body
LONG = 1.3  # times the width² of a cross-section: its long axis is that of the shoulders
CUT = 0.3  # share of the body's outline that is alike in all slices: the field of view, not skin
FRONT = 0.4  # of the body's depth: the spine of a patient lies behind it
BETWEEN_MM = 25.0  # of mediastinum between the lungs
TOUCHING = 4  # erosions, of a voxel each, that part lungs which touch
PIECE = 0.02  # share of a part from which on what comes off is a part of its own
CROSSING = 0.25  # share of a part beyond the midline from which on it is of both lungs


def find_midline(coarse: Coarse, body: np.ndarray, levels: np.ndarray) -> Midline | None:
    """The patient's midline, in mm from the first corner of the coarse grid.

    `levels` bool (z,) are the slices to look at. It goes through the spine, or, where no spine is
    seen, through the middle of the body, if both its sides are in the field of view. None where
    neither is known, where the two are far apart, or where the body is turned too far.
    """
    share = _share(body, levels)
    y, x = np.nonzero(share > 0.5)
    if not len(x):
        return None
    ends = (share[:, 0] > 0.5).sum(), (share[:, -1] > 0.5).sum()
    at_border = min(x.min(), share.shape[1] - 1 - x.max()) == 0  # as a round field of view is
    whole = max(ends) < 0.2 * (y.max() - y.min() + 1) and not (at_border and _sharp(share) > CUT)
    spine = _spine(coarse, share, levels)
    if not whole and spine is None:
        return None
    tilt = _tilt(y, x) if whole else 0.0
    if tilt is None:
        return None
    left = np.array([0.0, np.sin(tilt), np.cos(tilt)])
    middle = np.array([0.0, y.mean(), (x.min() + x.max()) / 2])
    at = middle if spine is None else spine
    apart_mm = (at - middle) * coarse.spacing_mm @ left
    if whole and abs(apart_mm) > MAX_APART_MM:
        return None
    return Midline((at + 0.5) * coarse.spacing_mm, left)


def spine_in_front(coarse: Coarse, body: np.ndarray, levels: np.ndarray) -> bool:
    """Whether the spine is seen in front, where the sternum belongs: the image is turned over or
    mirrored, and which is left is unknown. `levels` as of `find_midline`."""
    share = _share(body, levels)
    rows = np.flatnonzero((share > 0.5).any(1))
    if not len(rows):
        return False
    bone = _bone(coarse, share, levels)[rows[0] : rows[-1] + 1].max(1)
    front = int(FRONT * len(bone))
    return bool(bone[:front].max(initial=0) >= MIN_BONE > bone[front:].max())


def _share(body: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """(y, x): in which share of the slices a pixel is of the body."""
    return body[levels].mean(0) if levels.any() else np.zeros(body.shape[1:])


def _sharp(share: np.ndarray) -> float:
    """The share of the body's outline beyond which it lies in no slice: skin is not so even."""
    inside = share > 0.5
    edge = inside & ~ndimage.binary_erosion(inside)
    beyond = ndimage.minimum_filter(share, footprint=CROSS[1], mode="constant")
    return float((beyond[edge] < 0.05).mean())


def _tilt(y: np.ndarray, x: np.ndarray) -> float | None:
    """The angle by which the long axis of a cross-section, its pixels at y and x, is rotated.

    0 where no axis is longer; None where the patient is turned further than one who lies askew.
    """
    (yy, xy), (_, xx) = covariance = np.cov(y, x)
    short, long = np.linalg.eigvalsh(covariance)
    tilt = float(0.5 * np.arctan2(2 * xy, xx - yy))
    if abs(tilt) > MAX_TILT:
        return None if long > LONG * short else 0.0
    return tilt if xx > 1.1 * yy else 0.0


def _spine(coarse: Coarse, share: np.ndarray, levels: np.ndarray) -> np.ndarray | None:
    """(0, y, x) of the spine: bone at the same place in most slices; None where none is seen."""
    dense = _bone(coarse, share, levels)
    rows = np.flatnonzero((share > 0.5).any(1))
    dense[: (rows[0] + rows[-1]) // 2] = 0  # there lie heart and sternum
    y, x = np.unravel_index(dense.argmax(), dense.shape)
    room = np.ceil(SPINE_MM / coarse.spacing_mm[2])
    if dense[y, x] < MIN_BONE or not room <= x < share.shape[1] - room:
        return None
    return np.array([0.0, y, x])


def _bone(coarse: Coarse, share: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """(y, x): the share of bone in the slices, blurred."""
    bone = (coarse.hu[levels] > BONE_ABOVE_HU) & ~coarse.outside[levels]
    blur = SPINE_MM / coarse.spacing_mm[1:]
    dense: np.ndarray = ndimage.gaussian_filter(bone.mean(0) * (share > 0.5), blur)
    return dense


def tell_apart(
    lung: np.ndarray, spacing_mm: np.ndarray, midline: Midline | None
) -> tuple[np.ndarray, Midline | None]:
    """(codes, midline): uint8, each lung with its code, and the midline, or the plane between them.

    Lungs that touch, as at the anterior junction, are parted where they are thinnest. A part that
    crosses the midline, as one lung does that fills the room of both, belongs to one side, unless
    much of it is on either. Without a midline, two large parts beside each other are the lungs;
    else the sides are unknown, and all is given the code of the left.
    """
    total = int(np.count_nonzero(lung))

    def of_both(voxels: np.ndarray) -> bool:
        if midline is None:
            return len(voxels) > 0.6 * total
        return _crossing(voxels, spacing_mm, midline) > PIECE

    labels = cc3d.connected_components(lung, connectivity=6)
    waiting = [np.argwhere(labels == n) for n in range(1, int(labels.max(initial=0)) + 1)]
    parts: list[np.ndarray] = []
    while waiting:
        part = waiting.pop()
        pieces = _parted(part) if of_both(part) else [part]
        (waiting if len(pieces) > 1 else parts).extend(pieces)
    if midline is None:
        midline = _between([(p + 0.5) * spacing_mm for p in sorted(parts, key=len)[-2:]])
        if midline is None:
            return lung * np.uint8(LEFT), None
    codes = np.zeros(lung.shape, np.uint8)
    for part in parts:
        left = midline.left_mm((part + 0.5) * spacing_mm) > 0
        if _crossing(part, spacing_mm, midline) < CROSSING:
            left[:] = left.mean() > 0.5
        codes[tuple(part.T)] = np.where(left, LEFT, RIGHT)
    return codes, midline


def _crossing(voxels: np.ndarray, spacing_mm: np.ndarray, midline: Midline) -> float:
    """The share of a part, its voxels (n, 3), on that side of the midline where less of it is."""
    left = midline.left_mm((voxels + 0.5) * spacing_mm) > 0
    share = float(np.count_nonzero(left) / len(voxels))
    return min(share, 1 - share)


def _parted(voxels: np.ndarray) -> list[np.ndarray]:
    """A part, its voxels (n, 3), in pieces, where erosion leaves two or more; else as it is."""
    low = voxels.min(0)
    at = voxels - low
    core = np.zeros(at.max(0) + 1, bool)
    core[tuple(at.T)] = True
    for _ in range(TOUCHING):
        core = ndimage.binary_erosion(core, CROSS, border_value=1)
        cores = cc3d.connected_components(core, connectivity=6)
        large = np.flatnonzero(np.bincount(cores.ravel())[1:] > PIECE * len(voxels)) + 1
        if len(large) > 1:
            seeds = np.where(np.isin(cores, large), cores, 0)
            nearest = ndimage.distance_transform_edt(
                seeds == 0, return_distances=False, return_indices=True
            )
            piece = seeds[tuple(nearest)][tuple(at.T)]
            return [voxels[piece == number] for number in large]
    return [voxels]


def _between(lungs: list[np.ndarray]) -> Midline | None:
    """The plane between two lungs, their voxels (n, 3) in mm; None if they are not side by side."""
    if len(lungs) < 2 or len(lungs[0]) < 0.3 * len(lungs[1]):
        return None
    right, left = sorted(lungs, key=lambda points: points[:, 2].mean())
    inner = np.percentile(right[:, 2], 90), np.percentile(left[:, 2], 10)
    if inner[1] - inner[0] < BETWEEN_MM:  # lobes of one lung
        return None
    at = np.array([0.0, 0.0, (inner[0] + inner[1]) / 2])
    return Midline(at, np.array([0.0, 0.0, 1.0]))
