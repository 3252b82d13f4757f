"""One's own scans: images and labels on the same grid, with the split that one chose.

images/NAME.nii.gz   a chest CT in HU; also .nii, .nrrd, .mha, .mhd
labels/NAME.nii.gz   of the same name and grid, any of these formats, whole numbers: 0 nothing,
                     255 ignored in every loss and metric, 1 to 254 nodule
lungs/NAME.nii.gz    (optional) above 0 in the lungs
splits.csv           columns name, split (train, validation or test) and, if known, patient and
                     nodules, their number
patients.csv         (optional) columns seriesuid (the name) and patient, in place of that column

Names are stored with what is made of the scans: choose some that identify nobody. What of a label
is one nodule, `label_volume` says. A scan whose label has 255 alone needs a 0 in column nodules.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from lung_unet.data.annotations import Match
from lung_unet.data.hounsfield import hounsfield
from lung_unet.data.images import data_files, read_image
from lung_unet.data.label_volume import findings_of, read_labels, read_mask, remarks
from lung_unet.data.lungs import LEFT, scan_with_lungs
from lung_unet.data.patients import check_apart, listed, patient_key
from lung_unet.data.scan import Scan
from lung_unet.data.scan_files import ScanFiles
from lung_unet.data.tables import read_rows, scan_name
from lung_unet.errors import InputError

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
SUBSETS = {"test": 0, "validation": 1, "train": 2}  # so that fold 0 is the split of splits.csv
NNUNET_CT = "_0000"  # behind a name in nnU-Net's imagesTr: its only channel


class ImageFolder:
    """Index of a folder of images and labels; reads one scan at a time.

    A scan's series UID is the name of its image. `subsets` follow splits.csv.

    Raises:
      InputError: an image, a label or a row of splits.csv without the others, a patient in two
        splits, or a split without scans.
    """

    kind = "images and labels"
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rows: Mapping[str, dict[str, int]] = {}  # each has its scan, or is refused

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root)
        self.paths, self.labels, self.lungs = (
            _named(self.root / folder) for folder in ("images", "labels", "lungs")
        )
        splits = self.root / "splits.csv"
        self.subsets, self.patients, self.nodules = _read_splits(splits)
        for name in sorted(self.paths.keys() | self.labels.keys() | self.subsets.keys()):
            image, label = self.paths.get(name), self.labels.get(name)
            if image is None:
                found = f"{label}: is a label" if label else f"{splits}: names {name}"
                remedy = f"add images/{name} or remove it"
                if f"{name}{NNUNET_CT}" in self.paths:
                    remedy = f"name nnU-Net's images/{name}{NNUNET_CT} images/{name}"
                raise InputError(f"{found} without an image; {remedy}")
            if label is None:
                raise InputError(
                    f"{image}: has no label; add labels/{name}, all 0 if it has no nodule"
                )
            if name not in self.subsets:
                raise InputError(f"{image}: is not in {splits}; add a row for {name}")
        for name in self.lungs.keys() - self.paths.keys():
            raise InputError(f"{self.lungs[name]}: is a mask without an image; remove it")
        for split, subset in SUBSETS.items():
            if subset not in self.subsets.values():
                raise InputError(f"{splits}: no scan is in the {split} split; give it one")
        self._add_patients(splits)

    def _add_patients(self, splits: pathlib.Path) -> None:
        """Those of patients.csv, as of a LUNA16 folder."""
        for name, patient in listed(self.root, self.paths).items():
            if self.patients.setdefault(name, patient) != patient:
                raise InputError(
                    f"{self.root / 'patients.csv'}: {name} is of another patient in {splits.name}; "
                    "correct one of them"
                )
        check_apart(splits, self.subsets, self.patients)

    @property
    def outlines(self) -> dict[str, pathlib.Path]:
        """Of all: a label is as good as a reader's outline."""
        return self.labels

    def read_matched(self, series_uid: str) -> tuple[Scan, list[Match]]:
        """The scan on its own grid with its findings; there are no annotations to match."""
        if series_uid not in self.paths:
            raise InputError(f"{self.root}: has no image {series_uid}; check the name")
        path = self.paths[series_uid]
        array, grid = read_image(path)
        hu = hounsfield(array, path)
        stated = self.nodules.get(series_uid)
        label = self.labels[series_uid]
        labels = read_labels(label, grid, path, without_nodule=stated == 0)
        findings = findings_of(labels, grid)
        found = sum(finding.included for finding in findings)
        if stated not in (None, found):
            raise InputError(
                f"{label}: has {found} nodules, but {stated} in column nodules of splits.csv; "
                "correct one of them"
            )
        if series_uid in self.lungs:
            mask = read_mask(self.lungs[series_uid], grid, path).astype(bool) * np.uint8(LEFT)
            return scan_with_lungs(
                series_uid, grid, hu, findings, remarks(labels), mask, "lungs", sides_known=False
            ), []
        return scan_with_lungs(series_uid, grid, hu, findings, remarks(labels)), []

    def scan_files(self, series_uid: str) -> ScanFiles:
        """All that the scan is read from."""
        tables = {"image": self.paths, "label": self.labels, "lungs": self.lungs}
        return ScanFiles(
            {
                kind: tuple(data_files(table[series_uid]))
                for kind, table in tables.items()
                if series_uid in table
            },
            [self.nodules[series_uid]] if series_uid in self.nodules else [],
        )


def _named(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The images of a folder by their names without suffix."""
    named: dict[str, pathlib.Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        suffix = next((s for s in FORMATS if path.name.lower().endswith(s)), None)
        if suffix is None or not path.is_file():
            continue
        name = path.name[: -len(suffix)]
        if name in named:
            raise InputError(f"{path}: {named[name].name} has the same name; remove one")
        named[name] = path
    return named


def _read_splits(path: pathlib.Path) -> tuple[dict[str, int], dict[str, str], dict[str, int]]:
    """Of each name the subset and, where they are given, patient and number of nodules."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; give each image a row with its name and its split, one of "
            f"{', '.join(SUBSETS)}, under the heading name,split or name,split,patient"
        )
    subsets: dict[str, int] = {}
    patients: dict[str, str] = {}
    nodules: dict[str, int] = {}
    first: dict[str, str] = {}  # where each patient is seen first
    for line, row in read_rows(path, ("name", "split")):
        name, split = scan_name(row["name"]), row["split"].lower()
        patient, stated = row.get("patient", ""), row.get("nodules", "")
        if name in subsets:
            raise InputError(f"{path}: line {line}: {name} is there twice; remove one")
        if split not in SUBSETS:
            raise InputError(
                f"{path}: line {line}: split {split!r} is none of {', '.join(SUBSETS)}; correct it"
            )
        if stated and not stated.isdecimal():
            raise InputError(f"{path}: line {line}: nodules is {stated!r}, not their number")
        subsets[name] = SUBSETS[split]
        if stated:
            nodules[name] = int(stated)
        if patient:
            patients[name] = patient_key(patient)
            other = first.setdefault(patients[name], name)
            if subsets[other] != subsets[name]:
                raise InputError(
                    f"{path}: line {line}: {name} is of the same patient as {other}, but in "
                    "another split; put both into one"
                )
    return subsets, patients, nodules
