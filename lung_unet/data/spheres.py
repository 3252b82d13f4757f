"""Findings without an outline: a place and a diameter, as voxels."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lung_unet.data.scan import ALL_READERS, READERS, Finding, Grid

EXCLUDED_MM = 10.0  # LUNA16's evaluation takes this diameter where none is given


def sphere(centre_mm: np.ndarray, diameter_mm: float, grid: Grid, included: bool) -> Finding:
    """A finding whose outline is not known: a ball, of all readers if it counts, else of none.

    It covers the voxel nearest to the centre at least, so that no nodule falls between slices.
    """
    radius = diameter_mm / 2
    centre = grid.to_voxel(centre_mm)
    reach = radius / grid.spacing_mm
    low = np.maximum(0, np.floor(centre - reach).astype(int))
    high = np.minimum(grid.shape, np.ceil(centre + reach).astype(int) + 1)
    offsets = (np.arange(l, h) for l, h in zip(low, high, strict=True))
    axes = [(o - c) * s for o, c, s in zip(offsets, centre, grid.spacing_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    distance = z**2 + y**2 + x**2
    inside = distance <= max(radius**2, distance.min())
    return Finding(
        centre_mm,
        diameter_mm,
        readers=READERS if included else 0,
        included=included,
        low=low,
        reader_bits=inside * np.uint8(ALL_READERS if included else 1),
        outlined=False,
    )


def excluded(centre_mm: np.ndarray, diameter_mm: float, grid: Grid) -> Finding:
    """A finding that does not count, given by a point, without voxels; FROC leaves it out."""
    low = np.rint(grid.to_voxel(centre_mm)).astype(int)
    none = np.zeros((0, 0, 0), np.uint8)
    return Finding(centre_mm, diameter_mm, 0, False, low, none, outlined=False)


def ignored(findings: Sequence[Finding], grid: Grid) -> list[Finding]:
    """The same findings, points as balls that are ignored.

    Where a finding covers a point, that one says what is ignored there, or nodule: the point is
    left without voxels.
    """
    drawn = [finding for finding in findings if finding.reader_bits.any()]

    def ball(point: Finding) -> Finding:
        if point.reader_bits.any() or any(covers(f, point.centre_mm, grid) for f in drawn):
            return point
        diameter = point.diameter_mm if point.diameter_mm >= 0 else EXCLUDED_MM
        made = sphere(point.centre_mm, diameter, grid, included=False)
        return dataclasses.replace(
            point, low=made.low, reader_bits=made.reader_bits, outlined=False
        )

    return [ball(finding) for finding in findings]


def covers(finding: Finding, point_mm: np.ndarray, grid: Grid) -> bool:
    """Whether the voxel nearest to a world position (z, y, x) mm is one of the finding's."""
    inside = np.rint(grid.to_voxel(point_mm)).astype(int) - finding.low
    bits = finding.reader_bits
    return bool(((inside >= 0) & (inside < bits.shape)).all() and bits[tuple(inside)])
