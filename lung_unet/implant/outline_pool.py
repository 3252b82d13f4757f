"""The shapes to implant: nodules as LIDC-IDRI's readers outlined them, without their CTs.

The XML counts in pixels and does not say how large they are: LIDC's median size is assumed.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lung_unet.data.outlines import Mark, consensus, findings
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

PIXEL_MM = 0.7  # LIDC's median; of 1,018 CTs 0.46 to 0.98
MARGIN = 64  # pixels around the outlines of a series, so that none touches the grid's end
SAME_SLICE_MM = 0.1  # LIDC's thinnest slices are 0.45 mm apart
MIN_DIAMETER_MM = 3.0  # LIDC's readers outlined no smaller ones


@dataclasses.dataclass(frozen=True, eq=False)
class Shape:
    """One nodule: which voxels (z, y, x) each reader outlined, as `Finding.reader_bits`."""

    series_uid: str
    number: int  # among the outlined findings of its series
    reader_bits: np.ndarray
    spacing_mm: np.ndarray
    readers: int
    diameter_mm: float
    ratings: dict[str, float]  # means over the readers


def part_of(series_uid: str, parts: int) -> int:
    """Which of so many disjoint parts a series belongs to, 0 to parts - 1: by its UID alone."""
    return int(hashlib.sha256(series_uid.encode()).hexdigest(), 16) % parts


def shapes_of(marks: Mapping[str, Sequence[Mark]], but: Iterable[str] = ()) -> list[Shape]:
    """The nodules of 3 mm or more of all series, `but` for some, in the order of their UIDs.

    Left out is what no volume can be made of: a single slice, or a slice missing in between.

    Raises:
      InputError: nothing is left.
    """
    left_out = set(but)
    shapes = [
        shape for uid in sorted(marks) if uid not in left_out for shape in _shapes(uid, marks[uid])
    ]
    if not shapes:
        raise InputError(
            "--lidc_xml, --outlines: no outlined nodule is left to implant; give LIDC-IDRI's XML, "
            "or a larger part of it"
        )
    return shapes


def _shapes(uid: str, marks: Sequence[Mark]) -> Iterable[Shape]:
    drawn = [mark for mark in marks if mark.kind == "nodule"]
    heights = np.unique([region.z_mm for mark in drawn for region in mark.regions])
    steps = np.diff(heights)
    steps = steps[steps > SAME_SLICE_MM]
    if not len(steps):
        return
    points = np.concatenate([region.points for mark in drawn for region in mark.regions])
    size = points.max(axis=0) + MARGIN
    grid = Grid(
        (int(np.ptp(heights) / steps.min()) + 2, int(size[0]), int(size[1])),
        np.array([steps.min(), PIXEL_MM, PIXEL_MM]),
        np.array([heights[0], 0.0, 0.0]),
    )
    for number, finding in enumerate(findings(drawn, grid)):
        agreed = consensus(finding.votes, finding.readers)
        used = np.flatnonzero(agreed.any(axis=(1, 2)))
        whole = len(used) > 1 and len(used) == np.ptp(used) + 1
        if whole and finding.diameter_mm >= MIN_DIAMETER_MM:
            yield Shape(
                uid, number, finding.reader_bits, grid.spacing_mm, finding.readers,
                finding.diameter_mm, finding.ratings,
            )  # fmt: skip
