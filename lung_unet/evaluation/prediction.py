"""What a model finds in a scan, on the scan's own grid."""

import dataclasses
from collections.abc import Callable
from itertools import zip_longest

import numpy as np

from lung_unet.data.lungs import LEFT, RIGHT
from lung_unet.data.scan import Scan
from lung_unet.data.volume import Volume, onto_source
from lung_unet.evaluation.candidates import (
    NEAR_MM,
    Candidate,
    find_regions,
    grown,
    mask_on_source,
)
from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.operating_point import OperatingPoint
from lung_unet.evaluation.second_stage import Opinion

SURE_MM = 20.0  # from the midline: a side is known where lungs are not
DRAWN = 50  # findings of a scan, the most probable: a model hardly trained finds thousands


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """One finding. Positions are z, y, x."""

    centre_mm: np.ndarray  # (3,) world, weighted by probability
    centre_voxel: np.ndarray  # (3,) the same in the scan's array, fractional
    diameter_mm: float  # of the sphere of equal volume, on the model's grid
    volume_mm3: float  # of its voxels on the scan's own grid
    probability: float  # of the region, see Candidate
    lung: str  # "left", "right", "outside" of the lungs, or "unknown"
    opinion: Opinion | None = None  # of the second stage, if there is one
    looked_at: bytes | None = None  # a PNG of what that looked at, of those that are drawn


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in a scan, most probable first. Arrays are (z, y, x) of the scan's grid.

    `outside` is what the model found too far from the lungs to be a finding; `labels` lack it.
    """

    scan: Scan
    probability: np.ndarray  # uint8, 255 stands for 1; 0 where the model did not look
    labels: np.ndarray  # uint16 or uint32: 1 in the voxels of the first finding, and so on; or 0
    detections: list[Detection]
    outside: list[Detection] = dataclasses.field(default_factory=list)


def predict_scan(
    predictor: Callable[[np.ndarray, np.ndarray], np.ndarray],
    scan: Scan,
    volume: Volume,
    point: OperatingPoint,
    second: SecondStage | None = None,
) -> Prediction:
    """The model's prediction of a scan; `volume` is what `make_volume` made of it."""
    values = predictor(volume.hu, volume.lungs)
    probability = np.zeros(scan.grid.shape, np.uint8)
    low, part = onto_source(values, volume.grid, scan.grid)
    probability[_box(low, low + part.shape)] = np.rint(np.multiply(part, 255, out=part), out=part)
    near, far = find_regions(values, volume, point.threshold, point.min_diameter_mm)
    labels, detections = _detect(near, values, scan, volume, point, second)
    outside = _detect(far, values, scan, volume, point, second)[1] if far else []
    if second:
        pictures = [second.picture(volume, d.centre_mm, large=True) for d in detections[:DRAWN]]
        detections = [
            dataclasses.replace(d, looked_at=picture)
            for d, picture in zip_longest(detections, pictures)
        ]
    return Prediction(scan, probability, labels, detections, outside)


def _detect(
    regions: list[Candidate],
    values: np.ndarray,
    scan: Scan,
    volume: Volume,
    point: OperatingPoint,
    second: SecondStage | None,
) -> tuple[np.ndarray, list[Detection]]:
    """Those of the regions that are findings: (labels on the scan's grid, detections)."""
    candidates, opinions = point.findings(regions), None
    if second:
        judged = second.findings(volume, regions, point)
        candidates, opinions = [c for c, _ in judged], [o for _, o in judged]
    labels, boxes = label_candidates(candidates, values, volume, point.threshold)
    detections = [
        Detection(
            centre_mm=c.centre_mm,
            centre_voxel=scan.grid.to_voxel(c.centre_mm),
            diameter_mm=c.diameter_mm,
            volume_mm3=float((labels[box] == number).sum() * np.prod(scan.spacing_mm)),
            probability=c.probability,
            lung=lung_of(labels[box] == number, box, scan),
            opinion=opinions[number - 1] if opinions else None,
        )
        for number, (c, box) in enumerate(zip(candidates, boxes, strict=True), 1)
    ]
    return labels, detections


def label_candidates(
    candidates: list[Candidate], probability: np.ndarray, volume: Volume, threshold: float
) -> tuple[np.ndarray, list[tuple[slice, ...]]]:
    """(labels, boxes): (z, y, x) on the scan's own grid, and where each number's voxels are.

    The labels are uint16, or uint32 where there are more candidates than that counts.
    A voxel of `mask_on_source` is labelled with the number (from 1) of the candidate that gives
    most of its probability. One too thin for the scan's grid keeps its middle voxel.
    """
    grid, source = volume.grid, volume.source
    labels = np.zeros(source.shape, np.uint16 if len(candidates) < 1 << 16 else np.uint32)
    highest = np.zeros(source.shape, np.float32)
    # The filter widens on a coarser grid; at twice its width from the box all it sees is 0.
    step = source.to_lps()[0].spacing_mm / grid.spacing_mm
    reach = np.ceil(2 * np.maximum(1, step)).astype(int)
    boxes = []
    for number, candidate in enumerate(candidates, 1):
        first, last = np.array([(s.start, s.stop) for s in candidate.box]).T
        low, high = np.maximum(0, first - reach), np.minimum(grid.shape, last + reach)
        values = np.zeros(high - low, np.float32)
        values[_box(first - low, last - low)] = probability[candidate.box] * candidate.mask
        start, part = onto_source(values, grid.crop(low, high), source)
        box = _box(start, start + part.shape)
        np.copyto(labels[box], number, where=part > highest[box])
        np.maximum(highest[box], part, out=highest[box])
        boxes.append(box)
    labels[~mask_on_source(probability, candidates, volume, threshold)] = 0
    for number, (candidate, box) in enumerate(zip(candidates, boxes, strict=True), 1):
        middle = np.rint(source.to_voxel(candidate.centre_mm)).astype(int)
        voxel = tuple(np.clip(middle, 0, np.array(source.shape) - 1))
        if not (labels[box] == number).any() and labels[voxel] == 0:
            labels[voxel] = number
    return labels, boxes


def lung_of(mask: np.ndarray, box: tuple[slice, ...], scan: Scan) -> str:
    """The lung that most voxels of a finding lie in, or else that is near: see `Detection.lung`.

    Where no plausible lungs are known, it must lie well on that side of the midline too, or the
    side is unknown. `mask` bool is of the scan's array [box].
    """
    counts = np.bincount(scan.lungs[box][mask], minlength=RIGHT + 1)
    if not counts[LEFT] + counts[RIGHT] and scan.body is None:
        reach = np.ceil(NEAR_MM / scan.spacing_mm).astype(int)
        counts = np.bincount(scan.lungs[grown(box, reach)].ravel(), minlength=RIGHT + 1)
    sides = set()
    if counts[LEFT] + counts[RIGHT]:
        sides.add("left" if counts[LEFT] >= counts[RIGHT] else "right")
    elif scan.body is None and scan.lungs.any():
        return "outside"
    if scan.body is not None and scan.midline is not None and mask.any():
        middle = np.argwhere(mask).mean(0) + [s.start for s in box]
        left_mm = scan.midline.left_mm(scan.grid.to_world(middle))
        sides.add("left" if left_mm > SURE_MM else "right" if left_mm < -SURE_MM else "unknown")
    return sides.pop() if len(sides) == 1 and scan.sides_known else "unknown"


def _box(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(l), int(h)) for l, h in zip(low, high, strict=True))
