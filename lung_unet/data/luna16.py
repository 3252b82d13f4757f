"""A LUNA16 folder: ten subsets of scans, lung masks, two tables, and LIDC's XML where it is there.

subset0..9/<series uid>.mhd + .raw or .zraw      seg-lungs-LUNA16/<series uid>.mhd (optional)
annotations.csv   annotations_excluded.csv (optional)   seriesuids.csv (optional)
patients.csv (optional): columns seriesuid and patient, so that a patient's scans share a subset
lidc_xml/ (optional): the readers' outlines, LIDC-IDRI's XML files
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from lung_unet.data import lidc, tables
from lung_unet.data.geometry import check_same_grid
from lung_unet.data.images import hounsfield, read_image
from lung_unet.data.lungs import LEFT, RIGHT, segment_lungs
from lung_unet.data.metaimage import data_file
from lung_unet.data.patients import read_patients, together
from lung_unet.data.scan import Finding, Grid, Scan
from lung_unet.data.scan_files import ScanFiles
from lung_unet.data.spheres import covers, excluded, ignored, sphere
from lung_unet.errors import InputError
from lung_unet.files import files_in

MIN_READERS = 3  # LUNA16 counts a nodule that three of the four readers outlined
LUNGS_OFF_GRID = 1.0  # voxels: the crop has a margin
TABLE_FOLDERS = ("", "evaluationScript/annotations", "annotations", "evaluationScript")


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """A row of annotations.csv and the finding it was matched to; None: it became a sphere."""

    mark: tables.Mark
    finding: int | None


class Luna16:
    """Index of a LUNA16 folder; reads one scan at a time.

    Findings that `min_readers` outlined count; others are ignored. With `outlines` = "sphere" no
    XML is read, and every annotation is a sphere.

    `subsets` maps each series UID found on disk to its subset, sorted; where patients.csv names
    several series of one patient, to the lowest of theirs. `absent` lists series that
    seriesuids.csv names and that are not on disk (a partial download).

    Raises:
      InputError: no scans, a broken table, or a table that names an unknown series.
    """

    kind = "LUNA16"

    def __init__(
        self,
        root: str | pathlib.Path,
        lidc_xml: str | pathlib.Path | None = None,
        min_readers: int = MIN_READERS,
        outlines: str = "readers",
    ):
        self.root = pathlib.Path(root)
        self.min_readers = min_readers
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder; give the folder of LUNA16's subset0..9")
        self.paths: dict[str, pathlib.Path] = {}
        self.subsets: dict[str, int] = {}
        for folder in sorted(self.root.glob("subset[0-9]")):
            for path in files_in(folder):
                if path.suffix != ".mhd":
                    continue
                if path.stem in self.paths:
                    raise InputError(
                        f"{path}: is also in {self.paths[path.stem].parent}; remove one"
                    )
                self.paths[path.stem] = path
                self.subsets[path.stem] = int(folder.name[-1])
        if not self.paths:
            raise InputError(f"{self.root}: no subset0..9/*.mhd in it; give LUNA16's own folder")
        self.annotations_path = self._table("annotations.csv") or self.root / "annotations.csv"
        self.annotations = _by_series(tables.read_marks(self.annotations_path))
        excluded = self._table("annotations_excluded.csv")
        self.excluded = _by_series(tables.read_marks(excluded) if excluded else [])
        listed = self._table("seriesuids.csv")
        known = set(tables.read_series_uids(listed)) if listed else None
        self.absent = sorted((known or set()) - set(self.paths))
        if known is not None:
            for uid, marks in self.annotations.items():
                if uid not in known and uid not in self.paths:
                    raise InputError(
                        f"{self.annotations_path}: line {marks[0].line}: series {uid} is unknown; "
                        f"{listed} does not name it, correct one of them"
                    )
        listing = self._table("patients.csv")
        self.patients = read_patients(listing) if listing else {}
        self.patients = {uid: p for uid, p in self.patients.items() if uid in self.paths}
        self.subsets, self.notes = together(self.subsets, self.patients)
        if self.absent:
            self.notes.append(f"{len(self.absent)} of the series in seriesuids.csv are not on disk")
        xml = pathlib.Path(lidc_xml) if lidc_xml else self.root / "lidc_xml"
        if lidc_xml and not xml.is_dir():
            raise InputError(f"{xml}: no such folder; give the folder of LIDC-IDRI's XML files")
        self.outlines = lidc.index(xml) if xml.is_dir() and outlines == "readers" else {}

    def _table(self, name: str) -> pathlib.Path | None:
        places = (self.root / folder / name for folder in TABLE_FOLDERS)
        return next((path for path in places if path.is_file()), None)

    def read(self, series_uid: str) -> Scan:
        """The scan on its own grid, with its findings."""
        return self.read_matched(series_uid)[0]

    def read_matched(self, series_uid: str) -> tuple[Scan, list[Match]]:
        """The scan, and what each of its annotations was matched to."""
        if series_uid not in self.paths:
            raise InputError(f"{self.root}: series {series_uid} is not in subset0..9")
        path = self.paths[series_uid]
        array, grid = read_image(path)
        hu = hounsfield(array, path)
        lungs, source = self._lungs(series_uid, grid, hu)
        findings, matches = self._findings(series_uid, grid)
        return Scan(series_uid, grid, hu, lungs, source, findings), matches

    def _lungs(self, series_uid: str, grid: Grid, hu: np.ndarray) -> tuple[np.ndarray, str]:
        path = self.root / "seg-lungs-LUNA16" / f"{series_uid}.mhd"
        if not path.is_file():
            return segment_lungs(hu, grid), "computed"
        mask, own = read_image(path)
        check_same_grid(path, own, self.paths[series_uid], grid, LUNGS_OFF_GRID)
        lungs = hounsfield(mask, path).astype(np.uint8)
        if lungs.any() and not np.isin(lungs, (RIGHT, LEFT)).any():
            raise InputError(
                f"{path}: holds {np.unique(lungs[lungs > 0]).tolist()} but no lungs, which LUNA16 "
                f"numbers {RIGHT} and {LEFT}; number them so, or remove it to have them found"
            )
        return lungs, "seg-lungs-LUNA16"

    def _findings(self, series_uid: str, grid: Grid) -> tuple[tuple[Finding, ...], list[Match]]:
        findings: list[Finding] = []
        if series_uid in self.outlines:
            marks = lidc.read_marks(self.outlines[series_uid])[series_uid]
            findings = list(lidc.findings(marks, grid, self.min_readers))
        annotated = self.annotations.get(series_uid, [])
        outlined = _matched(findings, annotated, min(self.min_readers, MIN_READERS), grid)
        matches = []
        for row, mark in enumerate(annotated):
            if not grid.holds(mark.centre_mm) or mark.diameter_mm <= 0:
                at = grid.to_voxel(mark.centre_mm)
                raise InputError(
                    f"{self.annotations_path}: line {mark.line}: a {mark.diameter_mm:g} mm nodule "
                    f"at voxel {np.rint(at).astype(int).tolist()} (z, y, x) lies outside scan "
                    f"{series_uid} of {list(grid.shape)}; coordinates must be world mm"
                )
            index = outlined.get(row)
            if index is None:
                findings.append(sphere(mark.centre_mm, mark.diameter_mm, grid, included=True))
            else:  # the outline is the readers', position and diameter are LUNA16's
                findings[index] = dataclasses.replace(
                    findings[index], centre_mm=mark.centre_mm, diameter_mm=mark.diameter_mm
                )
            matches.append(Match(mark, index))
        findings += [
            excluded(mark.centre_mm, mark.diameter_mm, grid)
            for mark in self.excluded.get(series_uid, [])
            if grid.holds(mark.centre_mm)
        ]
        return tuple(ignored(findings, grid)), matches

    def scan_files(self, series_uid: str) -> ScanFiles:
        """All that the scan is read from."""
        headers = {
            "image": self.paths[series_uid],
            "lungs": self.root / "seg-lungs-LUNA16" / f"{series_uid}.mhd",
        }
        files: dict[str, tuple[pathlib.Path, ...]] = {
            kind: (h, data_file(h)) for kind, h in headers.items() if h.is_file()
        }
        files["outlines"] = tuple(self.outlines.get(series_uid, ()))
        rows = [
            [[*map(float, m.centre_mm), m.diameter_mm] for m in table.get(series_uid, [])]
            for table in (self.annotations, self.excluded)
        ]
        return ScanFiles(files, rows)


def read_scan(
    root: str | pathlib.Path, series_uid: str, lidc_xml: str | pathlib.Path | None = None
) -> Scan:
    """One scan of a LUNA16 folder on its own grid: HU, reader votes, ignore mask, lungs."""
    return _opened(pathlib.Path(root), lidc_xml).read(series_uid)


@functools.lru_cache(maxsize=1)
def _opened(root: pathlib.Path, lidc_xml: str | pathlib.Path | None) -> Luna16:
    return Luna16(root, lidc_xml)


def _matched(
    findings: list[Finding], marks: Sequence[tables.Mark], min_readers: int, grid: Grid
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


def _by_series(marks: list[tables.Mark]) -> dict[str, list[tables.Mark]]:
    table = collections.defaultdict(list)
    for mark in marks:
        table[mark.series_uid].append(mark)
    return dict(table)
