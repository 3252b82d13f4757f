"""What readers drew, as voxels, and the findings that their marks amount to.

Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative
(IDRI): a completed reference database of lung nodules on CT scans", Med. Phys. 38(2):915-931, 2011.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from lung_unet.data.scan import READERS, Finding, Grid
from lung_unet.errors import InputError

POINT_DISTANCE_MM = 3.0  # what is marked by a point is smaller, or its centre is vague
UNKNOWN_DIAMETER_MM = -1.0  # as LUNA16's tables write it
LARGEST_BOX = 2**28  # voxels; as many as a whole scan of 1,024 slices of 512 x 512


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """An outline in the slice at `z_mm` (world); `points` (n, 2) int are its y, x pixels in order.

    Where not `included` it encloses a hole, which is not part of the nodule.
    """

    z_mm: float
    points: np.ndarray
    included: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Mark:
    """One thing that one reader marked; a point is a region of one pixel."""

    reader: int
    kind: str  # "nodule" (3 mm or more, outlined), "small nodule" or "non-nodule" (points)
    regions: tuple[Region, ...]
    ratings: dict[str, float]
    file: str  # that holds it, for messages


def enclosed(points: np.ndarray) -> np.ndarray:
    """Pixels (m, 2) int that an outline, (n, 2) int pixels in order, encloses.

    A reader's outline lies just outside the nodule (Armato et al.), so its pixels do not belong.
    Where two consecutive pixels are no neighbours, the line between them closes the outline.
    """
    low, high = points.min(axis=0) - 1, points.max(axis=0) + 2
    free = np.ones(high - low, bool)
    free[tuple((points - low).T)] = False
    inside = _holes(free)
    following = np.roll(points, -1, axis=0)
    steps = np.abs(following - points).max(axis=1)
    for i in np.flatnonzero(steps > 1):
        line = np.linspace(points[i], following[i], steps[i] + 1) - low
        free[tuple(np.rint(line).astype(int).T)] = False
    if steps.max() > 1:
        inside |= _holes(free)
    return np.argwhere(inside) + low


def _holes(free: np.ndarray) -> np.ndarray:
    regions, _ = ndimage.label(free)  # numbered in memory order: the corner, outside, is in 1
    return regions > 1


def consensus(votes: np.ndarray, readers: int) -> np.ndarray:
    """bool: the voxels that at least half of the readers of a finding outlined.

    All that any outlined where there are none, as where a session beyond the fourth joins what the
    others drew apart.
    """
    agreed = 2 * votes >= readers
    return agreed if agreed.any() else votes > 0


def findings(marks: Sequence[Mark], grid: Grid, min_readers: int = 3) -> list[Finding]:
    """Findings of one scan on its own grid; those outlined by `min_readers` or more are included.

    Outlines are one finding where they share a voxel, and so on in a chain; a reader who outlined
    it in two pieces counts once. (LIDC's files do not say which marks of different readers are of
    one nodule. LUNA16 joins those closer than the sum of their radii (Setio et al., Med. Image
    Anal. 42:1-13, 2017), pylidc those whose outlines are closer than a threshold.) A reader's bit
    is the number of the reading session. A few series hold more sessions than a scan had readers:
    of a finding's sessions the first four count, in order where a number is too large for a bit.
    `centre_mm` and `diameter_mm` (of the sphere of equal volume) are those of the voxels that at
    least half of the finding's readers outlined, and `ratings` are means over these readers.

    A point within 3 mm of an outlined voxel says nothing new and is left out. Other points are one
    finding where they lie within 3 mm, in a chain: no votes, diameter -1, never included.

    Raises:
      InputError: all marks lie outside the scan (if only some do, `findings_and_losses` says so;
        half a voxel is tolerated), or its slices are not axial.
    """
    return findings_and_losses(marks, grid, min_readers)[0]


def findings_and_losses(
    marks: Sequence[Mark], grid: Grid, min_readers: int = 3
) -> tuple[list[Finding], tuple[str, ...]]:
    """`findings`, and what of the marks they leave out, as `Scan.warnings` has it.

    Left out are outlines and points outside the scan, and sessions beyond a finding's fourth.
    """
    placed, outside = _place_all(marks, grid)
    groups = _grouped(placed, grid, min_readers)
    losses = []
    if outside:
        total = sum(len(mark.regions) for mark in marks)
        low, high = min(r.z_mm for r in outside), max(r.z_mm for r in outside)
        losses.append(
            f"{len(outside)} of {total} outlines and points of the readers lie outside the scan "
            f"and are left out, at z {low:g} to {high:g} mm"
        )
    crowded = [len({m.reader for m in own}) for f, own in groups if f.reader_bits.size]
    if more := [count for count in crowded if count > READERS]:
        losses.append(
            f"{len(more)} findings have outlines of {max(more)} reading sessions; the first "
            f"{READERS} of each count"
        )
    return [finding for finding, _ in groups], tuple(losses)


@dataclasses.dataclass(frozen=True, eq=False)
class _Placed:
    """A mark on the scan's grid."""

    mark: Mark
    voxels: np.ndarray  # (n,) int64, flat and ascending; empty for a point
    centre_mm: np.ndarray  # (3,) world, z, y, x: the mean of the pixels that the file lists


def grouped(
    marks: Sequence[Mark], grid: Grid, min_readers: int = 3
) -> list[tuple[Finding, list[Mark]]]:
    """`findings`, each with the marks that it consists of."""
    return _grouped(_place_all(marks, grid)[0], grid, min_readers)


def _grouped(
    placed: list[_Placed], grid: Grid, min_readers: int
) -> list[tuple[Finding, list[Mark]]]:
    outlines = [p for p in placed if p.voxels.size]
    points = [p for p in placed if not p.voxels.size]
    if outlines and points:
        covered = _unravel(np.unique(np.concatenate([o.voxels for o in outlines])), grid)
        distance_mm, _ = cKDTree(grid.to_world(covered)).query([p.centre_mm for p in points])
        points = [p for p, d in zip(points, distance_mm, strict=True) if d > POINT_DISTANCE_MM]
    groups = [(_outlined(group, grid, min_readers), group) for group in _overlapping(outlines)]
    groups += [(_pointed(group, grid), group) for group in _neighbouring(points)]
    return [(finding, [p.mark for p in group]) for finding, group in groups]


def _place_all(marks: Sequence[Mark], grid: Grid) -> tuple[list[_Placed], list[Region]]:
    """The marks on the grid, and their regions that lie outside of it."""
    if marks and not np.allclose(np.abs(grid.direction[0]), (1, 0, 0), atol=1e-3):
        raise InputError(
            f"{marks[0].file}: its scan's slices are not axial: give the scan as it was read"
        )
    placed: list[_Placed] = []
    outside: list[Region] = []
    for mark in marks:
        slices, inside = [], []
        for region in mark.regions:
            z = np.rint(grid.to_voxel(np.array([region.z_mm, *grid.origin_mm[1:]]))[0])
            low, high = (z, *region.points.min(axis=0)), (z, *region.points.max(axis=0))
            if np.all(np.array(low) >= 0) and np.all(np.array(high) < grid.shape):
                inside.append(region)
                slices.append(int(z))
            else:
                outside.append(region)
        if inside:
            placed.append(_place(mark, inside, slices, grid))
    if outside and not placed:
        raise InputError(
            f"{marks[0].file}: the outline at z = {outside[0].z_mm:g} mm and all others lie "
            "outside the scan: check the series"
        )
    return placed, outside


def _place(mark: Mark, regions: list[Region], slices: list[int], grid: Grid) -> _Placed:
    flat: dict[bool, list[np.ndarray]] = {True: [np.zeros(0, np.int64)], False: []}
    for z, region in zip(slices, regions, strict=True):
        y, x = enclosed(region.points).T
        flat[region.included].append(np.ravel_multi_index((z, y, x), grid.shape))
    voxels = np.unique(np.concatenate(flat[True]))
    if flat[False]:
        voxels = np.setdiff1d(voxels, np.concatenate(flat[False]), assume_unique=True)
    drawn = [np.insert(r.points, 0, z, axis=1) for z, r in zip(slices, regions, strict=True)]
    return _Placed(mark, voxels, grid.to_world(np.concatenate(drawn).mean(axis=0)))


def _unravel(voxels: np.ndarray, grid: Grid) -> np.ndarray:
    return np.stack(np.unravel_index(voxels, grid.shape), axis=-1)


def _components(graph: sparse.spmatrix, members: list[_Placed]) -> list[list[_Placed]]:
    count, label = connected_components(graph, directed=False)
    return [[members[i] for i in np.flatnonzero(label == group)] for group in range(count)]


def _overlapping(outlines: list[_Placed]) -> list[list[_Placed]]:
    if not outlines:
        return []
    sizes = [o.voxels.size for o in outlines]
    _, column = np.unique(np.concatenate([o.voxels for o in outlines]), return_inverse=True)
    row = np.repeat(np.arange(len(outlines)), sizes)
    covers = sparse.csr_matrix((np.ones(len(row), np.int32), (row, column)))
    return _components(covers @ covers.T, outlines)


def _neighbouring(points: list[_Placed]) -> list[list[_Placed]]:
    if not points:
        return []
    pairs = cKDTree([p.centre_mm for p in points]).query_pairs(
        POINT_DISTANCE_MM, output_type="ndarray"
    )
    shape = (len(points), len(points))
    return _components(sparse.coo_matrix((np.ones(len(pairs)), pairs.T), shape), points)


def _outlined(group: list[_Placed], grid: Grid, min_readers: int) -> Finding:
    by_reader: dict[int, list[_Placed]] = {}
    for placed in group:
        by_reader.setdefault(placed.mark.reader, []).append(placed)
    sessions = sorted(by_reader)[:READERS]
    covered = [
        _unravel(np.unique(np.concatenate([p.voxels for p in by_reader[session]])), grid)
        for session in sessions
    ]
    low = np.min([c.min(axis=0) for c in covered], axis=0)
    shape = np.max([c.max(axis=0) for c in covered], axis=0) - low + 1
    if np.prod(shape) > LARGEST_BOX:
        raise InputError(
            f"{group[0].mark.file}: a nodule of {' x '.join(map(str, shape))} voxels: "
            "check its imageZposition, xCoord and yCoord"
        )
    bits = sessions if sessions[-1] < READERS else range(len(sessions))
    reader_bits = np.zeros(shape, np.uint8)
    for bit, voxels in zip(bits, covered, strict=True):
        reader_bits[tuple((voxels - low).T)] |= 1 << bit
    readers = len(sessions)
    agreed = np.argwhere(consensus(np.bitwise_count(reader_bits), readers)) + low
    volume_mm3 = len(agreed) * np.prod(grid.spacing_mm)
    return Finding(
        centre_mm=grid.to_world(agreed.mean(axis=0)),
        diameter_mm=float(2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)),
        readers=readers,
        included=readers >= min_readers,
        low=low,
        reader_bits=reader_bits,
        ratings=_mean([_mean([p.mark.ratings for p in by_reader[s]]) for s in sessions]),
    )


def _pointed(group: list[_Placed], grid: Grid) -> Finding:
    centre_mm = np.mean([p.centre_mm for p in group], axis=0)
    return Finding(
        centre_mm=centre_mm,
        diameter_mm=UNKNOWN_DIAMETER_MM,
        readers=min(len({p.mark.reader for p in group}), READERS),
        included=False,
        low=np.rint(grid.to_voxel(centre_mm)).astype(int),
        reader_bits=np.zeros((0, 0, 0), np.uint8),
    )


def _mean(ratings: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for given in ratings for name in given)
    return {n: float(np.mean([given[n] for given in ratings if n in given])) for n in names}
