"""The patient's body in a CT, on a coarse grid, and what is outside it.

A scan may hold slices of nothing, and padding of any value around the field of view. Neither is
anatomy: blank slices are interpolated from their neighbours, padding counts as outside.
"""

import dataclasses

import cc3d
import numpy as np
from scipy import ndimage

from lung_unet.data.resample import axis_weights, resample

AIR_BELOW_HU = -400
GAS_BELOW_HU = -960  # gas alone; lung, with its blood, is denser, also in emphysema
WALL = 0.3  # share of muscle and bone: 0.4 or more around lungs, 0.15 or less beneath the skin
RANGE_HU = (-1024, 3071)  # values beyond are padding, or metal
FEW_VOXELS = 80  # 2 ml; of a part of the air, without its surface
REACH = 5  # voxels around such a part, to see its wall
BLANK = 0.995  # share of a slice's pixels that have one value, or two, if it holds no image
IN_PLANE = np.pad(ndimage.generate_binary_structure(2, 1)[None], ((1, 1), (0, 0), (0, 0)))
CROSS = ndimage.generate_binary_structure(3, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Coarse:
    """A scan turned to LPS, on about isotropic voxels. Arrays are (z, y, x)."""

    hu: np.ndarray  # float32
    outside: np.ndarray  # bool: padding, and the air around the patient
    spacing_mm: np.ndarray  # (3,)
    nearest: tuple[np.ndarray, ...]  # for each axis, the coarse index of each voxel of the scan
    blank: int = 0  # slices of the scan without an image, between others

    @property
    def air(self) -> np.ndarray:
        """bool: air in the patient: lungs, airways, gas of the bowel."""
        return (self.hu < AIR_BELOW_HU) & ~self.outside

    def litres(self, mask: np.ndarray) -> float:
        return float(np.count_nonzero(mask) * np.prod(self.spacing_mm) * 1e-6)

    def upsample(self, values: np.ndarray) -> np.ndarray:
        """Values of the coarse grid on that of the scan, in LPS."""
        return values[np.ix_(*self.nearest)]


def coarsen(hu: np.ndarray, spacing_mm: np.ndarray, coarse_mm: float) -> Coarse:
    """`hu` int16 (z, y, x) in LPS, averaged to voxels of about `coarse_mm`, its outside found."""
    size = np.array(hu.shape)
    coarse_size = np.maximum(1, np.rint(size * spacing_mm / coarse_mm)).astype(int)
    step = size / coarse_size
    along_z, along_y, along_x = (
        axis_weights(n, m, 0.5 * s - 0.5, s)
        for n, m, s in zip(size, coarse_size, step, strict=True)
    )
    bridge = _bridge(_blank_slices(hu))
    blank = int(np.count_nonzero(np.diag(bridge) == 0))
    centres = [
        np.minimum(((np.arange(m) + 0.5) * s).astype(int), n - 1)
        for n, m, s in zip(size, coarse_size, step, strict=True)
    ]
    centres[0] = bridge.argmax(1)[centres[0]]
    sample = hu[np.ix_(*centres)]
    padding = _padding(sample)
    low, high = RANGE_HU
    if sample.min() < low or sample.max() > high:  # padding would be averaged with what it touches
        hu = np.clip(hu, low, high)
    coarse = resample(hu, (along_z @ bridge, along_y, along_x))
    nearest = tuple(
        np.minimum(((np.arange(n) + 0.5) / s).astype(int), m - 1)
        for n, m, s in zip(size, coarse_size, step, strict=True)
    )
    return Coarse(coarse, _outside(coarse, padding), spacing_mm * step, nearest, blank)


def _blank_slices(hu: np.ndarray) -> np.ndarray:
    """bool (z,): slices without an image: of one value, or of two, one of which is padding."""
    _, height, width = hu.shape
    some = hu[:, :: max(1, height // 64), :: max(1, width // 64)].reshape(len(hu), -1)
    middle = np.partition(some, some.shape[1] // 2, axis=1)[:, some.shape[1] // 2, None]
    blank = ((some == middle) | (some == some[:, :1])).mean(1) > BLANK
    return blank | ((some < AIR_BELOW_HU).mean(1) > BLANK)


def _bridge(blank: np.ndarray) -> np.ndarray:
    """Weights (z, z) float32 that replace blank slices between others by their neighbours."""
    weights = np.eye(len(blank), dtype=np.float32)
    good = np.flatnonzero(~blank)
    for z in np.flatnonzero(blank):
        after = int(np.searchsorted(good, z))
        if 0 < after < len(good):
            first, last = good[after - 1], good[after]
            share = (z - first) / (last - first)
            weights[z] = 0
            weights[z, first], weights[z, last] = 1 - share, share
    return weights


def _padding(sample: np.ndarray) -> np.ndarray:
    """bool (z, y, x): voxels that no ray reached: of a value that corners have, up to the border.

    `sample` holds values as they were stored, not averaged.
    """
    corners = sample[:, :: max(1, sample.shape[1] - 1), :: max(1, sample.shape[2] - 1)]
    values, counts = np.unique(corners, return_counts=True)
    same = np.isin(sample, values[counts > 0.05 * corners.size])
    parts, _ = ndimage.label(same, IN_PLANE)
    return same & np.isin(parts, _at_border(parts))


def _at_border(parts: np.ndarray) -> np.ndarray:
    """The numbers of parts, of slices (z, y, x), that touch the border of their slice."""
    sides = (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1])
    return np.unique(np.concatenate([side.ravel() for side in sides]))


def _outside(coarse: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """bool (z, y, x): padding and the air around the patient.

    Air that reaches the border or the padding is outside, unless it is a lung that the field of
    view cuts. It is looked at slice by slice, since a scan may begin and end within the lungs, or
    in air.
    """
    air = (coarse < AIR_BELOW_HU) & ~padding
    parts, count = ndimage.label(air, IN_PLANE)
    is_open = np.zeros(count + 1, bool)
    is_open[_at_border(parts)] = True
    is_open[parts[ndimage.binary_dilation(padding, IN_PLANE)]] = True
    is_open[0] = False
    open_air = is_open[parts]
    lung = _cut_lungs(coarse, open_air, padding)
    of_lung, of_all = (np.bincount(parts[m], minlength=count + 1) for m in (lung, open_air))
    is_open &= of_lung < 0.5 * of_all
    return padding | is_open[parts]


def _cut_lungs(coarse: np.ndarray, open_air: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """bool (z, y, x): the air that is lung, of air that reaches the border of the field of view.

    Lung is denser than air, and its wall is muscle and bone; below the skin, there is fat. Clothes,
    foam and streaks can be as dense as lung, and a thin patient has little fat, so both must hold.
    """
    lung = np.zeros(coarse.shape, bool)
    tissue = (coarse >= AIR_BELOW_HU) & ~padding
    core = ndimage.binary_erosion(~tissue, CROSS, border_value=1) & open_air
    parts = cc3d.connected_components(core, connectivity=6)
    statistics = cc3d.statistics(parts)
    for number in 1 + np.flatnonzero(statistics["voxel_counts"][1:] >= FEW_VOXELS):
        box = tuple(
            slice(max(0, s.start - REACH), s.stop + REACH)
            for s in statistics["bounding_boxes"][number]
        )
        own = parts[box] == number
        if np.median(coarse[box][own]) < GAS_BELOW_HU:
            continue
        every = (slice(None, None, 2),) * 3  # at twice the spacing, what is near is quick to find
        near = ndimage.binary_dilation(own[every], CROSS)
        wall = ndimage.binary_dilation(near, CROSS) & ~near & tissue[box][every]
        if wall.any() and (coarse[box][every][wall] > 0).mean() > WALL:
            lung[box] |= ndimage.binary_dilation(own, CROSS) & open_air[box]
    return lung


def find_body(coarse: Coarse) -> np.ndarray:
    """bool (z, y, x): the patient with all air inside, without the table; empty where none is."""
    solid = ~coarse.outside
    radius = max(1, round(6 / coarse.spacing_mm[1]))
    core = _erode(solid, radius)
    parts, count = cc3d.connected_components(core, connectivity=6, return_N=True)
    if not count:
        return solid
    body = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return ndimage.binary_dilation(body, IN_PLANE, radius + 1) & solid


def _erode(mask: np.ndarray, radius: int) -> np.ndarray:
    return ndimage.binary_erosion(mask, IN_PLANE, radius, border_value=1)
