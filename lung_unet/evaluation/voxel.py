"""Overlap of prediction and truth, by voxel and by nodule, ignored voxels left out."""

import dataclasses

import cc3d
import numpy as np

from lung_unet.data.scan import Finding


@dataclasses.dataclass(frozen=True)
class Counts:
    """Voxels of a comparison; counts of several scans add up."""

    hit: int = 0
    false_positive: int = 0
    missed: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.hit + other.hit,
            self.false_positive + other.false_positive,
            self.missed + other.missed,
        )

    def metrics(self) -> dict[str, float | None]:
        """dice (which is F1), iou, precision, recall; None where nothing defines them."""
        hit, predicted = self.hit, self.hit + self.false_positive
        true = self.hit + self.missed
        dice = _ratio(2 * hit, predicted + true)
        return {
            "dice": dice,
            "precision": _ratio(hit, predicted),
            "recall": _ratio(hit, true),
            "f1": dice,
            "iou": _ratio(hit, hit + self.false_positive + self.missed),
        }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def count(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray) -> Counts:
    """Voxels of bool volumes of one shape, outside `ignore`."""
    counted = ~ignore
    return Counts(
        int(np.count_nonzero(prediction & truth & counted)),
        int(np.count_nonzero(prediction & ~truth & counted)),
        int(np.count_nonzero(~prediction & truth & counted)),
    )


def truth_of(finding: Finding, consensus: int) -> np.ndarray:
    """bool, of the finding's box: what `consensus` readers agree on, or any drew if on nothing."""
    agreed = finding.votes >= consensus
    return agreed if agreed.any() else finding.votes > 0


@dataclasses.dataclass(frozen=True, eq=False)
class NoduleScore:
    """How one counted nodule was segmented; `regions` are the labels of those that meet it."""

    finding: Finding
    dice: float
    regions: tuple[int, ...]

    @property
    def found(self) -> bool:
        return bool(self.regions)


@dataclasses.dataclass(frozen=True, eq=False)
class ScanScore:
    """Scores of one scan. `labels` numbers the predicted regions; those in `false_positives` meet
    no counted nodule and lie mostly outside what is ignored."""

    counts: Counts
    nodules: tuple[NoduleScore, ...]
    labels: np.ndarray
    false_positives: tuple[int, ...]


def score(
    prediction: np.ndarray, findings: tuple[Finding, ...], ignore: np.ndarray, consensus: int
) -> ScanScore:
    """Scores a predicted mask, bool (z, y, x) on the scan's own grid, against its findings.

    A nodule's Dice compares it with all predicted regions that meet it, without the voxels of other
    nodules; a missed nodule has 0. So a region that spills far out costs, wherever it spills.
    """
    labels = cc3d.connected_components(prediction, connectivity=26)
    truth = np.zeros(prediction.shape, bool)
    counted = [f for f in findings if f.included and f.votes.any()]
    for finding in counted:
        truth[finding.box] |= truth_of(finding, consensus)
    sizes = np.bincount(labels.ravel())
    overlaps = np.bincount(labels[truth], minlength=len(sizes))
    ignored = np.bincount(labels[ignore], minlength=len(sizes))
    nodules: list[NoduleScore] = []
    met: set[int] = set()
    for finding in counted:
        own = truth_of(finding, consensus)
        inside = labels[finding.box][own]
        regions = tuple(int(r) for r in np.unique(inside) if r)
        met.update(regions)
        hit = int(np.count_nonzero(inside))
        predicted = sum(
            int(sizes[r] - overlaps[r] - ignored[r]) for r in regions
        ) + hit  # fmt: skip
        nodules.append(NoduleScore(finding, 2 * hit / (predicted + int(own.sum())), regions))
    wrong = [r for r in range(1, len(sizes)) if r not in met and ignored[r] < 0.5 * sizes[r]]
    return ScanScore(count(prediction, truth, ignore), tuple(nodules), labels, tuple(wrong))
