"""A nodule in Hounsfield units: how much of each voxel it fills, with what, as a scanner blurs it.

A voxel of HU h, of which a share a is filled with tissue of HU t, becomes (1 - a) h + a t. So a
solid nodule (a = 1) replaces the lung, and ground glass (a of about 0.3) veils it: air becomes -600
to -400 HU, while a vessel, which is tissue already, stays what it is.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage

from lung_unet.data.scan import READERS, Grid
from lung_unet.data.shapes import smooth_noise
from lung_unet.implant.noise import Noise
from lung_unet.implant.outline_pool import Shape

LUNG_HU = -850.0  # what the fill of ground glass is reckoned from
FINE_MM = 0.8  # slices are filled in steps of this at most, then averaged
ROOM_MM = 8.0  # around a nodule's outlines: for spicules, blur, and what tells a wall
EVEN_MM = 1.0  # what noise and small vessels are smoothed by, to see tissue
TISSUE_ABOVE_HU = -400.0
BUMP_MM = 3.0  # the grain of a nodule's density
WALL_MM = 3.0  # vessels are thinner than twice this, walls and large hilar vessels are not
NO_CALCIUM = 6  # LIDC's rating
POPCORN, LAMINATED, WHOLE, OFF_CENTRE, CENTRAL = 1, 2, 3, 4, 5


@dataclasses.dataclass(frozen=True)
class Density:
    """What a nodule consists of.

    `glass` is the share of air that is filled, `core` how far from the centre to the surface it is
    solid (1: all of it), `tissue_hu` what fills it, uneven by `mottled_hu`, and `calcium_hu` what
    calcified parts have more. Its edge is blurred by `margin_mm`, and its surface lies up and down
    by `rough_mm`, of which readers outline the middle; all three are standard deviations.
    """

    glass: float
    core: float
    tissue_hu: float
    mottled_hu: float
    calcification: int
    calcium_hu: float
    margin_mm: float
    rough_mm: float
    spicules: int

    @property
    def hu(self) -> float:
        """HU of its outer part in aerated lung."""
        fill = 1.0 if self.core == 1 else self.glass
        return LUNG_HU + fill * (self.tissue_hu - LUNG_HU)


@dataclasses.dataclass(frozen=True, eq=False)
class Lesion:
    """A nodule on the voxels of a CT, its middle in the middle of the box (z, y, x).

    `coverage` (readers, z, y, x) is the share of each voxel that each reader's outline encloses, of
    the readers whose bits are `readers`; `fill` and `tissue_hu` are as the scanner blurs them.
    """

    shape: Shape
    density: Density
    readers: tuple[int, ...]
    coverage: np.ndarray
    fill: np.ndarray
    tissue_hu: np.ndarray

    @property
    def agreed(self) -> np.ndarray:
        """Share of each voxel that half of the readers' outlines enclose."""
        return np.sort(self.coverage, axis=0)[-((len(self.readers) + 1) // 2)]


def draw_density(rng: np.random.Generator, shape: Shape) -> Density:
    """A density such as the readers' ratings say; what they did not rate counts as usual."""
    rated = shape.ratings.get
    texture, subtlety = rated("texture", 5.0), rated("subtlety", 4.0)
    tissue_hu = rng.normal(*(5, 10) if round(rated("internalStructure", 1)) == 2 else (45, 22))
    glass_hu = np.interp(subtlety, [1, 5], [-690, -430]) + rng.normal(0, 45)
    glass_hu = np.clip(glass_hu, -720, -380)
    solid = np.interp(subtlety, [1, 3], [0.8, 1.0])  # a subtle solid nodule is a little faint
    calcification = round(rated("calcification", NO_CALCIUM))
    calcium = (400, 900) if calcification == WHOLE else (150, 600)
    return Density(
        glass=float((glass_hu - LUNG_HU) / (tissue_hu - LUNG_HU)),
        core=float(np.interp(texture, [1.3, 2, 4, 4.5], [0, 0.35, 0.85, 1])),
        tissue_hu=float(LUNG_HU + solid * (tissue_hu - LUNG_HU)),
        mottled_hu=float(min(2 * shape.diameter_mm, 35) * rng.uniform(0.4, 1.2)),
        calcification=calcification,
        calcium_hu=float(rng.uniform(*calcium)) if calcification < NO_CALCIUM else 0.0,
        margin_mm=float(
            min(np.interp(rated("margin", 4.0), [1, 5], [1.8, 0.2]), 0.1 * shape.diameter_mm)
        ),
        rough_mm=float(
            min(np.interp(rated("margin", 4.0), [1, 5], [1.2, 0.5]), 0.05 * shape.diameter_mm)
        ),
        spicules=int(np.interp(rated("spiculation", 1.0), [1.5, 5], [0, 26])),
    )


def grow(rng: np.random.Generator, shape: Shape, grid: Grid, psf_mm: float) -> Lesion:
    """The nodule of a shape, turned at random about z, on voxels of a CT of this grid.

    `psf_mm` is the standard deviation of the CT's point spread in-plane; across, it is the slice.
    """
    density = draw_density(rng, shape)
    parts = math.ceil(grid.spacing_mm[0] / FINE_MM)
    fine_mm = grid.spacing_mm / (parts, 1, 1)
    readers = tuple(r for r in range(READERS) if (shape.reader_bits >> r & 1).any())
    distances = _distances(shape, readers, rng.uniform(0, 2 * np.pi), grid, parts)
    enclosed = np.clip(0.5 - distances / fine_mm[1], 0, 1)
    fill, tissue_hu = _filled(rng, density, distances.mean(axis=0), fine_mm)
    in_plane = np.hypot(psf_mm, density.margin_mm) / fine_mm[1:]
    sigma = (max(density.margin_mm, 0.2 * grid.spacing_mm[0]) / fine_mm[0], *in_plane)
    filled = ndimage.gaussian_filter(fill, sigma, truncate=3)
    weighted = ndimage.gaussian_filter(fill * tissue_hu, sigma, truncate=3)
    fill, weighted = _slices(filled, parts), _slices(weighted, parts)
    tissue = np.where(fill > 1e-3, weighted / np.maximum(fill, 1e-3), density.tissue_hu)
    return Lesion(shape, density, readers, _slices(enclosed, parts), fill, tissue)


def wall(hu: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """bool: chest wall, mediastinum, diaphragm and large hilar vessels of a box of a CT.

    Tissue in which a disc of 3 mm fits, slice by slice; so vessels within the lung are none.
    """
    return broad(even(hu, spacing_mm) > TISSUE_ABOVE_HU, spacing_mm)


def broad(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """bool: the parts of a mask (z, y, x) in which a disc of 3 mm fits, slice by slice."""
    radius = max(1, round(WALL_MM / float(spacing_mm[1:].mean())))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = (y * y + x * x <= radius * radius)[None]
    padded = np.pad(mask, ((0, 0), *[(2 * radius,) * 2] * 2), "edge")
    inner = slice(2 * radius, -2 * radius)
    return ndimage.binary_opening(padded, disc)[:, inner, inner]


def insert(
    rng: np.random.Generator, lesion: Lesion, hu: np.ndarray, noise: Noise, spacing_mm: np.ndarray
) -> None:
    """Puts a nodule into a box of a CT (z, y, x) float32, in place.

    It takes away as much of the CT's noise as it fills, so that much is added, of the same
    spectrum: the standard deviation stays. Bone, calcium and contrast stay as they are.
    """
    # From 120 HU above the tissue on nothing is filled, from 40 HU below everything.
    room = np.clip((lesion.tissue_hu + 120 - even(hu, spacing_mm)) / 160, 0, 1)
    kept = 1 - lesion.fill * room
    added = noise.sample(rng, hu.shape, spacing_mm)
    hu *= kept
    hu += (1 - kept) * lesion.tissue_hu + np.sqrt(1 - kept**2) * added


def within(lesion: Lesion, walls: np.ndarray) -> Lesion:
    """The nodule without what would lie in a wall (bool, of its box), or is cut off by one."""
    middle = _largest((lesion.agreed > 0.5) & ~walls)
    free = ndimage.gaussian_filter(_joined((lesion.fill > 0.05) & ~walls, middle), (0, 0.7, 0.7))
    coverage = [one * _joined((one > 0) & ~walls, middle) for one in lesion.coverage]
    return dataclasses.replace(lesion, coverage=np.stack(coverage), fill=lesion.fill * free)


def _largest(mask: np.ndarray) -> np.ndarray:
    """bool: the largest part of a mask."""
    labels, _ = ndimage.label(mask)
    return mask & (labels == 1 + np.argmax(np.append(np.bincount(labels.ravel())[1:], 0)))


def _joined(mask: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """float32, 0 or 1: the parts of a mask that meet `middle`."""
    labels, _ = ndimage.label(mask)
    met = np.unique(labels[middle & mask])
    return np.isin(labels, met[met > 0]).astype(np.float32)


def even(hu: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(hu, (0, *(EVEN_MM / spacing_mm[1:])), truncate=2.5)


def _distances(
    shape: Shape, readers: tuple[int, ...], angle: float, grid: Grid, parts: int
) -> np.ndarray:
    """(readers, z, y, x) float32: mm to each reader's outline, negative inside, slices in parts."""
    pad = np.ceil(ROOM_MM / shape.spacing_mm).astype(int)
    bits = np.pad(shape.reader_bits, [(int(p), int(p)) for p in pad])
    drawn = np.argwhere(bits)
    centre = drawn.mean(axis=0)
    offset_mm = np.abs((drawn - centre) * shape.spacing_mm)
    reach = np.array([offset_mm[:, 0].max(), *[np.hypot(*offset_mm[:, 1:].T).max()] * 2])
    half = np.ceil((reach + ROOM_MM) / grid.spacing_mm).astype(int)
    size = (2 * half + 1) * (parts, 1, 1)
    fine_mm = grid.spacing_mm / (parts, 1, 1)
    sin, cos = np.sin(angle), np.cos(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = turn * fine_mm / shape.spacing_mm[:, None]
    begin = centre - matrix @ ((size - 1) / 2)
    distances = []
    for reader in readers:
        mask = (bits >> reader & 1).astype(bool)
        outside = ndimage.distance_transform_edt(~mask, sampling=shape.spacing_mm)
        inside = ndimage.distance_transform_edt(mask, sampling=shape.spacing_mm)
        # Both reach from centre to centre of voxels, so the surface lies half a pixel nearer.
        half_pixel = 0.5 * shape.spacing_mm[1] * np.where(mask, 1, -1)
        signed = (outside - inside + half_pixel).astype(np.float32)
        distances.append(
            ndimage.affine_transform(
                signed, matrix, begin, tuple(size), order=1, mode="nearest", output=np.float32
            )
        )
    return np.stack(distances)


def _filled(
    rng: np.random.Generator,
    density: Density,
    distance: np.ndarray,
    fine_mm: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Fill, 0 to 1, and HU of the tissue that fills (z, y, x), sharp still."""
    bumps = round(float((np.array(distance.shape) * fine_mm).mean() / BUMP_MM))
    rough, mottled = (smooth_noise(rng, distance.shape, bumps) for _ in range(2))
    distance = distance + density.rough_mm * rough
    inside = np.clip(0.5 - distance / fine_mm[1], 0, 1)
    depth = np.clip(-distance / max(-float(distance.min()), 1e-3), 0, 1)
    fill = inside
    if density.core < 1:
        fill = inside * np.clip(density.glass * (1 + 0.35 * mottled), 0, 1)
    if 0 < density.core < 1:
        beyond = depth - (1 - density.core) + 0.12 * rough
        fill = np.maximum(fill, inside * np.clip(0.5 + 6 * beyond, 0, 1))
    if density.spicules:
        thickest = 1.0 if density.core == 1 else density.glass
        fill = np.maximum(fill, thickest * _spicules(rng, density.spicules, distance, fine_mm))
    tissue_hu = density.tissue_hu + density.mottled_hu * mottled
    if density.calcium_hu:
        tissue_hu += density.calcium_hu * _calcified(rng, density.calcification, depth, rough)
    return fill.astype(np.float32), tissue_hu.astype(np.float32)


def _spicules(
    rng: np.random.Generator, count: int, distance: np.ndarray, fine_mm: np.ndarray
) -> np.ndarray:
    """Share of each voxel that strands from the surface outwards fill; they taper."""
    offset = np.moveaxis(np.indices(distance.shape), 0, -1) - (np.array(distance.shape) - 1) / 2
    offset = (offset * fine_mm).astype(np.float32)
    strands = rng.standard_normal((count, 3)).astype(np.float32)
    strands /= np.linalg.norm(strands, axis=1, keepdims=True)
    length_mm = rng.uniform(3, 8, count)
    width_mm = rng.uniform(0.4, 1.0, count)
    from_centre = (offset**2).sum(-1)
    fill = np.zeros(distance.shape, np.float32)
    for strand, length, width in zip(strands, length_mm, width_mm, strict=True):
        along = offset @ strand
        across = np.sqrt(np.maximum(from_centre - along**2, 0))
        taper = np.clip(1 - np.maximum(distance, 0) / length, 0, 1)
        strength = np.clip(0.5 + (width * taper - across) / fine_mm[1], 0, 1)
        np.maximum(fill, strength * (taper > 0) * (along > 0), out=fill)
    return fill


def _calcified(
    rng: np.random.Generator, kind: int, depth: np.ndarray, rough: np.ndarray
) -> np.ndarray:
    """Where, 0 to 1, a nodule is calcified; `depth` is 0 at its surface and 1 at its centre."""
    if kind == WHOLE:
        return np.ones_like(depth)
    if kind == CENTRAL:
        return np.clip(6 * (depth - 0.5), 0, 1)
    if kind == LAMINATED:
        return np.clip(6 * (0.25 - np.abs(depth - 0.45)), 0, 1)
    spread = rough if kind == POPCORN else rough - np.roll(rough, rng.integers(3, 9), axis=2)
    return np.clip(3 * (spread - 0.8), 0, 1)


def _slices(fine: np.ndarray, parts: int) -> np.ndarray:
    """Means over each slice's `parts`, of the third axis from the last."""
    *before, z, y, x = fine.shape
    return fine.reshape(*before, z // parts, parts, y, x).mean(axis=-3)
