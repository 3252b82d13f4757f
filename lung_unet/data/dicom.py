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

from rich.progress import track

from lung_unet.data import lidc
from lung_unet.data.dicom_header import Header
from lung_unet.data.dicom_series import ct_slices, fault, in_two_folders, read_volume, series_in
from lung_unet.data.images import check_chest, hounsfield
from lung_unet.data.luna16 import MIN_READERS, Match
from lung_unet.data.lungs import segment_lungs
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
      InputError: a damaged file, a series in two folders, or no CT series with a reading.
    """

    kind = "DICOM"

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
        self.notes: list[str] = []
        unread: list[str] = []
        others: collections.Counter[str] = collections.Counter()
        seen: dict[str, list[Header]] = {}
        folders = sorted(folders_below(self.root, self._note))
        for folder in track(folders, "DICOM headers", disable=len(folders) < FEW):
            for uid, series in series_in(folder.iterdir()).items():
                slices, other = ct_slices(series)
                if other:
                    others[other] += 1
                    continue
                if uid in seen:
                    raise in_two_folders(seen[uid], slices)
                seen[uid] = slices
                wrong = fault(slices)
                if wrong is not None:
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
        if others:
            found = ", ".join(f"{count} {other}" for other, count in sorted(others.items()))
            self.notes.append(f"series that are no CT are left out: {found}")
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
        folder = self.files[series_uid][0].parent
        slices = series_in(self.files[series_uid]).get(series_uid, [])
        if len(slices) != len(self.files[series_uid]):
            raise InputError(f"{folder}: series {series_uid} has changed meanwhile; run again")
        array, grid = read_volume(slices, folder)
        hu = hounsfield(array, folder)
        check_chest(folder, hu)
        marks = lidc.read_marks(self.outlines[series_uid])[series_uid]
        findings = tuple(ignored(lidc.findings(marks, grid, self.min_readers), grid))
        return Scan(series_uid, grid, hu, segment_lungs(hu, grid), "computed", findings), []

    def scan_files(self, series_uid: str) -> ScanFiles:
        """All that the scan is read from."""
        outlines = tuple(self.outlines[series_uid])
        return ScanFiles({"image": self.files[series_uid], "outlines": outlines})
