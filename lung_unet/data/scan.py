"""A scan in memory: voxels, where they lie in the patient, and what the readers marked."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

IGNORE = 255  # in a label volume: weight 0 in every loss and metric
READERS = 4  # LIDC-IDRI has four readers a scan; a nodule without outlines counts as marked by all
ALL_READERS = (1 << READERS) - 1  # their bits


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an array (z, y, x) lie in the patient, in mm (LPS, given z, y, x).

    `direction` is (3, 3): column i is the world direction of array axis i, both in z, y, x order.
    """

    shape: tuple[int, ...]  # (z, y, x)
    spacing_mm: np.ndarray  # (3,) float64
    origin_mm: np.ndarray  # (3,) float64, the centre of voxel (0, 0, 0)
    direction: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))

    def to_world(self, voxels: ArrayLike) -> np.ndarray:
        """World positions (..., 3) mm of voxel positions (..., 3), all z, y, x."""
        return np.asarray(voxels) * self.spacing_mm @ self.direction.T + self.origin_mm

    def to_voxel(self, points_mm: ArrayLike) -> np.ndarray:
        """Fractional voxel positions (..., 3) of world positions (..., 3) mm, all z, y, x."""
        return (
            (np.asarray(points_mm) - self.origin_mm)
            @ np.linalg.inv(self.direction).T
            / self.spacing_mm
        )

    def holds(self, points_mm: ArrayLike) -> np.ndarray:
        """bool (...): whether world positions (..., 3) mm, z, y, x, lie within a voxel of it."""
        at = self.to_voxel(points_mm)
        return np.asarray(((at > -1) & (at < self.shape)).all(-1))

    def crop(self, low: Iterable[int], high: Iterable[int]) -> "Grid":
        """The grid of array[low:high]."""
        z, y, x = (int(h - l) for l, h in zip(low, high, strict=True))
        return Grid((z, y, x), self.spacing_mm, self.to_world(np.array(low)), self.direction)

    def to_lps(self) -> tuple["Grid", tuple[int, ...], tuple[slice, ...]]:
        """The same voxels with their axes turned to LPS: (grid, axes, flips).

        array.transpose(axes)[flips] lies on it; array[flips].transpose(argsort(axes)) goes back.
        """
        direction = np.abs(self.direction).copy()
        axes = []
        for world in range(3):
            axis = int(np.argmax(direction[world]))
            direction[:, axis] = -1  # an axis is taken once, also in a 45-degree tie
            axes.append(axis)
        turned = self.direction[:, axes]
        signs = np.where(np.diagonal(turned) < 0, -1, 1)
        shape = tuple(self.shape[a] for a in axes)
        corner = np.zeros(3)
        for world, axis in enumerate(axes):
            corner[axis] = self.shape[axis] - 1 if signs[world] < 0 else 0
        flips = tuple(slice(None, None, int(s)) for s in signs)
        lps = Grid(shape, self.spacing_mm[axes], self.to_world(corner), turned * signs)
        return lps, tuple(axes), flips

    def to_json(self) -> dict:
        return {
            "shape": list(self.shape),
            "spacing_mm": [float(v) for v in self.spacing_mm],
            "origin_mm": [float(v) for v in self.origin_mm],
            "direction": [[float(v) for v in row] for row in self.direction],
        }

    @classmethod
    def from_json(cls, value: dict) -> "Grid":
        return cls(
            tuple(value["shape"]),
            *(np.array(value[k], float) for k in ("spacing_mm", "origin_mm", "direction")),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Finding:
    """One thing that readers marked, or that LUNA16 lists.

    `reader_bits` (z, y, x) uint8 has bit r set where the outline of reader r covers the voxel, of
    the box of the scan that starts at voxel `low`; it is empty for a point that another finding
    covers. `included` says whether it counts (LUNA16: at least three readers); otherwise it is
    ignored. `outlined` is false where one shape stands for all readers, or for none: a sphere, a
    label of one's own. The bit of one that does not count only says what to ignore.
    """

    centre_mm: np.ndarray  # (3,) world, z, y, x
    diameter_mm: float
    readers: int
    included: bool
    low: np.ndarray  # (3,) int
    reader_bits: np.ndarray
    ratings: dict[str, float] = dataclasses.field(default_factory=dict)  # means over the readers
    outlined: bool = True

    @property
    def votes(self) -> np.ndarray:
        """uint8 (z, y, x): the number of readers whose outline covers each voxel of the box."""
        return np.bitwise_count(self.reader_bits)

    @property
    def box(self) -> tuple[slice, ...]:
        return tuple(
            slice(int(l), int(l) + n) for l, n in zip(self.low, self.reader_bits.shape, strict=True)
        )

    def outlines(self) -> list[np.ndarray]:
        """What each reader outlined who did, bool (z, y, x) of the box; none if not `outlined`."""
        masks = [(self.reader_bits >> reader & 1).astype(bool) for reader in range(READERS)]
        return [mask for mask in masks if mask.any()] if self.outlined else []


@dataclasses.dataclass(frozen=True, eq=False)
class Midline:
    """The plane between the left and the right half of a patient. Positions are z, y, x."""

    at_mm: np.ndarray  # (3,) a point of it
    left: np.ndarray  # (3,) unit vector, to the patient's left

    def left_mm(self, points_mm: ArrayLike) -> np.ndarray:
        """How far points (..., 3) lie on its left side; negative on its right."""
        return np.asarray((np.asarray(points_mm) - self.at_mm) @ self.left)


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """A CT on its own grid. All arrays are (z, y, x) of `grid.shape`.

    `warnings` are short clauses, without the file's name, of what a reader guessed or left out.
    `body` is the patient, and is given where no plausible lungs are known: it is searched whole.
    Where `sides_known` is false, the codes of `lungs` do not tell left from right.
    """

    series_uid: str
    grid: Grid
    hu: np.ndarray  # int16, Hounsfield units
    lungs: np.ndarray  # uint8: 0 outside, 3 and 4 the lungs (LUNA16's codes), 5 the trachea
    lungs_source: str = "computed"  # or the file that gave them
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    body: np.ndarray | None = None  # bool
    midline: Midline | None = None  # where it is known
    sides_known: bool = True

    @property
    def spacing_mm(self) -> np.ndarray:
        return self.grid.spacing_mm

    @property
    def origin_mm(self) -> np.ndarray:
        return self.grid.origin_mm

    @property
    def searched(self) -> np.ndarray:
        """bool: where nodules are looked for: the lungs, or the body; nowhere without either."""
        return (self.lungs == 3) | (self.lungs == 4) if self.body is None else self.body

    @property
    def lung_litres(self) -> float:
        voxels = np.count_nonzero((self.lungs == 3) | (self.lungs == 4))
        return float(voxels * np.prod(self.spacing_mm) * 1e-6)

    @property
    def votes(self) -> np.ndarray:
        """uint8: the number of readers whose outline covers each voxel, whatever counts."""
        votes = np.zeros(self.grid.shape, np.uint8)
        for finding in (f for f in self.findings if f.included or f.outlined):
            np.maximum(votes[finding.box], finding.votes, out=votes[finding.box])
        return votes

    @property
    def ignore(self) -> np.ndarray:
        """bool: covered by a finding that does not count, and by none that does."""
        return ignore_mask(self.grid.shape, self.findings)


def ignore_mask(shape: tuple[int, ...], findings: tuple[Finding, ...]) -> np.ndarray:
    """bool (z, y, x): covered by a finding that does not count, and by none that does."""
    ignore, counted = np.zeros(shape, bool), np.zeros(shape, bool)
    for finding in findings:
        target = counted if finding.included else ignore
        target[finding.box] |= finding.reader_bits > 0
    return ignore & ~counted
