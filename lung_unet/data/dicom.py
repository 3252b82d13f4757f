"""A folder of DICOM series with their readers' XML, as TCIA ships LIDC-IDRI.

ANY/FOLDERS/BELOW/*.dcm      each CT series whole in one folder, with others or alone
ANY/FOLDERS/BELOW/*.xml      LIDC-IDRI's readings, here or in a folder of their own
patients.csv                 (optional) columns seriesuid and patient, where PatientID does not tell

Of DICOM, geometry, HU, series UID and a pseudonym of the patient are used, and nothing else.
What is no CT, is no whole volume, or was not read is left out, and `notes` says so: LIDC-IDRI has
radiographs, and some of its CTs lack slices (LUNA16 leaves them out too).
"""

import collections
import pathlib
from collections.abc import Mapping

from rich.progress import track

from lung_unet.data import lidc
from lung_unet.data.annotations import MIN_READERS, Match
from lung_unet.data.dicom_acquisitions import scans_of
from lung_unet.data.dicom_checks import fault
from lung_unet.data.dicom_header import DamagedFile, Header
from lung_unet.data.dicom_series import (
    ct_slices,
    in_two_folders,
    read_volume,
    series_in,
    sound_series_in,
)
from lung_unet.data.hounsfield import hounsfield
from lung_unet.data.lungs import scan_with_lungs
from lung_unet.data.patients import listed, subset_of
from lung_unet.data.scan import Scan
from lung_unet.data.scan_files import ScanFiles
from lung_unet.data.spheres import ignored
from lung_unet.errors import InputError
from lung_unet.files import folders_below

FEW = 20  # folders that are indexed without a progress bar
SOME = 5  # series that a message names


class Dicom:
    """Index of a DICOM folder; reads one series at a time.

    `subsets` maps each series UID to a subset that its patient's pseudonym gives, so that a patient
    is in one subset only, whatever else is in the folder. `absent` lists series that were read and
    are not on disk.

    Raises:
      InputError: a series in two folders, or no CT series with a reading. A damaged file is an
        error of its series, or of all in its folder where it does not say which that is.
    """

    kind = "DICOM"
    rows: Mapping[str, dict[str, int]] = {}  # it has no tables

    def __init__(
        self,
        root: str | pathlib.Path,
        lidc_xml: str | pathlib.Path | None = None,
        min_readers: int = MIN_READERS,
    ):
        self.root = pathlib.Path(root)
        self.min_readers = min_readers
        xml = pathlib.Path(lidc_xml) if lidc_xml else self.root
        if not xml.is_dir():
            raise InputError(f"{xml}: no such folder; give the folder of LIDC-IDRI's XML files")
        self.outlines = lidc.index(xml)
        self.files: dict[str, tuple[pathlib.Path, ...]] = {}
        self.subsets: dict[str, int] = {}
        self.patients: dict[str, str] = {}
        self.broken: dict[str, DamagedFile] = {}  # told when the series is read
        self.notes: list[str] = []
        unread: list[str] = []
        others: collections.Counter[str] = collections.Counter()
        seen: dict[str, list[Header]] = {}
        all_damaged: list[DamagedFile] = []
        folders = sorted(folders_below(self.root, self._note))
        for folder in track(folders, "DICOM headers", disable=len(folders) < FEW):
            found, damaged = sound_series_in(folder.iterdir())
            for error in damaged:  # it may be of any series of its folder
                of = {error.series_uid} if error.series_uid else found.keys()
                self.broken |= {uid: error for uid in of if uid not in self.broken}
            all_damaged += damaged
            for uid, series in found.items():
                slices, other = ct_slices(series)
                if other:
                    others[other] += 1
                    continue
                if uid in seen:
                    raise in_two_folders(seen[uid], slices)
                seen[uid] = slices
                wrong = None if uid in self.broken else _no_scan(slices)
                if wrong:
                    self.notes.append(f"series {uid} is left out: {wrong}")
                    continue
                if uid not in self.outlines:
                    unread.append(uid)
                    continue
                self.files[uid] = tuple(s.path for s in slices)
                self.patients[uid] = slices[0].patient
        if unread:
            some = ", ".join(unread[:SOME]) + (", …" if len(unread) > SOME else "")
            self.notes.append(f"{len(unread)} CTs that no reader's XML names are left out: {some}")
        self.broken = {uid: error for uid, error in self.broken.items() if uid in self.files}
        told = self.broken.values()
        left = [e for e in all_damaged if e not in told and e.series_uid not in self.broken]
        if left:
            self.notes.append(f"{len(left)} damaged DICOM files more are left out")
        if others:
            kinds = ", ".join(f"{count} {other}" for other, count in sorted(others.items()))
            self.notes.append(f"series that are no CT are left out: {kinds}")
        if not self.files:
            said = self.notes[0] if self.notes else "no DICOM series in it"
            raise InputError(
                f"{self.root}: holds no CT that can be used ({said}); give the folder of "
                "LIDC-IDRI's series, and that of the XML files as --lidc_xml"
            )
        self.files = dict(sorted(self.files.items()))
        self.patients |= listed(self.root, self.files)
        self.subsets = {uid: subset_of(self.patients[uid]) for uid in self.files}
        self.absent = sorted(self.outlines.keys() - seen.keys())
        if self.absent:
            self.notes.append(f"{len(self.absent)} of the series that were read are not on disk")

    def _note(self, error: OSError) -> None:
        self.notes.append(f"{error.filename} cannot be read ({error.strerror}) and is left out")

    def read_matched(self, series_uid: str) -> tuple[Scan, list[Match]]:
        """The scan on its own grid with its findings; there are no annotations to match."""
        if series_uid not in self.files:
            raise InputError(f"{self.root}: series {series_uid} is not in it, or cannot be used")
        if series_uid in self.broken:
            raise self.broken[series_uid]
        folder = self.files[series_uid][0].parent
        slices = series_in(self.files[series_uid]).get(series_uid, [])
        if len(slices) != len(self.files[series_uid]):
            raise InputError(f"{folder}: series {series_uid} has changed meanwhile; run again")
        array, grid, warnings = read_volume(slices, folder)
        hu = hounsfield(array, f"{folder}: {'; '.join(warnings)}" if warnings else folder)
        marks = lidc.read_marks(self.outlines[series_uid])[series_uid]
        found, losses = lidc.findings_and_losses(marks, grid, self.min_readers)
        findings = tuple(ignored(found, grid))
        return scan_with_lungs(series_uid, grid, hu, findings, warnings + losses), []

    def scan_files(self, series_uid: str) -> ScanFiles:
        """All that the scan is read from."""
        outlines = tuple(self.outlines[series_uid])
        return ScanFiles({"image": self.files[series_uid], "outlines": outlines})


def _no_scan(slices: list[Header]) -> str | None:
    """Why the slices of a series are not one scan; None if they are."""
    parts = scans_of(slices)
    if len(parts) > 1:
        labels = ", ".join(part.label for part in parts)
        return f"it has {len(parts)} scans ({labels}), and its readings do not say which is theirs"
    wrong = fault(slices)
    return wrong and wrong.what
