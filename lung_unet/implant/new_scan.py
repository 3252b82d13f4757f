"""One new scan of a CT: nodules put in, then the acquisition, then what its readers outlined."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

from lung_unet.data.nodules import outline
from lung_unet.data.outlines import Mark, Region, grouped
from lung_unet.data.scan import READERS, Finding, Grid, Scan
from lung_unet.implant import lesion as lesions
from lung_unet.implant.noise import Noise
from lung_unet.implant.outline_pool import Shape
from lung_unet.implant.placement import Lungs, Place
from lung_unet.implant.scanner import Acquisition

DRAWN = 0.5  # share of a voxel that a reader's outline encloses, from which the voxel is inside
FAINTEST = 0.35  # where a slice shows less of a nodule, no reader would see it


@dataclasses.dataclass(frozen=True, eq=False)
class Implant:
    """A nodule as it lies in a new scan."""

    finding: Finding
    place: Place


@dataclasses.dataclass(frozen=True, eq=False)
class NewScan:
    """A new scan on its grid. `marks` are its readers', of implants and the CT's own nodules.

    `included` and `excluded` are findings for LUNA16's two tables. `unplaced` are the shapes that
    fit nowhere, or that thick slices would hide.
    """

    grid: Grid
    hu: np.ndarray
    lungs: np.ndarray
    marks: list[Mark]
    included: list[Finding]
    excluded: list[Finding]
    implants: list[Implant]
    unplaced: int


def make(
    rng: np.random.Generator,
    scan: Scan,
    lungs: Lungs,
    noise: Noise,
    acquisition: Acquisition,
    shapes: Sequence[Shape],
) -> NewScan:
    """A new scan of a CT, with nodules of these shapes where they fit."""
    hu = scan.hu.astype(np.float32)
    grid = acquisition.grid
    marks: list[Mark] = []
    places: dict[str, Place] = {}
    taken: list = []
    for number, shape in enumerate(shapes):
        grown = lesions.grow(rng, shape, scan.grid, noise.psf_mm)
        place = lungs.find(rng, grown, hu, taken)
        if place is None:
            continue
        name = f"implant {number}"
        drawn = _outlined(
            zip(grown.readers, place.lesion.coverage, strict=True),
            place.low, acquisition, shape.ratings, name,
        )  # fmt: skip
        shown = acquisition.view(place.lesion.agreed, place.low)[1].max(initial=0) >= FAINTEST
        if not shown or len(drawn) < len(grown.readers):
            taken.pop()
            continue
        marks += drawn
        places[name] = place
        lesions.insert(rng, place.lesion, hu[place.box], noise, scan.grid.spacing_mm)
    included: list[Finding] = []
    excluded: list[Finding] = []
    for finding in scan.findings:
        if finding.outlined and finding.reader_bits.any():
            marks += _outlined(
                ((r, (finding.reader_bits >> r & 1).astype(np.float32)) for r in range(READERS)),
                finding.low, acquisition, finding.ratings, "own",
            )  # fmt: skip
        elif grid.holds(finding.centre_mm):
            (included if finding.included else excluded).append(finding)
    implants = []
    for finding, members in grouped(marks, grid):
        (included if finding.included else excluded).append(finding)
        name = members[0].file
        if name in places:
            implants.append(Implant(finding, places[name]))
    return NewScan(
        grid, acquisition.image(hu, noise, rng), acquisition.labels(scan.lungs), marks, included,
        excluded, implants, len(shapes) - len(places),
    )  # fmt: skip


def _outlined(
    coverage: Iterable[tuple[int, np.ndarray]],
    low: np.ndarray,
    acquisition: Acquisition,
    ratings: dict[str, float],
    name: str,
) -> list[Mark]:
    """What each reader draws on the new scan around what covers voxels of the CT from `low` on."""
    masks = {}
    for reader, covered in coverage:
        at, share = acquisition.view(covered, low)
        mask = share >= min(DRAWN, share.max(initial=0))
        if share.any() and mask.any():
            masks[reader] = at, mask & (share > 0)
    marks = []
    for (reader, (at, mask)), rated in zip(masks.items(), _each(ratings, len(masks)), strict=True):
        regions = [
            Region(float(acquisition.grid.to_world([at[0] + z, 0, 0])[0]), points)
            for z in np.flatnonzero(mask.any(axis=(1, 2)))
            for points in _paths(mask[z], at[1:], acquisition.grid.shape[1:])
        ]
        if regions:
            marks.append(Mark(reader, "nodule", tuple(regions), rated, name))
    return marks


def _paths(mask: np.ndarray, at: np.ndarray, shape: tuple[int, ...]) -> Iterable[np.ndarray]:
    """Outlines (n, 2) of the parts of a mask; a part at the image's rim cannot be outlined."""
    labels, count = ndimage.label(mask)
    for part in range(1, count + 1):
        points = outline(labels == part) + at
        if (points >= 0).all() and (points < shape).all():
            yield points


def _each(ratings: dict[str, float], readers: int) -> list[dict[str, float]]:
    """Whole ratings of each reader, whose means are those given."""
    rated: list[dict[str, float]] = [{} for _ in range(readers)]
    for name, mean in ratings.items():
        low, more = divmod(round(mean * readers), max(readers, 1))
        for reader, own in enumerate(rated):
            own[name] = float(low + (reader < more))
    return rated
