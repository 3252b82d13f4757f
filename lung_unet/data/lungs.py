"""Lungs of a chest CT: found, where no mask came with the scan, and checked in any case.

Air inside the body, without gas of the bowel, closed so that vessels and nodules at the pleura
belong to it: the scheme of Hu et al. 2001 (IEEE TMI 20(6)), on a coarse grid since it only crops,
draws background and skips windows. What is skipped for a wrong mask is a nodule lost, so a mask
that is not plausible restricts nothing: the whole body is searched, and the scan says so.
"""

import dataclasses

import cc3d
import numpy as np
from scipy import ndimage

from lung_unet.data.body import CROSS, GAS_BELOW_HU, Coarse, coarsen, find_body
from lung_unet.data.midline import LEFT, RIGHT, find_midline, spine_in_front, tell_apart
from lung_unet.data.scan import Finding, Grid, Midline, Scan

VERSION = 3  # raised where the same scan gives other lungs, or another place to search
COARSE_MM = 3.0
CHECK_MM = 5.0  # to check a mask that is there
MIN_LITRES = 0.3  # in a scan of MIN_HEIGHT_MM or more
MIN_HEIGHT_MM = 100.0
MAX_LITRES = 11.0
CLOSE_MM = 9.0  # closes gaps of twice that
LARGE = 0.25  # a part is lung whatever its density from this share of the largest part on
SMALL = 0.02  # a part is lung, if it is as dense as lung, from this share on
LEFT_OUT = 0.2  # air in the body besides the lungs, at their height, as a share of them
LEFT_SHARE = (0.37, 0.57)  # of both lungs; some 0.41 to 0.48 in health
SHORT_MM = 40.0  # of slices with one lung alone; 12 at most in four healthy scans
CROSS_SECTION = 0.2  # of a lung in a slice, as a share of its largest, from which a slice counts
ALONE = 0.25  # of the larger cross-section: less of the other lung is hardly any
COVERED = 0.8  # of the lungs that are seen, by a mask that came with the scan
WHOLE_BODY = "the whole body is searched"


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """Lungs on a coarse grid, and why they may be wrong."""

    codes: np.ndarray  # uint8 (z, y, x), LUNA16's
    body: np.ndarray  # bool
    midline: Midline | None  # in mm from the grid's first corner
    sides_known: bool
    doubts: tuple[str, ...]


def segment_lungs(hu: np.ndarray, grid: Grid) -> np.ndarray:
    """uint8 (z, y, x): 3 the left lung, 4 the right, 0 elsewhere; all 0 where no lung is found.

    `hu` is int16 (z, y, x) on `grid`, turned in any way. See `scan_with_lungs` for whether they are
    plausible.
    """
    return scan_with_lungs("", grid, hu).lungs


def scan_with_lungs(
    series_uid: str,
    grid: Grid,
    hu: np.ndarray,
    findings: tuple[Finding, ...] = (),
    warnings: tuple[str, ...] = (),
    mask: np.ndarray | None = None,
    source: str = "computed",
    sides_known: bool = True,
) -> Scan:
    """The scan with its lungs: found, or those of `mask` (uint8, LUNA16's codes), then checked.

    Where they are not plausible, the scan has a `body` and a warning that says why.
    `sides_known` says whether grid and mask tell left from right.
    """
    lps, axes, flips = grid.to_lps()

    def back(array: np.ndarray) -> np.ndarray:
        return array[flips].transpose(np.argsort(axes))

    turned = hu.transpose(axes)[flips]
    coarse = coarsen(turned, lps.spacing_mm, COARSE_MM if mask is None else CHECK_MM)
    found = _find(coarse)
    if mask is None:
        lungs, doubts = back(coarse.upsample(found.codes)), found.doubts
        sides_known &= found.sides_known
    else:
        lungs, doubts = mask, _doubts_of_mask(mask.transpose(axes)[flips], coarse, found)
    midline = found.midline if sides_known else None
    if midline is not None:  # from the corner of the scan to the world
        at = lps.to_world(midline.at_mm / lps.spacing_mm - 0.5)
        midline = Midline(at, lps.direction @ midline.left)
    if coarse.blank:
        slices = f"{coarse.blank} of {lps.shape[0]} slices"
        warnings = (*warnings, f"{slices} hold no image; what lies there cannot be found")
    body = None
    if doubts:
        body = back(coarse.upsample(found.body)) if found.body.any() else np.ones(hu.shape, bool)
        warnings = (*warnings, f"{', '.join(doubts)}, so {WHOLE_BODY}")
    return Scan(series_uid, grid, hu, lungs, source, findings, warnings, body, midline, sides_known)


def _find(coarse: Coarse) -> _Found:
    body = find_body(coarse)
    air = coarse.air & body
    accepted, rest = _lung_parts(coarse, air)
    litres = coarse.litres(accepted)
    height_mm = coarse.hu.shape[0] * coarse.spacing_mm[0]
    if litres < MIN_LITRES * min(1, height_mm / MIN_HEIGHT_MM):
        midline = find_midline(coarse, body, _slices_of(body))
        nothing = np.zeros(body.shape, np.uint8)
        return _Found(nothing, body, midline, midline is not None, ("no lungs were found",))
    levels = _slices_of(accepted)
    midline = find_midline(coarse, body, levels)
    codes, midline = tell_apart(accepted, coarse.spacing_mm, midline)
    codes = _closed(codes, coarse)
    doubts = []
    if spine_in_front(coarse, body, levels):
        doubts.append("the spine is in front, so the image is turned over or mirrored")
        codes, midline = np.where(codes > 0, LEFT, codes).astype(np.uint8), None
    total = coarse.litres(codes)
    if total > MAX_LITRES:
        doubts.append(f"the {total:.1f} l of lung found are too many")
    left_out = (rest & levels[:, None, None] & (codes == 0)).sum() / accepted.sum()
    if left_out > LEFT_OUT:
        doubts.append(f"air of {left_out:.0%} of the lungs' volume is in the body beside them")
    if midline is None:
        doubts.append("the left and the right lung cannot be told apart")
    else:
        doubts += _unequal(codes, coarse.spacing_mm[0])
    return _Found(codes, body, midline, midline is not None, tuple(doubts))


def _slices_of(mask: np.ndarray) -> np.ndarray:
    """bool (z,): slices that hold some of a mask (z, y, x)."""
    return np.asarray(mask.any((1, 2)))


def _unequal(codes: np.ndarray, slice_mm: float) -> list[str]:
    """How one lung falls short of the other: part of it may be opaque, and not be found."""
    left, right = (np.count_nonzero(codes == code, (1, 2)) for code in (LEFT, RIGHT))
    share = float(left.sum() / (left.sum() + right.sum()))
    if share < LEFT_SHARE[0]:
        return [f"the left lung is only {share:.0%} of the lungs found"]
    if share > LEFT_SHARE[1]:
        return [f"the right lung is only {1 - share:.0%} of the lungs found"]
    larger = np.maximum(left, right)
    alone = (larger > CROSS_SECTION * larger.max()) & (np.minimum(left, right) < ALONE * larger)
    alone_mm = float(np.count_nonzero(alone) * slice_mm)
    if alone_mm <= SHORT_MM:
        return []
    missing = "left" if (left < right)[alone].mean() > 0.5 else "right"
    return [f"over {alone_mm:.0f} mm no {missing} lung is found beside the other"]


def _lung_parts(coarse: Coarse, air: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lung, rest), bool: the connected parts of the air in the body that are lung, and the others.

    Gas of bowel and stomach, and the trachea, are less dense than lung, or lie below it.
    """
    padded = np.pad(air, 1, mode="edge")  # lungs may go on beyond the scan
    core = ndimage.binary_erosion(padded, CROSS)
    opened = (
        ndimage.binary_dilation(core, CROSS)[1:-1, 1:-1, 1:-1] & air
    )  # parts lungs from airways
    core = core[1:-1, 1:-1, 1:-1]
    parts, count = cc3d.connected_components(opened, connectivity=6, return_N=True)
    if not count:
        return opened, air
    voxels = np.bincount(parts.ravel(), minlength=count + 1)
    voxels[0] = 0
    inside = np.bincount(parts[core], minlength=count + 1)
    mean = np.bincount(parts[core], coarse.hu[core], count + 1) / np.maximum(inside, 1)
    share = voxels / voxels.max()
    lung = share >= LARGE
    heights = np.nonzero(lung[parts])[0]
    lowest, highest = np.percentile(heights, (15, 100))
    z = np.arange(len(air))
    slices = np.stack([np.bincount(p.ravel(), minlength=count + 1) for p in parts])
    middle = (z @ slices) / np.maximum(voxels, 1)
    lung |= (share >= SMALL) & (mean > GAS_BELOW_HU) & (middle >= lowest) & (middle <= highest)
    lung[0] = False
    mask = lung[parts]
    return mask, opened & ~mask


def _closed(codes: np.ndarray, coarse: Coarse) -> np.ndarray:
    """Each lung with the gaps that vessels and nodules leave, in 3D and slice by slice."""
    radius = max(1, round(CLOSE_MM / coarse.spacing_mm[1]))
    ball = ndimage.iterate_structure(CROSS, radius)
    out = codes.copy()
    for code in (LEFT, RIGHT):
        (box,) = ndimage.find_objects((codes == code).view(np.uint8)) or (None,)
        if box is None:
            continue
        padded = np.pad(codes[box] == code, radius)
        closed = ndimage.binary_closing(padded, ball)[(slice(radius, -radius),) * 3]
        closed = np.stack([ndimage.binary_fill_holes(plane) for plane in closed])
        out[box][closed & (out[box] == 0)] = code
    return out


def _doubts_of_mask(mask: np.ndarray, coarse: Coarse, found: _Found) -> tuple[str, ...]:
    """Why a mask that came with the scan, in LPS, may be wrong, by what is seen of the lungs."""
    lungs = (mask == LEFT) | (mask == RIGHT)
    if not lungs.any():
        return ("the lung mask is empty",)
    seen = coarse.upsample(found.codes) > 0
    share = float((lungs & seen).sum() / max(1, seen.sum()))
    if seen.any() and not found.doubts and share < COVERED:
        return (f"the lung mask covers only {share:.0%} of the lungs that are seen",)
    return ()
