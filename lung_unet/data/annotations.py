"""LUNA16's list of nodules over the readers' outlines: what counts, and where the two differ."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lung_unet.data.scan import Finding, Grid
from lung_unet.data.spheres import covers, sphere
from lung_unet.data.tables import Mark

MIN_READERS = 3  # LUNA16 counts a nodule that three of the four readers outlined


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """A row of annotations.csv and the finding it was matched to, by its place in the scan's.

    Without a finding, the row became a sphere. Without a row, it is a finding of three readers or
    more that LUNA16's list lacks.
    """

    mark: Mark | None
    finding: int | None


def apply_list(
    findings: Sequence[Finding], annotated: Sequence[Mark], grid: Grid, min_readers: int
) -> tuple[list[Finding], list[Match]]:
    """The findings with LUNA16's list applied, and each row's and each unlisted finding's match.

    A listed finding has the readers' outline, and position and diameter of its row; a row without
    an outline is a sphere, after the others. What `MIN_READERS` outlined and is not listed does
    not count, unless `min_readers` is lower, which asks for more than LUNA16's list.
    """
    applied = list(findings)
    outlined = _matched(findings, annotated, min(min_readers, MIN_READERS), grid)
    matches = []
    for row, mark in enumerate(annotated):
        index = outlined.get(row)
        if index is None:
            applied.append(sphere(mark.centre_mm, mark.diameter_mm, grid, included=True))
        else:
            applied[index] = dataclasses.replace(
                applied[index], centre_mm=mark.centre_mm, diameter_mm=mark.diameter_mm
            )
        matches.append(Match(mark, index))
    for number, finding in enumerate(findings):
        drawn = finding.readers >= MIN_READERS and finding.reader_bits.any()
        if drawn and number not in outlined.values():
            if min_readers >= MIN_READERS:
                applied[number] = dataclasses.replace(finding, included=False)
            matches.append(Match(None, number))
    return applied, matches


def _matched(
    findings: Sequence[Finding], marks: Sequence[Mark], min_readers: int, grid: Grid
) -> dict[int, int]:
    """The outlined finding of each mark that has one: nearest pairs first, one to one, of which the
    centres lie within the larger radius, or the mark's on the outline (a reader may have drawn two
    lesions as one, which moves the centre)."""
    pairs = []
    for row, mark in enumerate(marks):
        for number, finding in enumerate(findings):
            distance = float(np.linalg.norm(finding.centre_mm - mark.centre_mm))
            near = distance <= max(finding.diameter_mm, mark.diameter_mm) / 2
            near = near or covers(finding, mark.centre_mm, grid)
            if near and finding.readers >= min_readers and finding.reader_bits.any():
                pairs.append((distance, row, number))
    matched: dict[int, int] = {}
    for _, row, number in sorted(pairs):
        if row not in matched and number not in matched.values():
            matched[row] = number
    return matched
