"""A LUNA16 folder: ten subsets of scans, lung masks, two tables, and LIDC's XML where it is there.

subset0..9/<series uid>.mhd + .raw or .zraw      seg-lungs-LUNA16/<series uid>.mhd (optional)
annotations.csv   annotations_excluded.csv (optional)   seriesuids.csv (optional)
patients.csv (optional): columns seriesuid and patient, so that a patient's scans share a subset
lidc_xml/ (optional): the readers' outlines, LIDC-IDRI's XML files
"""

import collections
import functools
import pathlib

import numpy as np

from lung_unet.data import lidc, tables
from lung_unet.data.annotations import MIN_READERS, Match, apply_list
from lung_unet.data.geometry import check_same_grid
from lung_unet.data.hounsfield import as_int16, hounsfield
from lung_unet.data.images import read_image
from lung_unet.data.lungs import LEFT, RIGHT, scan_with_lungs
from lung_unet.data.metaimage import data_file
from lung_unet.data.patients import read_patients, together
from lung_unet.data.scan import Finding, Grid, Scan
from lung_unet.data.scan_files import ScanFiles
from lung_unet.data.spheres import excluded, ignored
from lung_unet.errors import InputError
from lung_unet.files import files_in

LUNGS_OFF_GRID = 1.0  # voxels: the crop has a margin
OTHER_FORMATS = (".mha", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".dcm")
TABLE_FOLDERS = ("", "evaluationScript/annotations", "annotations", "evaluationScript")


class Luna16:
    """Index of a LUNA16 folder; reads one scan at a time.

    Rows of annotations.csv count, and no other finding: what three readers outlined and it lacks
    is ignored. Of the rows' outlines, those that fewer than `min_readers` drew are ignored; where
    that is less than three, all that so many outlined counts, listed or not. With `outlines` =
    "sphere" no XML is read, and every annotation is a sphere.

    `subsets` maps each series UID found on disk to its subset, sorted; where patients.csv names
    several series of one patient, to the lowest of theirs. `absent` lists series that
    seriesuids.csv names and that are not on disk (a partial download). `rows` counts the rows of
    each table: read, of scans that are here, and of others.

    Raises:
      InputError: no scans, a broken table, an annotation twice, or a table that names a series that
        is neither on disk nor in seriesuids.csv (where there is one).
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
        others = 0
        for folder in sorted(self.root.glob("subset[0-9]")):
            for path in files_in(folder):
                if path.suffix.lower() != ".mhd":
                    others += path.name.lower().endswith(OTHER_FORMATS)
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
        annotated = tables.read_marks(self.annotations_path)
        _refuse_repeated(self.annotations_path, annotated)
        self.annotations = _by_series(annotated)
        excluded = self._table("annotations_excluded.csv")
        ignored = tables.read_marks(excluded) if excluded else []
        self.excluded = _by_series(ignored)
        series = self._table("seriesuids.csv")
        listed = set(tables.read_series_uids(series)) if series else set()
        self.absent = sorted(listed - set(self.paths))
        listing = self._table("patients.csv")
        patients = read_patients(listing) if listing else {}
        self.patients = {uid: p for uid, p in patients.items() if uid in self.paths}
        self.subsets, self.notes = together(self.subsets, self.patients)
        self.rows: dict[str, dict[str, int]] = {}
        for table, marks in ((self.annotations_path, annotated), (excluded, ignored)):
            if table:
                rows = [(mark.line, mark.series_uid) for mark in marks]
                tables.refuse_unknown(table, rows, self.paths, series, listed)
                self.rows[table.name] = tables.count_rows([name for _, name in rows], self.paths)
        if listing:
            self.rows[listing.name] = tables.count_rows(list(patients), self.paths)
        if not series and any(counts["left"] for counts in self.rows.values()):
            self.notes.append(
                "no seriesuids.csv says whether rows of scans that are not on disk belong to them"
            )
        if self.absent:
            self.notes.append(f"{len(self.absent)} of the series in seriesuids.csv are not on disk")
        if series and (unlisted := sorted(set(self.paths) - listed)):
            self.notes.append(
                f"{len(unlisted)} scans are not in seriesuids.csv, first {unlisted[0]}; a file "
                "that was renamed has lost its rows"
            )
        if others:
            self.notes.append(f"{others} images in the subsets are not .mhd files and are left out")
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
        mask = self._lungs(series_uid, grid)
        findings, matches, losses = self._findings(series_uid, grid)
        source = "computed" if mask is None else "seg-lungs-LUNA16"
        scan = scan_with_lungs(series_uid, grid, hu, findings, losses, mask, source)
        return scan, matches

    def _lungs(self, series_uid: str, grid: Grid) -> np.ndarray | None:
        """The mask that came with the scan, if one did."""
        path = self.root / "seg-lungs-LUNA16" / f"{series_uid}.mhd"
        if not path.is_file():
            return None
        mask, own = read_image(path)
        check_same_grid(path, own, self.paths[series_uid], grid, LUNGS_OFF_GRID)
        lungs = as_int16(mask, path).astype(np.uint8)
        if lungs.any() and not np.isin(lungs, (RIGHT, LEFT)).any():
            raise InputError(
                f"{path}: holds {np.unique(lungs[lungs > 0]).tolist()} but no lungs, which LUNA16 "
                f"numbers {RIGHT} and {LEFT}; number them so, or remove it to have them found"
            )
        return lungs

    def _findings(
        self, series_uid: str, grid: Grid
    ) -> tuple[tuple[Finding, ...], list[Match], tuple[str, ...]]:
        findings: list[Finding] = []
        losses: tuple[str, ...] = ()
        if series_uid in self.outlines:
            marks = lidc.read_marks(self.outlines[series_uid])[series_uid]
            findings, losses = lidc.findings_and_losses(marks, grid, self.min_readers)
        annotated = self.annotations.get(series_uid, [])
        for mark in annotated:
            if not grid.holds(mark.centre_mm) or mark.diameter_mm <= 0:
                at = grid.to_voxel(mark.centre_mm)
                raise InputError(
                    f"{self.annotations_path}: line {mark.line}: a {mark.diameter_mm:g} mm nodule "
                    f"at voxel {np.rint(at).astype(int).tolist()} (z, y, x) lies outside scan "
                    f"{series_uid} of {list(grid.shape)}; coordinates must be world mm"
                )
        findings, matches = apply_list(findings, annotated, grid, self.min_readers)
        listed = self.excluded.get(series_uid, [])
        inside = [mark for mark in listed if grid.holds(mark.centre_mm)]
        if len(inside) < len(listed):
            losses += (
                f"{len(listed) - len(inside)} of {len(listed)} excluded findings lie outside the "
                "scan and are left out",
            )
        findings += [excluded(mark.centre_mm, mark.diameter_mm, grid) for mark in inside]
        return tuple(ignored(findings, grid)), matches, losses

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


def _refuse_repeated(path: pathlib.Path, marks: list[tables.Mark]) -> None:
    """Refuses a nodule that is listed twice, which would count twice."""
    seen: dict[tuple, int] = {}
    for mark in marks:
        first = seen.setdefault((mark.series_uid, *mark.centre_mm, mark.diameter_mm), mark.line)
        if first != mark.line:
            raise InputError(f"{path}: line {mark.line} repeats line {first}; remove one")


def _by_series(marks: list[tables.Mark]) -> dict[str, list[tables.Mark]]:
    table = collections.defaultdict(list)
    for mark in marks:
        table[mark.series_uid].append(mark)
    return dict(table)
