"""The candidates of a split, what they are, and the crops around them to train on.

Candidates are the marks of a segmentation run (`config.candidates.workdir`), as its FROC has them
but down to `config.candidates.threshold`, and the rows of LUNA16's candidates.csv
(`config.candidates.csv`). A mark is on a nodule by LUNA16's rule. Left out of training are marks on
findings that do not count, and rows whose class the dataset's findings contradict. Training also
sees the nodules themselves, wherever the marks are.
"""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lung_unet import workdir as runs
from lung_unet.data.crops import KINDS, NOT_RATED, Crop, crop_size, cut, shard_of, write_crops
from lung_unet.data.labels import agreement
from lung_unet.data.manifest import Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.data.scan import Finding
from lung_unet.data.tables import Listed, read_candidates
from lung_unet.errors import InputError
from lung_unet.evaluation.candidates import VERSION, find_candidates, marks_of
from lung_unet.evaluation.ensemble import Predict
from lung_unet.evaluation.froc import finding_rows, within
from lung_unet.evaluation.operating_point import operating_point
from lung_unet.evaluation.operating_search import region_voxels
from lung_unet.evaluation.resume import each_scan, member
from lung_unet.files import write_text
from lung_unet.train.classification import FOLDER

TRAINED = ("train", "validation")  # the splits that crops are cut of


class Found(NamedTuple):
    """A candidate: where (z, y, x) mm, the segmentation's probability, and what a list calls it."""

    centre_mm: np.ndarray
    probability: float | None
    nodule: bool | None = None  # None: LUNA16's rule says
    voxels: list[int] | None = None  # of a region of the mask: in nodules, and elsewhere


class Seen(NamedTuple):
    """The candidates of a scan, and the voxels of all its nodules where voxels were counted."""

    found: list[Found]
    truth: int | None = None


Finder = Callable[[ScanRecord, bool], Seen]  # whether voxels are to be counted
Restore = Callable[[pathlib.Path, ConfigDict], tuple[Predict, int]]


class Collector:
    """Finds the candidates of the splits of a dataset, and keeps them in WORKDIR/candidates.

    `restore` gives the predictor of a segmentation run's workdir, and its checkpoint's step.

    Raises:
      InputError: no candidates are asked for; the segmentation run is missing, not scored, or of
        another dataset or fold; candidates.csv is malformed, or of other scans.
    """

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, dataset: Dataset, restore: Restore
    ):
        c = config.candidates
        if not 0 < c.threshold < 1 or c.others < 1 or c.jitter < 0:
            raise InputError(
                "config.candidates: threshold must lie between 0 and 1, others be at least 1, and "
                "jitter at least 0"
            )
        self._config, self._dataset = config, dataset
        self._folder = workdir / FOLDER
        sizes = {name: c[name] for name in ("threshold", "others", "jitter")}
        self.settings = {
            "candidates": sizes, "patch": list(config.data.patch),
            "data": runs.identity(dataset), "fold": config.data.fold, "version": VERSION,
        }  # fmt: skip
        self._finders: list[Finder] = []
        if c.workdir:
            self._finders.append(self._open_segmentation(pathlib.Path(c.workdir), restore))
        if c.csv:
            self._finders.append(self._open_table(pathlib.Path(c.csv)))
        if not self._finders:
            raise InputError("config.candidates: give a segmentation workdir, or a csv")
        self._check(workdir)

    def __call__(self, split: str) -> list[dict]:
        """Of each scan of a split {"series_uid", "marks", "nodules", "excluded", "crops"}.

        marks: rows z, y, x, probability (None where a list gave them), of the segmentation if there
        is one; nodules and excluded as FROC takes them; crops: how many were cut of each kind;
        voxels: of each mark on a region of the mask, as `region_voxels` has them (else None);
        truth: voxels of all nodules (None where a list gave the marks). Both are counted on the
        validation split alone, where they choose a threshold.

        Raises:
          InputError: crops that were cut before are gone.
        """
        write_text(self._folder / "settings.json", self._text)
        folder, counted = self._folder / split, split == "validation"
        scans = each_scan(
            self._dataset,
            split,
            folder,
            self.settings | {"voxels": counted},
            lambda record: self._examine(record, folder if split in TRAINED else None, counted),
            f"candidates, {split}",
        )
        for scan, kind in itertools.product(scans, KINDS):
            path = shard_of(folder, scan["series_uid"], kind)
            if scan["crops"][kind] and not path.exists():
                raise InputError(
                    f"{path}: is missing; delete {scan['series_uid']}.json beside it, and run main "
                    "again"
                )
        return scans

    @property
    def _text(self) -> str:
        return json.dumps(self.settings, indent=1)

    def _check(self, workdir: pathlib.Path) -> None:
        """Training must not go on with other candidates than it began with."""
        path = self._folder / "settings.json"
        trained = (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir())
        if trained and path.exists() and path.read_text(encoding="utf-8") != self._text:
            raise InputError(
                f"{workdir}: was trained on other candidates; what config.candidates.workdir or "
                "config.candidates.csv holds, or lung_unet, has changed since, choose another "
                "--workdir"
            )

    def _open_segmentation(self, workdir: pathlib.Path, restore: Restore) -> Finder:
        run = runs.load(workdir)
        if (run.data, run.config.data.fold) != (
            self.settings["data"], self.settings["fold"]
        ):  # fmt: skip
            raise InputError(
                f"{workdir}: was trained on another dataset, version of it or fold than "
                f"{self._dataset.folder}, fold {self.settings['fold']}; its test scans may be "
                "training scans here, give the same as config.data.dir and config.data.fold"
            )
        predictor, step = restore(workdir, run.config)
        point = operating_point([run], [step], workdir)
        self.settings["segmentation"] = member(run, step) | vars(point)
        readers = agreement(run.config.data)
        faintest = min(self._config.candidates.threshold, point.candidate_threshold)

        def find(record: ScanRecord, counted: bool) -> Seen:
            volume = record.volume
            values = predictor(volume.hu, volume.lungs)
            sure, faint = (
                find_candidates(values, volume, threshold, point.min_diameter_mm)
                for threshold in (point.threshold, faintest)
            )
            marks = marks_of(sure, faint, point.threshold)
            if not counted:
                return Seen([Found(mark.centre_mm, mark.probability) for mark in marks])
            counts, truth = region_voxels(values, {point.threshold: sure}, record, readers)
            voxels = dict(zip(sure, counts[point.threshold].tolist(), strict=True))
            found = [Found(m.centre_mm, m.probability, voxels=voxels.get(m)) for m in marks]
            return Seen(found, truth)

        return find

    def _open_table(self, path: pathlib.Path) -> Finder:
        table: dict[str, list[Listed]] = read_candidates(path)
        known = {entry["series_uid"] for entry in self._dataset.manifest["scans"]}
        if not known & table.keys():
            raise InputError(
                f"{path}: names none of the {len(known)} scans of {self._dataset.folder}; give the "
                "candidates of these scans (with their pseudonyms, where they were prepared with "
                "these)"
            )
        if missing := len(known - table.keys()):
            print(f"{path}: has no candidate in {missing} of {len(known)} scans")
        self.settings["csv"] = hashlib.sha256(path.read_bytes()).hexdigest()

        def find(record: ScanRecord, _: bool) -> Seen:
            listed = table.get(record.series_uid, ())
            return Seen([Found(row.centre_mm, None, row.nodule) for row in listed])

        return find

    def _examine(self, record: ScanRecord, folder: pathlib.Path | None, counted: bool) -> dict:
        seen = [find(record, counted) for find in self._finders]
        nodules, excluded = finding_rows(record.findings)
        crops = self._cut(record, [c for own in seen for c in own.found]) if folder else []
        if folder:
            write_crops(folder, record.series_uid, crops)
        return {
            "series_uid": record.series_uid,
            "marks": [[*map(float, c.centre_mm), c.probability] for c in seen[0].found],
            "voxels": [c.voxels for c in seen[0].found],
            "truth": seen[0].truth,
            "nodules": nodules,
            "excluded": excluded,
            "crops": {
                "nodule": sum(crop.nodule for crop in crops),
                "other": sum(not crop.nodule for crop in crops),
                "rated": sum(crop.malignancy != NOT_RATED for crop in crops),
            },
        }

    def _cut(self, record: ScanRecord, found: list[Found]) -> list[Crop]:
        """The crops of nodules, then of others: at most `config.candidates.others` of these."""
        settings = self._config.candidates
        size = crop_size(tuple(self._config.data.patch))
        size = tuple(n + 2 * settings.jitter for n in size)
        on = [(candidate, hit(candidate.centre_mm, record.findings)) for candidate in found]
        nodules = [(f.centre_mm, f) for f in record.findings if f.included] + [
            (candidate.centre_mm, finding)
            for candidate, finding in on
            if finding is not None and finding.included and candidate.nodule is not False
        ]
        others = [
            candidate.centre_mm
            for candidate, finding in on
            if finding is None and not candidate.nodule
        ]
        holds = record.volume.grid.holds  # beyond it a crop is air
        nodules = [(centre, f) for centre, f in nodules if holds(centre)]
        others = [centre for centre in others if holds(centre)]
        rng = np.random.default_rng(list(hashlib.sha256(record.series_uid.encode()).digest()))
        chosen = sorted(rng.permutation(len(others))[: settings.others])
        return [
            Crop(cut(record.volume, centre, size), True, f.ratings.get("malignancy", NOT_RATED))
            for centre, f in nodules
        ] + [Crop(cut(record.volume, others[i], size), False, NOT_RATED) for i in chosen]


def hit(centre_mm: np.ndarray, findings: tuple[Finding, ...]) -> Finding | None:
    """The finding that a mark is on by LUNA16's rule, one that counts before one that does not."""
    ordered = sorted(findings, key=lambda f: not f.included)
    rows = np.array([[*f.centre_mm, f.diameter_mm] for f in ordered]).reshape(-1, 4)
    (inside,) = within(np.array([[*centre_mm, 0.0]]), rows)
    return ordered[int(np.argmax(inside))] if inside.any() else None
