"""Free-response ROC of nodule detection, by the rules of LUNA16's official evaluation.

Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of
pulmonary nodules in computed tomography images: the LUNA16 challenge", Medical Image Analysis 42
(2017); the rules' details are those of its script, noduleCADEvaluationLUNA16.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lung_unet.data.scan import Finding
from lung_unet.data.spheres import EXCLUDED_MM

FPS_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_MARKS = 100  # a scan
CONFIDENCE = 0.95
# Where resampled curves are read: finely enough to be drawn, with FPS_PER_SCAN as every 16th.
FINE_RATES = 2.0 ** np.linspace(-3, 3, 97)
COARSE = slice(None, None, 16)


@dataclasses.dataclass(frozen=True, eq=False)
class Froc:
    """How well marks find nodules. Without nodules every sensitivity is undefined, None."""

    scans: int
    nodules: int
    true_positives: int  # nodules found
    false_positives: int
    ignored_on_excluded_findings: int  # marks
    ignored_double_detections: int  # further marks on a nodule that is found
    curve: np.ndarray  # (2, n): false positives a scan, sensitivity; both rise from (0, 0)
    resamples: np.ndarray  # (bootstrap, 97): sensitivity of each resample at FINE_RATES

    @property
    def false_negatives(self) -> int:
        return self.nodules - self.true_positives

    @property
    def sensitivity(self) -> list[float | None]:
        """At FPS_PER_SCAN."""
        values = np.interp(FPS_PER_SCAN, *self.curve).tolist()
        return values if self.nodules else [None] * len(values)

    @property
    def cpm(self) -> float | None:
        """The competition performance metric: the mean of the seven sensitivities."""
        return float(np.interp(FPS_PER_SCAN, *self.curve).mean()) if self.nodules else None

    def to_json(self) -> dict[str, Any]:
        """As JSON. `bootstrap` is None where nothing was, or could be, resampled."""
        bootstrap = None
        if len(self.resamples):
            coarse = self.resamples[:, COARSE]
            bootstrap = {
                "resamples": len(coarse),
                **{name: value.tolist() for name, value in interval(coarse).items()},
                "cpm": {name: float(value) for name, value in interval(coarse.mean(1)).items()},
            }
        return {
            "cpm": self.cpm,
            "fps_per_scan": list(FPS_PER_SCAN),
            "sensitivity": self.sensitivity,
            "bootstrap": bootstrap,
            "scans": self.scans,
            "nodules": self.nodules,
            "true_positives": self.true_positives,
            "false_negatives": self.false_negatives,
            "false_positives": self.false_positives,
            "ignored_on_excluded_findings": self.ignored_on_excluded_findings,
            "ignored_double_detections": self.ignored_double_detections,
        }


def evaluate_marks(
    marks: Sequence[np.ndarray],
    nodules: Sequence[np.ndarray],
    excluded: Sequence[np.ndarray],
    bootstrap: int = 0,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> Froc:
    """The FROC of some scans' marks, with `bootstrap` resamples of the scans, or of their clusters
    (the number of each scan's, from 0).

    Each argument holds one array (n, 4) a scan, n = 0 included: a world position z, y, x in mm,
    then a mark's score (finite) or a finding's diameter in mm (negative where unknown). `excluded`
    are the findings that count neither as nodules nor as false positives. Resamples that draw no
    nodule have no sensitivity and are left out.
    """
    matches = [match(*scan) for scan in zip(marks, nodules, excluded, strict=True)]
    counts = np.array([len(scan) for scan in nodules])
    events = _sort(matches)
    resamples = []
    own = np.arange(len(counts)) if clusters is None else clusters
    for weights in draws(own, bootstrap, seed):
        if weights @ counts:
            resamples.append(np.interp(FINE_RATES, *_curve(events, counts, weights)))
    return Froc(
        scans=len(counts),
        nodules=int(counts.sum()),
        true_positives=sum(len(m.found) for m in matches),
        false_positives=sum(len(m.false) for m in matches),
        ignored_on_excluded_findings=sum(m.on_excluded for m in matches),
        ignored_double_detections=sum(m.double for m in matches),
        curve=_curve(events, counts, np.ones_like(counts)),
        resamples=np.reshape(resamples, (-1, len(FINE_RATES))),
    )


def draws(clusters: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """int (resamples, scans): how often each resample of the clusters draws each scan.

    `clusters` holds the number of each scan's cluster, 0 to n - 1: a resample draws n of them, with
    all their scans (Field & Welsh 2007, the cluster bootstrap).
    """
    rng = np.random.default_rng(seed)
    count = int(clusters.max(initial=-1)) + 1
    drawn = (rng.integers(count, size=count) for _ in range(resamples))
    weights = [np.bincount(own, minlength=count)[clusters] for own in drawn]
    return np.reshape(np.array(weights, int), (resamples, len(clusters)))


def finding_rows(findings: Sequence[Finding]) -> tuple[list[list[float]], list[list[float]]]:
    """(nodules, excluded) of a scan as `evaluate_marks` takes them."""
    nodules: list[list[float]] = []
    excluded: list[list[float]] = []
    for finding in findings:
        row = [*map(float, finding.centre_mm), float(finding.diameter_mm)]
        (nodules if finding.included else excluded).append(row)
    return nodules, excluded


def interval(samples: np.ndarray) -> dict[str, np.ndarray]:
    """`mean`, and `lower` and `upper` of the 95 % interval, of samples (n, ...) over n."""
    tail = (1 - CONFIDENCE) / 2
    ordered = np.sort(samples, axis=0)
    return {
        "mean": samples.mean(0),
        "lower": ordered[int(tail * len(samples))],
        "upper": ordered[int((1 - tail) * len(samples))],
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """What one scan's marks hit. Both arrays are scores."""

    found: np.ndarray  # of each nodule that was found, the highest among its marks
    false: np.ndarray  # of each mark that is a false positive
    on_excluded: int
    double: int


def match(marks: np.ndarray, nodules: np.ndarray, excluded: np.ndarray) -> Match:
    """One scan's marks against its findings; arrays as for `evaluate_marks`."""
    if len(marks) > MAX_MARKS:  # ties with the first mark over the limit go with it
        marks = marks[marks[:, 3] > np.sort(marks[:, 3])[-MAX_MARKS - 1]]
    scores = marks[:, 3]
    hits = within(marks, nodules)
    found = hits.any(0)
    best = np.where(hits, scores[:, None], -np.inf).max(0, initial=-np.inf)
    on_nodule = hits.any(1)
    on_excluded = within(marks, excluded).any(1) & ~on_nodule
    return Match(
        found=best[found],
        false=scores[~on_nodule & ~on_excluded],
        on_excluded=int(on_excluded.sum()),
        # a mark on two nodules finds both, so pairs are counted, not marks
        double=int(hits.sum() - found.sum()),
    )


def within(marks: np.ndarray, findings: np.ndarray) -> np.ndarray:
    """bool (marks, findings): the mark lies strictly within the finding's sphere."""
    z, y, x = np.moveaxis((marks[:, None, :3] - findings[:, :3]) ** 2, -1, 0)
    diameters = np.where(findings[:, 3] < 0, EXCLUDED_MM, findings[:, 3])
    # summed in the script's order: on the sphere itself the last bit decides
    return x + y + z < (diameters / 2) ** 2


@dataclasses.dataclass(frozen=True, eq=False)
class _Events:
    """The scans of all nodules found and false positives, and where the curve through them turns.

    A resample only weights the scans, so that sorting is done once for all of them.
    """

    scans: np.ndarray  # (n,) of each event, by falling score
    found_in: np.ndarray  # (m,) of those that are nodules
    all: np.ndarray  # (k,) events up to each turn, from 0
    found: np.ndarray  # (k,) nodules among them


def _sort(matches: list[Match]) -> _Events:
    scores = np.concatenate([s for m in matches for s in (m.found, m.false)])
    sizes = np.array([(len(m.found), len(m.false)) for m in matches])
    scan = np.repeat(np.arange(len(matches)), sizes.sum(1))
    hit = np.repeat(np.tile([True, False], len(matches)), sizes.ravel())
    order = np.argsort(-scores)
    scores, scan, hit = scores[order], scan[order], hit[order]
    # equal scores cannot be told apart: the curve goes straight from one score to the next
    ends = np.append(0, 1 + np.flatnonzero(np.diff(scores, append=-np.inf)))
    found = np.append(0, np.cumsum(hit))[ends]
    rises = np.diff(found) > 0
    turns = np.append(rises, True) | np.append(True, rises)
    return _Events(scan, scan[hit], ends[turns], found[turns])


def _curve(events: _Events, nodules: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Froc.curve of scans that count `weights` times each, with `nodules` in each."""
    true = np.append(0, np.cumsum(weights[events.found_in]))[events.found]
    false = np.append(0, np.cumsum(weights[events.scans]))[events.all] - true
    # Through the share of all false positives, as the script does: at exactly 1/8 or 8 a scan its
    # rounding decides which end of a step is read, and so whether a nodule counts.
    last = max(false[-1], 1)
    return np.stack([false / last * last / weights.sum(), true / max(weights @ nodules, 1)])
