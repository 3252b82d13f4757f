"""A scan as the network sees it: turned to LPS, cropped to the lungs, isotropic; and back."""

import dataclasses

import numpy as np

from lung_unet.data.resample import axis_weights, resample, resample_votes, take_nearest
from lung_unet.data.scan import IGNORE, READERS, Finding, Grid, Scan

AIR_HU = -1024  # what lies beyond a scan


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """The lungs of one scan. `hu` int16 and `lungs` bool are (z, y, x) of `grid`, which is LPS.

    `source` is the grid of the scan it was made from. Where `whole_body` is true no plausible lungs
    are known, and `lungs` is the body, which is searched whole.
    """

    hu: np.ndarray
    lungs: np.ndarray
    grid: Grid
    source: Grid
    whole_body: bool = False


def weights_between(source: Grid, target: Grid, antialias: bool = True) -> tuple[np.ndarray, ...]:
    """One weight matrix an axis (z, y, x) that resamples from one grid to a parallel one."""
    start = source.to_voxel(target.origin_mm)
    step = target.spacing_mm / source.spacing_mm
    return tuple(
        axis_weights(n, m, a, s, antialias)
        for n, m, a, s in zip(source.shape, target.shape, start, step, strict=True)
    )


def bounds(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the box that holds all of a mask (z, y, x); both 0 where it is empty."""
    low, high = np.zeros(3, int), np.zeros(3, int)
    for axis in range(3):
        filled = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        if len(filled):
            low[axis], high[axis] = filled[0], filled[-1] + 1
    return low, high


def crop_to_lungs(scan: Scan, margin_mm: float) -> Volume:
    """The scan's own voxels, cropped to its lungs plus a margin, or to its body; see `Volume`."""
    grid, axes, flips = scan.grid.to_lps()
    hu, lungs = (array.transpose(axes)[flips] for array in (scan.hu, scan.searched))
    if not lungs.any():
        return Volume(hu, np.ones(grid.shape, bool), grid, scan.grid, whole_body=True)
    margin = np.ceil(margin_mm / grid.spacing_mm).astype(int)
    first, last = bounds(lungs)
    low, high = np.maximum(0, first - margin), np.minimum(grid.shape, last + margin)
    box = tuple(map(slice, low, high))
    whole_body = scan.body is not None
    return Volume(hu[box], lungs[box], grid.crop(low, high), scan.grid, whole_body)


def make_volume(scan: Scan, spacing_mm: float, margin_mm: float) -> Volume:
    """The scan cropped to its lungs plus a margin, or to its body, isotropic; see `Volume`."""
    near = crop_to_lungs(scan, margin_mm)
    extent_mm = np.array(near.grid.shape) * near.grid.spacing_mm
    shape = np.maximum(1, np.rint(extent_mm / spacing_mm)).astype(int)
    corner = 0.5 * spacing_mm / near.grid.spacing_mm - 0.5  # cells begin where the crop's begin
    target = Grid(
        tuple(map(int, shape)),
        np.full(3, float(spacing_mm)),
        near.grid.to_world(corner),
        near.grid.direction,
    )
    weights = weights_between(near.grid, target)
    values = resample(near.hu, weights)
    return Volume(
        np.rint(values, out=values).astype(np.int16),  # an average: it stays in range
        take_nearest(near.lungs, weights),
        target,
        scan.grid,
        near.whole_body,
    )


def make_labels(findings: tuple[Finding, ...], volume: Volume) -> np.ndarray:
    """uint8 (z, y, x) on the volume's grid: reader votes of counted findings, 255 where ignored."""
    labels = np.zeros(volume.grid.shape, np.uint8)
    for finding in sorted(findings, key=lambda f: f.included):  # what counts is drawn last
        if not finding.reader_bits.any():
            continue
        high = finding.low + finding.reader_bits.shape
        near, axes, flips = volume.source.crop(finding.low, high).to_lps()
        votes = np.pad(finding.votes.transpose(axes)[flips], 1)
        near = near.crop(np.full(3, -1), np.array(near.shape) + 1)
        corners = volume.grid.to_voxel(near.to_world([np.zeros(3), np.array(near.shape) - 1.0]))
        first = np.maximum(0, np.floor(corners.min(0)).astype(int))
        last = np.minimum(volume.grid.shape, np.ceil(corners.max(0)).astype(int) + 1)
        if (last <= first).any():
            continue  # outside the crop
        target = volume.grid.crop(first, last)
        drawn = resample_votes(votes, weights_between(near, target, antialias=False), READERS)
        if not drawn.any() and finding.included:  # thinner than the grid: keep its middle voxel
            middle = np.rint(target.to_voxel(finding.centre_mm)).astype(int)
            drawn[tuple(np.clip(middle, 0, np.array(drawn.shape) - 1))] = finding.votes.max()
        out = labels[tuple(map(slice, first, last))]
        if finding.included:
            np.copyto(
                out, drawn, where=(drawn > 0) & ((out == 0) | (out == IGNORE) | (drawn > out))
            )
        else:
            out[drawn > 0] = IGNORE
    return labels


def onto_source(
    values: np.ndarray, grid: Grid, source: Grid, nearest: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Values (z, y, x) of the volume's grid on the scan's own grid: (low, float32 box there).

    The box is what the volume covers of the scan; beyond it nothing is known. `nearest` takes the
    value of the nearest voxel, and keeps its type.
    """
    lps, axes, flips = source.to_lps()
    corners = lps.to_voxel(grid.to_world([np.full(3, -0.5), np.array(grid.shape) - 0.5]))
    low = np.maximum(0, np.ceil(corners[0] - 1e-6).astype(int))
    high = np.minimum(lps.shape, np.floor(corners[1] + 1e-6).astype(int) + 1)
    near = lps.crop(low, high)
    weights = weights_between(grid, near)
    box = (take_nearest if nearest else resample)(values, weights)
    own_low, own_high = np.empty(3, int), np.empty(3, int)
    for world, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        ends = (low[world], high[world])
        if flip.step < 0:
            ends = (lps.shape[world] - high[world], lps.shape[world] - low[world])
        own_low[axis], own_high[axis] = ends
    return own_low, box[flips].transpose(np.argsort(axes))
