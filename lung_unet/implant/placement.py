"""Where in the lungs a nodule may lie: free, at the pleura, at a vessel; never where one is."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from lung_unet.data.scan import Finding, Grid, Scan
from lung_unet.implant.lesion import TISSUE_ABOVE_HU, Lesion, broad, even, wall, within

COARSE_MM = 2.5
SITES = {"free": 0.4, "pleura": 0.35, "vessel": 0.25}  # how often each is tried first
TRIES = 12  # places of a site
APART_MM = 4.0
POINT_MM = 5.0  # radius around a finding of unknown size
# Of a nodule's volume: what of it the wall may cut off, and vessels may run through it.
CUT = {"free": 0.02, "pleura": 0.35, "vessel": 0.05}
VESSELS = 0.4
AIRWAY = 0.15  # and an airway, or a bulla
OUTSIDE = 0.25  # beyond the lungs as they were segmented, which is coarse
DARKEST = 3  # percent of a lung, which are airways and bullae
SLICES = 40  # that this is told from, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where a nodule fits: its box begins at voxel `low`; the nodule without what a wall cuts."""

    site: str
    low: np.ndarray
    lesion: Lesion

    @property
    def box(self) -> tuple[slice, ...]:
        shape = self.lesion.fill.shape
        return tuple(slice(int(l), int(l) + n) for l, n in zip(self.low, shape, strict=True))


class Lungs:
    """The lungs of a CT, coarse: how deep each place lies, and where the vessels are.

    Nothing is put within 4 mm of the CT's own findings, nor of what was put there before.
    """

    def __init__(self, scan: Scan):
        self.grid = scan.grid
        self.lungs = scan.lungs
        self.steps = np.maximum(1, np.rint(COARSE_MM / scan.grid.spacing_mm)).astype(int)
        each = tuple(slice(None, None, step) for step in self.steps)
        self.spacing_mm = scan.grid.spacing_mm * self.steps
        inside = np.pad(scan.lungs[each] > 0, 1)
        depth = ndimage.distance_transform_edt(inside, sampling=self.spacing_mm)
        self.depth_mm = depth[1:-1, 1:-1, 1:-1]
        self.tissue = scan.hu[each] > TISSUE_ABOVE_HU
        some = slice(None, None, max(1, len(scan.hu) // SLICES))
        smooth = even(scan.hu[some].astype(np.float32), scan.grid.spacing_mm)
        self.air_below_hu = float(np.percentile(smooth[scan.lungs[some] > 0], DARKEST))
        self.taken = [_ball(finding, scan.grid) for finding in scan.findings]

    def find(
        self, rng: np.random.Generator, lesion: Lesion, hu: np.ndarray, taken: list
    ) -> Place | None:
        """A place for a nodule in the CT (z, y, x) float32; None where it fits nowhere.

        `taken` has the (centre mm, radius mm) of the nodules of the new scan, from voxel 0; the
        new one is added.
        """
        first = rng.choice(list(SITES), p=list(SITES.values()))
        radius = lesion.shape.diameter_mm / 2
        for site in sorted(SITES, key=lambda site: site != first):
            for at in self._candidates(rng, site, radius):
                centre = at * self.grid.spacing_mm
                if any(
                    np.linalg.norm(centre - c) < radius + r + APART_MM
                    for c, r in self.taken + taken
                ):
                    continue
                place = self._fitted(site, at, lesion, hu)
                if place is not None:
                    taken.append((centre, radius))
                    return place
        return None

    def _candidates(
        self, rng: np.random.Generator, site: str, radius: float
    ) -> Iterator[np.ndarray]:
        """Voxels of the CT (z, y, x), at random."""
        if site == "pleura":
            where = (self.depth_mm > 0.4 * radius) & (self.depth_mm < 0.9 * radius + 1)
        else:
            where = self.depth_mm > radius + 2
        if site == "vessel":
            where &= self.tissue
        coarse = np.argwhere(where)
        for at in coarse[rng.permutation(len(coarse))[:TRIES]] * self.steps:
            if site == "vessel":  # beside it, so that it runs along the nodule
                aside = rng.standard_normal(3)
                aside *= 0.8 * radius / np.linalg.norm(aside)
                at = np.rint(at + aside / self.grid.spacing_mm).astype(int)
            yield at

    def _fitted(self, site: str, at: np.ndarray, lesion: Lesion, hu: np.ndarray) -> Place | None:
        """The nodule with the middle of its box at voxel `at`; None where it does not fit."""
        shape = np.array(lesion.fill.shape)
        low = at - shape // 2
        if (low < 0).any() or (low + shape > hu.shape).any():
            return None
        where = tuple(map(slice, low, low + shape))
        box = hu[where]
        agreed = lesion.agreed
        walls = wall(box, self.grid.spacing_mm)
        air = even(box, self.grid.spacing_mm) < self.air_below_hu
        # A nodule must not go on behind a wall, in an airway or another organ.
        behind = broad(air | (self.lungs[where] == 0), self.grid.spacing_mm) & ~walls
        cut = within(lesion, walls | (behind & (air | ~_near(self.lungs[where], self.grid))))
        shares = (
            (agreed - cut.agreed, CUT[site]),
            (agreed * (~walls & (box > TISSUE_ABOVE_HU)), VESSELS),
            (agreed * (~walls & (self.lungs[where] == 0)), OUTSIDE),
            (agreed * air, AIRWAY),
        )
        if any(part.sum() > most * agreed.sum() for part, most in shares):
            return None
        return Place(site, low, cut)


def _near(lungs: np.ndarray, grid: Grid) -> np.ndarray:
    """bool: within a coarse voxel of the lungs, whose mask is no finer."""
    reach = np.maximum(1, np.rint(COARSE_MM / grid.spacing_mm)).astype(int)
    return ndimage.maximum_filter(lungs, tuple(2 * reach + 1)) > 0


def _ball(finding: Finding, grid: Grid) -> tuple[np.ndarray, float]:
    """Centre in mm from voxel 0, and radius, of a ball that holds a finding."""
    if finding.reader_bits.any():
        size_mm = np.array(finding.reader_bits.shape) * grid.spacing_mm
        centre = finding.low * grid.spacing_mm + (size_mm - grid.spacing_mm) / 2
        return centre, float(np.linalg.norm(size_mm) / 2)
    centre = grid.to_voxel(finding.centre_mm) * grid.spacing_mm
    return centre, max(finding.diameter_mm / 2, POINT_MM)
