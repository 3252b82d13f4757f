"""One's own scans: images and labels on the same grid, with the split that one chose.

images/NAME.nii.gz   a chest CT in HU; also .nii, .nrrd, .mha, .mhd
labels/NAME.nii.gz   of the same name and grid, any of these formats, whole numbers: 0 nothing,
                     255 ignored in every loss and metric, 1 to 254 nodule
lungs/NAME.nii.gz    (optional) above 0 in the lungs
splits.csv           columns name, split (train, validation or test) and, if known, patient
patients.csv         (optional) columns seriesuid (the name) and patient, in place of the latter

Names are stored with what is made of the scans: choose some that identify nobody.

If 1 is the only nodule value of a label, each part of it (connected by faces, edges or corners) is
a nodule; if there are others, each value is one nodule, however many parts it has.
"""

import pathlib
from collections.abc import Iterator

import cc3d
import numpy as np
from scipy import ndimage

from lung_unet.data.geometry import check_same_grid
from lung_unet.data.images import check_chest, hounsfield, read_image
from lung_unet.data.luna16 import Match
from lung_unet.data.lungs import LEFT, segment_lungs
from lung_unet.data.metaimage import data_file
from lung_unet.data.patients import check_apart, listed, patient_key
from lung_unet.data.scan import ALL_READERS, IGNORE, READERS, Finding, Grid, Scan
from lung_unet.data.scan_files import ScanFiles
from lung_unet.data.tables import read_rows
from lung_unet.errors import InputError

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
PIECE_MM = 10.0  # of what is ignored
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

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root)
        self.paths, self.labels, self.lungs = (
            _named(self.root / folder) for folder in ("images", "labels", "lungs")
        )
        splits = self.root / "splits.csv"
        self.subsets, self.patients = _read_splits(splits)
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
        check_chest(path, hu)
        findings = findings_of(_read_mask(self.labels[series_uid], grid, path), grid)
        if series_uid in self.lungs:
            lungs = _read_mask(self.lungs[series_uid], grid, path).astype(bool) * np.uint8(LEFT)
            return Scan(series_uid, grid, hu, lungs, "lungs", findings), []
        return Scan(series_uid, grid, hu, segment_lungs(hu, grid), "computed", findings), []

    def scan_files(self, series_uid: str) -> ScanFiles:
        """All that the scan is read from."""
        tables = {"image": self.paths, "label": self.labels, "lungs": self.lungs}
        named = {kind: table[series_uid] for kind, table in tables.items() if series_uid in table}
        return ScanFiles(
            {
                kind: (path, data_file(path)) if path.suffix.lower() == ".mhd" else (path,)
                for kind, path in named.items()
            }
        )


def findings_of(labels: np.ndarray, grid: Grid) -> tuple[Finding, ...]:
    """The nodules of a label volume, uint8 (z, y, x), each as of all readers, and what it ignores.

    A nodule's diameter is that of a ball of the same volume.
    """
    nodules = np.where(labels == IGNORE, 0, labels)
    if nodules.max() == 1:
        nodules = cc3d.connected_components(nodules, connectivity=26)
    counted = [
        _nodule(nodules[box] == number, box, grid)
        for number, box in enumerate(ndimage.find_objects(nodules), 1)
        if box is not None
    ]
    return (*counted, *_ignored(labels == IGNORE, grid))


def _nodule(inside: np.ndarray, box: tuple[slice, ...], grid: Grid) -> Finding:
    low = np.array([side.start for side in box])
    volume_mm3 = np.count_nonzero(inside) * np.prod(grid.spacing_mm)
    return Finding(
        centre_mm=grid.to_world(np.argwhere(inside).mean(axis=0) + low),
        diameter_mm=float(2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)),
        readers=READERS,
        included=True,
        low=low,
        reader_bits=inside * np.uint8(ALL_READERS),
        outlined=False,
    )


def _ignored(inside: np.ndarray, grid: Grid) -> Iterator[Finding]:
    """What is ignored, in pieces with balls around them: FROC knows an area by balls alone."""
    voxels = np.argwhere(inside)
    size = np.maximum(1, np.rint(PIECE_MM / grid.spacing_mm)).astype(int)
    _, piece = np.unique(voxels // size, axis=0, return_inverse=True)
    order = np.argsort(piece, kind="stable")
    for own in np.split(voxels[order], np.flatnonzero(np.diff(piece[order])) + 1):
        if not len(own):
            continue
        low, centre_mm = own.min(axis=0), grid.to_world(own.mean(axis=0))
        bits = np.zeros(own.max(axis=0) - low + 1, np.uint8)
        bits[tuple((own - low).T)] = 1
        away = np.linalg.norm(grid.to_world(own) - centre_mm, axis=1).max()
        diameter_mm = float(2 * away + grid.spacing_mm.max())
        yield Finding(centre_mm, diameter_mm, 0, False, low, bits, outlined=False)


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


def _read_splits(path: pathlib.Path) -> tuple[dict[str, int], dict[str, str]]:
    """Subset and, where it is given, patient of each name."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; give each image a row with its name and its split, one of "
            f"{', '.join(SUBSETS)}, under the heading name,split or name,split,patient"
        )
    subsets: dict[str, int] = {}
    patients: dict[str, str] = {}
    first: dict[str, str] = {}  # where each patient is seen first
    for line, row in read_rows(path, ("name", "split")):
        name, split, patient = row["name"], row["split"], (row.get("patient") or "").strip()
        if name in subsets:
            raise InputError(f"{path}: line {line}: {name} is there twice; remove one")
        if split not in SUBSETS:
            raise InputError(
                f"{path}: line {line}: split {split!r} is none of {', '.join(SUBSETS)}; correct it"
            )
        subsets[name] = SUBSETS[split]
        if patient:
            patients[name] = patient_key(patient)
            other = first.setdefault(patients[name], name)
            if subsets[other] != subsets[name]:
                raise InputError(
                    f"{path}: line {line}: {name} is of the same patient as {other}, but in "
                    "another split; put both into one"
                )
    return subsets, patients


def _read_mask(path: pathlib.Path, grid: Grid, image: pathlib.Path) -> np.ndarray:
    """uint8 (z, y, x) of a mask that lies on the grid of its image."""
    values, own = read_image(path)
    check_same_grid(path, own, image, grid)
    with np.errstate(invalid="ignore"):  # NaN is told below
        whole = values.astype(np.uint8)
    if not np.array_equal(whole, values):
        raise InputError(
            f"{path}: its values are not whole numbers from 0 to 255; save it as 8 bit"
        )
    return whole
