"""A finished second stage, opened: what it says of a scan's marks, of a split, and of a finding."""

import base64
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lung_unet.data.manifest import Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.data.volume import Volume
from lung_unet.evaluation.attribution_map import draw_attribution
from lung_unet.evaluation.candidates import Candidate
from lung_unet.evaluation.classifier import CandidateClassifier
from lung_unet.evaluation.froc import finding_rows, within
from lung_unet.evaluation.operating_point import OperatingPoint
from lung_unet.evaluation.pictures import MAX_FALSE_POSITIVES
from lung_unet.evaluation.resume import each_scan, saved
from lung_unet.evaluation.second_stage import Opinion, pooled
from lung_unet.files import write_text
from lung_unet.workdir import drawn_alone

NAME = "second_stage.json"
FALSE = "False positive"


@dataclasses.dataclass(frozen=True, eq=False)
class SecondStage:
    """A classifier, how much it weighs beside the segmentation, and what it was made with."""

    classifier: CandidateClassifier
    weight: float
    rated: bool  # whether readers' ratings of malignancy taught it
    settings: dict
    finding_threshold: float | None = None  # of both stages' score; None: the segmentation's counts
    segmentation: dict | None = None  # what weight and threshold were chosen beside; as `beside`

    def __call__(
        self, volume: Volume, centres_mm: list[np.ndarray], probability: list[float]
    ) -> list[Opinion]:
        """Of findings at world positions (z, y, x) mm, with the segmentation's probability."""
        second, malignancy = self.classifier(volume, centres_mm)
        scores = pooled(np.array(probability, float), second, self.weight)
        return [
            Opinion(float(p), float(m) if self.rated else None, float(score))
            for p, m, score in zip(second, malignancy, scores, strict=True)
        ]

    def findings(
        self, volume: Volume, regions: list[Candidate], point: OperatingPoint
    ) -> list[tuple[Candidate, Opinion]]:
        """Which regions, of those above the mask's threshold, are in it, and what is said of them.

        `point` decides where no threshold of both stages' score was chosen.
        """
        first = [region.probability for region in regions]
        opinions = self(volume, [region.centre_mm for region in regions], first)
        if self.finding_threshold is None:
            kept = point.findings(regions)
            return [(r, o) for r, o in zip(regions, opinions, strict=True) if r in kept]
        return [
            (region, opinion)
            for region, opinion in zip(regions, opinions, strict=True)
            if opinion.score > self.finding_threshold
        ]

    def beside(self, members: Sequence[dict], point: OperatingPoint) -> "SecondStage":
        """Itself, for the segmentation that its threshold was chosen with.

        Beside another checkpoint, other thresholds or several networks its threshold means nothing:
        then, as a line says, the segmentation's own decides what is a finding. `members` are those
        of resume.py:member.
        """
        tuned = self.segmentation
        if tuned and "config" in tuned:
            tuned = tuned | {"config": drawn_alone(tuned["config"])}
        if [tuned] == [own | vars(point) for own in members]:
            return self
        print(
            "second stage: was not tuned beside this segmentation and its thresholds; it scores, "
            "and the segmentation alone decides what is a finding"
        )
        return dataclasses.replace(self, finding_threshold=None)

    @property
    def decides(self) -> dict[str, Any]:
        """All that its findings depend on, as JSON."""
        return {
            "weight": self.weight,
            "finding_threshold": self.finding_threshold,
            "settings": self.settings,
        }

    def picture(self, volume: Volume, centre_mm: np.ndarray, large: bool = False) -> bytes:
        """A PNG of what the classifier looked at, as `draw_attribution`."""
        return draw_attribution(*self.classifier.attribution(volume, centre_mm), large)

    def judge_split(
        self,
        dataset: Dataset,
        split: str,
        marks: list[dict],
        folder: pathlib.Path,
        settings: dict,
        pictures: bool = False,
    ) -> list[dict]:
        """Of each scan of a split what `second_stage.measure` takes, and pictures if asked for.

        `marks` are {"series_uid", "marks"} of its scans, rows z, y, x, probability or None; results
        are kept in the folder while `settings`, that the marks depend on, and the classifier stay.
        """
        own = {scan["series_uid"]: scan["marks"] for scan in marks}
        return each_scan(
            dataset,
            split,
            folder,
            {
                "marks": settings,
                "second_stage": self.settings,
                "weight": self.weight,
                "pictures": pictures,
            },
            lambda record: self._judge(record, own[record.series_uid], pictures),
            f"second stage, {split}",
        )

    def _judge(self, record: ScanRecord, marks: list[list], drawn: bool) -> dict[str, Any]:
        rows = np.array(marks, float).reshape(-1, 4)
        opinions = self(record.volume, list(rows[:, :3]), rows[:, 3].tolist())
        nodules, excluded = finding_rows(record.findings)
        hits = within(rows, np.reshape(nodules, (-1, 4)))
        ignored = within(rows, np.reshape(excluded, (-1, 4))).any(1)
        scores = np.array([o.score for o in opinions])
        malignancy, pictures = [], []

        def picture(number: int, title: str) -> None:
            if not drawn:  # each takes the gradient of many steps
                return
            png = self.picture(record.volume, rows[number, :3])
            pictures.append(
                {
                    "series_uid": record.series_uid,
                    "title": title,
                    "false": title == FALSE,
                    **opinions[number]._asdict(),
                    "png": base64.b64encode(png).decode(),
                }
            )

        counted = [f for f in record.findings if f.included]
        for finding, on in zip(counted, hits.T, strict=True):
            if not on.any():
                continue
            best = int(np.argmax(np.where(on, scores, -1)))
            rating = finding.ratings.get("malignancy")
            predicted = opinions[best].malignancy
            if rating is not None and predicted is not None:
                malignancy.append([predicted, rating])
            said = "not rated" if rating is None else f"rated {rating:.1f}"
            picture(best, f"Nodule of {finding.diameter_mm:.1f} mm, {said}")
        false = np.flatnonzero(~hits.any(1) & ~ignored)
        for number in false[np.argsort(-scores[false])][:MAX_FALSE_POSITIVES].tolist():
            picture(number, FALSE)
        return {
            "series_uid": record.series_uid,
            "marks": marks,
            "nodules": nodules,
            "excluded": excluded,
            "opinions": [[o.nodule_probability, o.malignancy] for o in opinions],
            "malignancy": malignancy,
            "pictures": pictures,
        }


def identity_of(workdir: pathlib.Path, config: ConfigDict, data: str, step: int) -> dict:
    """All that the opinions of a classifier's checkpoint depend on, as JSON."""
    return {
        "data": data,
        "fold": config.data.fold,
        "step": step,
        "checkpoint": saved(workdir / "checkpoints" / str(step)),
        "window_hu": list(config.data.window_hu),
        "attribution_steps": config.evaluation.attribution_steps,
    }


def store(workdir: pathlib.Path, second: SecondStage, cpm: float | None) -> None:
    """Keeps what was chosen on the validation split, and the CPM there."""
    entry = {
        "weight": second.weight,
        "finding_threshold": second.finding_threshold,
        "rated": second.rated,
        "segmentation": second.segmentation,
        "cpm": cpm,
        "settings": second.settings,
    }
    write_text(workdir / NAME, json.dumps(entry, indent=1, allow_nan=False))
