"""The real CTs that nodules are put into, each with its patient and its own findings."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lung_unet.data import lidc, tables
from lung_unet.data.inputs import Input, find_inputs, read_input
from lung_unet.data.luna16 import MIN_READERS, Luna16
from lung_unet.data.outlines import Mark, findings
from lung_unet.data.patients import patient_key
from lung_unet.data.scan import Finding, Grid, Scan
from lung_unet.data.source import only
from lung_unet.errors import InputError

UNKNOWN_DIAMETER_MM = -1.0  # as LUNA16's tables write it


@dataclasses.dataclass(frozen=True, eq=False)
class BaseCT:
    """A CT on disk. `marks` are its readers', `ignored` the regions to leave out, of a table."""

    series_uid: str
    patient: str  # a pseudonym
    origin: Input | Luna16
    marks: tuple[Mark, ...] = ()
    ignored: tuple[tables.Mark, ...] = ()

    def read(self) -> Scan:
        """The scan, its axes turned to LPS, with its own findings; those of `ignored` are last.

        Raises:
          InputError: it cannot be read, has no lungs, or a region to ignore lies outside it.
        """
        if isinstance(self.origin, Input):
            scan = read_input(self.origin)
            found = findings(self.marks, scan.grid, MIN_READERS)
        else:
            scan = self.origin.read(self.series_uid)
            found = list(scan.findings)
        for mark in self.ignored:
            if not scan.grid.holds(mark.centre_mm):
                raise InputError(
                    f"--ignore: line {mark.line}: the position lies outside series "
                    f"{self.series_uid}; give world coordinates (LPS) in mm"
                )
            point = np.rint(scan.grid.to_voxel(mark.centre_mm)).astype(int)
            none = np.zeros((0, 0, 0), np.uint8)
            found.append(
                Finding(mark.centre_mm, mark.diameter_mm, 0, False, point, none, outlined=False)
            )
        if not scan.lungs.any():
            raise InputError(f"{self.series_uid}: no lungs were found in it; leave this CT out")
        return _turned(scan, found)


def find_cts(
    folders: Sequence[pathlib.Path],
    out: pathlib.Path,
    marks: Mapping[str, Sequence[Mark]],
    ignored: Sequence[tables.Mark],
) -> list[BaseCT]:
    """The CTs of folders (DICOM, image files, LUNA16) in the order given.

    `marks` are the readers' by series UID; an XML file beside a CT is read as well. The patient of
    DICOM is that of its header, of a LUNA16 folder that of its patients.csv; otherwise the series
    UID, or the name of an image file, stands for the patient.

    Raises:
      InputError: nothing to read, a CT given twice, or `ignored` names a series that is not there.
    """
    cts: dict[str, BaseCT] = {}
    for folder in folders:
        for ct in _cts_in(folder, out, marks, ignored):
            if ct.series_uid in cts:
                raise InputError(f"{folder}: series {ct.series_uid} was given already; remove one")
            cts[ct.series_uid] = ct
    for mark in ignored:
        if mark.series_uid not in cts:
            raise InputError(
                f"--ignore: line {mark.line}: series {mark.series_uid} is in no folder of --ct; "
                "correct the row"
            )
    return list(cts.values())


def _cts_in(
    folder: pathlib.Path,
    out: pathlib.Path,
    marks: Mapping[str, Sequence[Mark]],
    ignored: Sequence[tables.Mark],
) -> list[BaseCT]:
    def ignored_in(uid: str) -> tuple[tables.Mark, ...]:
        return tuple(mark for mark in ignored if mark.series_uid == uid)

    if folder.is_dir() and any(folder.glob("subset[0-9]")):
        source = Luna16(folder)
        return [
            BaseCT(
                uid,
                patient_key(source.patients.get(uid, uid)),
                only(source, uid),  # type: ignore[arg-type]  # a copy of `source`
                ignored=ignored_in(uid),
            )
            for uid in sorted(source.paths)
        ]
    found = find_inputs(folder, out)
    if found.errors:
        raise found.errors[0]
    beside = lidc.index(folder) if folder.is_dir() else {}
    cts = []
    for scan in found.scans:
        uid = scan.series_uid
        own = lidc.read_marks(beside[uid])[uid] if uid in beside else marks.get(uid, ())
        patient = scan.slices[0].patient if scan.slices else patient_key(uid)
        cts.append(BaseCT(uid, patient, scan, tuple(own), ignored_in(uid)))
    return cts


def _turned(scan: Scan, found: Sequence[Finding]) -> Scan:
    """The scan and findings with their axes turned to LPS, so that z is across the slices."""
    grid, axes, flips = scan.grid.to_lps()
    turned = []
    for finding in found:
        high = finding.low + finding.reader_bits.shape
        bits = finding.reader_bits.transpose(axes)[flips]
        low = np.rint(grid.to_voxel(_corner(scan.grid, finding.low, high, grid))).astype(int)
        turned.append(dataclasses.replace(finding, low=low, reader_bits=bits))
    hu, lungs = (
        np.ascontiguousarray(array.transpose(axes)[flips]) for array in (scan.hu, scan.lungs)
    )
    return Scan(scan.series_uid, grid, hu, lungs, scan.lungs_source, tuple(turned))


def _corner(own: Grid, low: np.ndarray, high: np.ndarray, lps: Grid) -> np.ndarray:
    """World position (z, y, x) mm of the first voxel, in the order of `lps`, of a box of `own`."""
    ends = lps.to_voxel(own.to_world([low, np.maximum(low, high - 1)]))
    return lps.to_world(ends.min(axis=0))
