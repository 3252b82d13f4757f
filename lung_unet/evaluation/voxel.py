"""Overlap of prediction and truth, by voxel and by nodule, ignored voxels left out."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import cc3d
import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from lung_unet.data.scan import ALL_READERS, Finding
from lung_unet.evaluation.surface import surface_distances

SURFACE = ("hd95_mm", "nsd_1mm", "nsd_2mm")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Voxels of a comparison."""

    hit: int = 0
    false_positive: int = 0
    missed: int = 0

    @property
    def dice(self) -> float | None:
        """None where both masks are empty."""
        return _ratio(2 * self.hit, 2 * self.hit + self.false_positive + self.missed)

    def metrics(self) -> dict[str, float | None]:
        """dice (which is F1), iou, precision, recall; None where nothing defines them."""
        return {
            "dice": self.dice,
            "precision": _ratio(self.hit, self.hit + self.false_positive),
            "recall": _ratio(self.hit, self.hit + self.missed),
            "f1": self.dice,
            "iou": _ratio(self.hit, self.hit + self.false_positive + self.missed),
        }

    def volumes(self, voxel_mm3: float) -> dict[str, float | None]:
        """True and predicted volume, and how much too large the prediction is.

        The error in % of the truth is None where there is no truth.
        """
        error = self.false_positive - self.missed
        share = _ratio(error, self.hit + self.missed)
        return {
            "volume_mm3": (self.hit + self.missed) * voxel_mm3,
            "predicted_mm3": (self.hit + self.false_positive) * voxel_mm3,
            "volume_error_mm3": error * voxel_mm3,
            "volume_error_percent": None if share is None else 100 * share,
        }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those values that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def count(prediction: np.ndarray, truth: np.ndarray, ignore: ArrayLike = False) -> Counts:
    """Voxels of bool volumes of one shape, outside `ignore`."""
    counted = np.logical_not(ignore)
    return Counts(
        int(np.count_nonzero(prediction & truth & counted)),
        int(np.count_nonzero(prediction & ~truth & counted)),
        int(np.count_nonzero(~prediction & truth & counted)),
    )


def truth_of(finding: Finding, readers: int) -> np.ndarray:
    """bool, of the finding's box: what that many agree on, or any drew if on nothing."""
    agreed = finding.votes >= readers
    return agreed if agreed.any() else finding.votes > 0


def agreed(findings: Iterable[Finding], readers: int) -> tuple[Finding, ...]:
    """The same findings, with the votes of all readers where `truth_of` has truth."""
    return tuple(
        dataclasses.replace(f, reader_bits=truth_of(f, readers) * np.uint8(ALL_READERS))
        if f.included else f
        for f in findings
    )  # fmt: skip


def truth_mask(shape: tuple[int, ...], findings: Iterable[Finding], readers: int) -> np.ndarray:
    """bool (z, y, x): the voxels of all findings that count, as `truth_of`."""
    truth = np.zeros(shape, bool)
    for finding in findings:
        if finding.included and finding.reader_bits.any():
            truth[finding.box] |= truth_of(finding, readers)
    return truth


@dataclasses.dataclass(frozen=True, eq=False)
class NoduleScore:
    """How one counted nodule was segmented.

    `regions` are the labels of the predicted regions that meet it. `truth` and `prediction`, bool,
    lie in the `box` of the scan that holds the nodule and these regions; other nodules' voxels and
    ignored ones are not in the prediction.
    """

    finding: Finding
    regions: tuple[int, ...]
    box: tuple[slice, ...]
    truth: np.ndarray
    prediction: np.ndarray
    spacing_mm: np.ndarray

    @property
    def found(self) -> bool:
        return bool(self.regions)

    @functools.cached_property
    def counts(self) -> Counts:
        return count(self.prediction, self.truth)

    @property
    def dice(self) -> float:
        return self.counts.dice or 0.0  # defined: a counted nodule has voxels

    @functools.cached_property
    def surface(self) -> dict[str, float | None]:
        """hd95_mm (None where the nodule is missed), nsd_1mm and nsd_2mm (then 0)."""
        distances = surface_distances(self.prediction, self.truth, self.spacing_mm)
        return {
            "hd95_mm": distances.hd95_mm(),
            "nsd_1mm": distances.surface_dice(1.0),
            "nsd_2mm": distances.surface_dice(2.0),
        }

    def readers(self) -> dict[str, float | None]:
        """The mean Dice of the prediction with each reader, and of each two readers.

        Only readers who outlined the nodule; None where none did (a sphere, a label of one's own)
        or, of two readers, where one did. A prediction as good as a reader has as much of the first
        as there is of the second.
        """
        outlines = self.finding.outlines()
        placed = (_placed(outline, self.finding.box, self.box) for outline in outlines)
        return {
            "reader_dice": mean(count(self.prediction, outline).dice for outline in placed),
            "readers_dice": mean(count(a, b).dice for a, b in itertools.combinations(outlines, 2)),
        }

    def metrics(self) -> dict[str, float | None]:
        """All metrics of the nodule, in mm on the scan's own grid; never NaN.

        A missed nodule has dice, iou, recall, f1, surface Dice and reader_dice 0, a volume error of
        -100%, and no precision and hd95_mm (None).
        """
        return {
            **self.counts.metrics(),
            **self.counts.volumes(float(np.prod(self.spacing_mm))),
            **self.surface,
            **self.readers(),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class ScanScore:
    """Scores of one scan. `labels` numbers the predicted regions; those in `false_positives` meet
    no counted nodule and lie mostly outside what is ignored."""

    counts: Counts
    nodules: tuple[NoduleScore, ...]
    labels: np.ndarray
    false_positives: tuple[int, ...]
    spacing_mm: np.ndarray

    def metrics(self) -> dict[str, float | None]:
        """Overlap and volumes of all voxels, surface metrics as means over the nodules.

        (A distance between the surfaces of all nodules and all false positives would tell how far
        these lie apart in the lungs.) hd95_mm is over the nodules found; None where there is none.
        """
        return {
            **self.counts.metrics(),
            **self.counts.volumes(float(np.prod(self.spacing_mm))),
            **{name: mean(n.surface[name] for n in self.nodules) for name in SURFACE},
        }


def score(
    prediction: np.ndarray,
    findings: tuple[Finding, ...],
    ignore: np.ndarray,
    readers: int,
    spacing_mm: ArrayLike,
) -> ScanScore:
    """Scores a predicted mask, bool (z, y, x) on the scan's own grid, against its findings.

    A nodule is compared with all predicted regions that meet it, without the voxels of other
    nodules; a missed nodule has Dice 0. So a region that spills far out costs, wherever it spills.
    `ignore` must not cover what counts (as `ignore_mask` does not).
    """
    labels = cc3d.connected_components(prediction, connectivity=26)
    boxes = ndimage.find_objects(labels)
    truth = truth_mask(prediction.shape, findings, readers)
    counted = [f for f in findings if f.included and f.reader_bits.any()]
    spacing = np.asarray(spacing_mm, float)
    nodules: list[NoduleScore] = []
    met: set[int] = set()
    for finding in counted:
        own = truth_of(finding, readers)
        regions = tuple(int(r) for r in np.unique(labels[finding.box][own]) if r)
        met.update(regions)
        box = _around([finding.box, *(boxes[r - 1] for r in regions)])
        own = _placed(own, finding.box, box)
        others = truth[box] & ~own
        predicted = np.isin(labels[box], regions) & ~others & ~ignore[box]
        nodules.append(NoduleScore(finding, regions, box, own, predicted, spacing))
    sizes = np.bincount(labels[prediction], minlength=1)
    ignored = np.bincount(labels[ignore], minlength=len(sizes))
    wrong = [r for r in range(1, len(sizes)) if r not in met and ignored[r] < 0.5 * sizes[r]]
    counts = count(prediction, truth, ignore)
    return ScanScore(counts, tuple(nodules), labels, tuple(wrong), spacing)


def _around(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The smallest box that holds all of some boxes."""
    return tuple(
        slice(min(s.start for s in sides), max(s.stop for s in sides))
        for sides in zip(*boxes, strict=True)
    )


def _placed(mask: np.ndarray, box: tuple[slice, ...], around: tuple[slice, ...]) -> np.ndarray:
    """A mask of a box, in another box that holds it."""
    placed = np.zeros([side.stop - side.start for side in around], bool)
    inside = zip(box, around, strict=True)
    placed[tuple(slice(b.start - a.start, b.stop - a.start) for b, a in inside)] = mask
    return placed
