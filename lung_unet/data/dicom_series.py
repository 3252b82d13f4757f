"""A DICOM series as a volume: its slices in order, what is wrong with them, their grid and voxels.

DICOM PS3.3, C.7.6.2 (image plane). Pixels are decoded, and scaled to HU, by SimpleITK's GDCM.
"""

import pathlib
from collections.abc import Iterable

import numpy as np
import SimpleITK as sitk

from lung_unet.data.dicom_header import Header, read_header
from lung_unet.data.geometry import check_grid
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

SAME_MM = 0.01  # closer slices lie in one place
UNEVEN = 0.2  # of the distance between slices: more than positions are rounded to


def series_in(files: Iterable[pathlib.Path]) -> dict[str, list[Header]]:
    """The slices of each series among `files`, by series UID; what is not DICOM is left out.

    Raises:
      InputError: a DICOM file is damaged or cut short.
    """
    series: dict[str, list[Header]] = {}
    for path in sorted(files):
        header = read_header(path) if is_dicom(path) else None
        if header is not None:
            series.setdefault(header.series_uid, []).append(header)
    return series


def ct_slices(series: list[Header]) -> tuple[list[Header], str]:
    """The slices of a series' volume; what it is instead where it has none."""
    if series[0].modality != "CT":
        return [], f"{series[0].modality} series"
    slices = [s for s in series if not s.aside]
    return slices, "" if slices else "localizer or captured screen"


def is_dicom(path: pathlib.Path) -> bool:
    """Whether a path is a file that claims to be DICOM, by its suffix or its first bytes."""
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return True  # so that its reader tells why it cannot be read


def fault(slices: list[Header]) -> str | None:
    """Why the slices of a series are no volume: what is wrong, and where; None if they are one."""
    if len(slices) < 2:
        return f"it has {len(slices)} slice, a CT volume needs more"
    if len({s.patient for s in slices}) > 1:
        return "its slices are of several patients"
    if not all(s.plain for s in slices):
        return "a slice is not one whole frame of grey values"
    for name in ("position", "orientation", "spacing_mm"):
        if any(getattr(s, name) is None for s in slices):
            return f"the {name.removesuffix('_mm')} of a slice is missing or broken"
    axes = np.array([s.orientation for s in slices]).reshape(-1, 2, 3)
    if not np.allclose(axes @ axes.transpose(0, 2, 1), np.eye(2), atol=1e-3):
        return "the orientation of a slice is no pair of directions at right angles"
    for name in ("shape", "spacing_mm", "orientation"):
        values = np.array([getattr(s, name) for s in slices])
        other = np.flatnonzero(np.abs(values - np.median(values, axis=0)).max(axis=1) > 1e-3)
        if len(other):
            return (
                f"the slice at {_place(slices[other[0]])} is of another {name.removesuffix('_mm')}"
            )
    slices = in_order(slices)
    steps = np.diff([s.position for s in slices], axis=0)
    for slice_, step in zip(slices, steps, strict=False):
        if np.linalg.norm(step) < SAME_MM:
            return f"the slice at {_place(slice_)} is there twice"
    return _unevenness(slices, steps)


def _unevenness(slices: list[Header], steps: np.ndarray) -> str | None:
    normal = _normal(slices[0])
    along = steps @ normal
    aside_mm = np.linalg.norm(np.cumsum(steps - along[:, None] * normal, axis=0), axis=1)
    if aside_mm.max() > 0.5 * min(slices[0].spacing_mm or ()):
        degrees = np.degrees(np.arctan2(aside_mm[-1], along.sum()))
        return f"its slices are sheared by {aside_mm.max():.1f} mm (gantry tilt {degrees:.1f}°)"
    if np.ptp(along) > UNEVEN * np.median(along):  # ITK would stretch the volume and go on
        usual, widest = np.median(along), int(np.argmax(along))
        if along[widest] > (2 - UNEVEN) * usual:
            ends = f"{_place(slices[widest])} and {_place(slices[widest + 1])}"
            return f"slices are missing between {ends}"
        return f"its slices are {along.min():g} to {along.max():g} mm apart"
    return None


def in_order(slices: list[Header]) -> list[Header]:
    """The slices of a volume along their normal."""
    return sorted(slices, key=lambda s: (float(np.dot(s.position or (), _normal(s))), s.path))


def _normal(slice_: Header) -> np.ndarray:
    return np.cross(*np.array(slice_.orientation).reshape(2, 3))


def _place(slice_: Header) -> str:
    """Where a slice lies on the axis of the patient that it is across, for a message."""
    if slice_.position is None or slice_.orientation is None:
        return "an unknown place"
    axis = int(np.argmax(np.abs(_normal(slice_))))
    return f"{'xyz'[axis]} = {slice_.position[axis]:g} mm"


def read_volume(slices: list[Header], path: pathlib.Path) -> tuple[np.ndarray, Grid]:
    """HU (z, y, x), of the type that the files' scaling gives, and their grid.

    Raises:
      InputError: the slices are no volume, or their pixels cannot be decoded; it names `path`.
    """
    uid = slices[0].series_uid
    wrong = fault(slices)
    if wrong is not None:
        raise InputError(f"{path}: series {uid}: {wrong}; copy the series again or leave it out")
    slices = in_order(slices)
    grid = _grid(slices)
    check_grid(path, grid)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(s.path) for s in slices])
    try:
        image = reader.Execute()
        array = sitk.GetArrayFromImage(image)
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"{path}: series {uid}: its pixels cannot be decoded; copy it again"
        ) from (error)
    if array.shape != grid.shape:
        raise InputError(f"{path}: series {uid}: its pixels are no volume; copy it again")
    return array, grid


def _grid(slices: list[Header]) -> Grid:
    first, last = slices[0], slices[-1]
    along_row, along_column = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    length_mm = (np.array(last.position) - np.array(first.position)) @ normal
    return Grid(
        (len(slices), *first.shape),
        np.array([length_mm / (len(slices) - 1), *(first.spacing_mm or ())]),
        np.array(first.position)[::-1],
        np.stack([normal, along_column, along_row], axis=1)[::-1],
    )


def in_two_folders(first: list[Header], second: list[Header]) -> InputError:
    """What to say of a series of which two folders hold slices: a copy, or parts of it."""
    here, there = second[0].path.parent, first[0].path.parent
    if {s.position for s in first} & {s.position for s in second}:
        told, remedy = "is also in", "remove one"
    else:
        told, remedy = "has other slices in", "put all of them into one folder"
    return InputError(f"{here}: series {first[0].series_uid} {told} {there}; {remedy}")
