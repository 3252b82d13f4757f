"""Where scans come from: what all readers of a folder have in common, and which one reads it."""

import copy
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from lung_unet.data.dicom import Dicom
from lung_unet.data.dicom_series import is_dicom
from lung_unet.data.image_folder import ImageFolder
from lung_unet.data.luna16 import MIN_READERS, Luna16, Match
from lung_unet.data.scan import Scan
from lung_unet.data.scan_files import ScanFiles
from lung_unet.errors import InputError
from lung_unet.files import folders_below


class Source(Protocol):
    """An index of a folder of scans that reads one scan at a time; it can be sent to a process.

    What it keeps of a series is in dicts by the series' UID; its lists are about the whole folder.
    """

    @property
    def kind(self) -> str:
        """The folder's layout: "LUNA16", "images and labels" or "DICOM"."""

    @property
    def root(self) -> pathlib.Path: ...

    @property
    def subsets(self) -> Mapping[str, int]:
        """The subset of each series, by its UID; splits are made of subsets, so a patient whose
        series lie in several would be in two splits."""

    @property
    def patients(self) -> Mapping[str, str]:
        """A pseudonym of the patient (`patients.patient_key`), by series UID, where known."""

    @property
    def absent(self) -> Collection[str]:
        """Series that belong to the dataset and are not on disk."""

    @property
    def notes(self) -> Sequence[str]:
        """What is missing, left out or moved, a line each, naming series and no files."""

    @property
    def outlines(self) -> Collection[str]:
        """Series whose findings come with an outline, drawn by a reader."""

    def read_matched(self, series_uid: str) -> tuple[Scan, list[Match]]:
        """The scan on its own grid, and what each of its annotations was matched to."""

    def scan_files(self, series_uid: str) -> ScanFiles:
        """All that the scan is read from."""


def open_source(
    root: str | pathlib.Path,
    lidc_xml: str | pathlib.Path | None = None,
    min_readers: int = MIN_READERS,
    outlines: str = "readers",
) -> Source:
    """The index of a folder of scans, by the layout that it has; the rest as `Luna16` says.

    Raises:
      InputError: no such folder, a layout that is not known, or what the layout's reader refuses.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of the scans")
    if any(root.glob("subset[0-9]")):
        return Luna16(root, lidc_xml, min_readers, outlines)
    if outlines != "readers":
        raise InputError(f"{root}: is no LUNA16 folder; config.data.outlines must be readers")
    if (root / "images").is_dir() and (
        (root / "labels").is_dir() or (root / "splits.csv").exists()
    ):
        if lidc_xml:
            raise InputError(f"{root}: has labels of its own; give no LIDC XML ({lidc_xml})")
        return ImageFolder(root)
    if any(is_dicom(path) for folder in folders_below(root) for path in folder.iterdir()):
        return Dicom(root, lidc_xml, min_readers)
    raise InputError(
        f"{root}: no layout that is known: no subset0..9/*.mhd (LUNA16), no images/, labels/ and "
        "splits.csv (one's own scans; of nnU-Net, imagesTr and labelsTr under these names), no "
        "DICOM files (LIDC-IDRI)"
    )


def only(source: Source, series_uid: str) -> Source:
    """The source of one series: little to send, and a process need not index the folder again."""
    part = copy.copy(source)
    for name, value in vars(source).items():
        if isinstance(value, dict):
            own = {series_uid: value[series_uid]} if series_uid in value else {}
            setattr(part, name, own)
        elif isinstance(value, list):
            setattr(part, name, [])
    return part
