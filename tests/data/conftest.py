"""DICOM to test with: folders of series as TCIA ships them."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pydicom
import pytest

from lung_unet.data.outlines import Mark, Region
from lung_unet.data.phantom import write_xml
from lung_unet.data.scan import READERS, Grid


def write_reading(
    path: pathlib.Path, uid: str, grid: Grid, voxel: Sequence[int] | None = None
) -> None:
    """LIDC's XML, of four readers: a square outline around a voxel in three slices, or no mark."""
    marks = []
    if voxel is not None:
        z, y, x = voxel
        side = np.arange(-4, 4)
        ring = [(-4, d) for d in side] + [(d, 4) for d in side]
        points = np.add([*ring, *((-a, -b) for a, b in ring)], (y, x))
        heights = [float(grid.to_world([z + d, 0, 0])[0]) for d in (-1, 0, 1)]
        regions = tuple(Region(height, points) for height in heights)
        marks = [Mark(r, "nodule", regions, {"subtlety": 3.0}, str(path)) for r in range(READERS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_xml(path, uid, marks, grid)


@pytest.fixture(scope="session", name="write_reading")
def write_reading_() -> Callable:
    return write_reading


@pytest.fixture(scope="session")
def lidc_idri(make_scan, write_series, personal, tmp_path_factory) -> pathlib.Path:
    """Five chests of four patients in TCIA's layout, with readings; a radiograph and a text."""
    root = tmp_path_factory.mktemp("lidc_idri")
    for number in range(5):
        uid, patient = f"1.2.{number}", number % 4
        hu, _, grid, centre = make_scan(number)
        tags = personal | {"0010|0020": f"MRN-77490{patient}"}
        folder = root / f"Quixote-{patient}" / f"1.2.777.1.{number}" / uid
        write_series(folder, uid, hu, grid, tags)
        voxel = np.rint(grid.to_voxel(centre)).astype(int)
        write_reading(folder / "07.xml", uid, grid, voxel)
    radiograph = {"0008|0060": "DX"}
    write_series(root / "Quixote-0" / "1.2.777.1.9" / "x", "1.2.9", tags=personal | radiograph)
    (root / "LICENSE").write_text("CC BY 3.0")
    return root


def _slice(z: int, stored: np.ndarray, position_mm: tuple[float, float, float], **attributes):
    """A CT slice as pydicom writes it, explicit little-endian, without attributes that are None."""
    slice_ = pydicom.Dataset()
    slice_.file_meta = pydicom.dataset.FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    slice_.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    slice_.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{z + 1}"
    both = {
        "SOPClassUID": pydicom.uid.CTImageStorage,
        "SOPInstanceUID": f"1.2.3.4.{z + 1}",
        "Modality": "CT",
        "PatientID": "MRN-774900",
        "PatientName": "Quixote",
        "StudyInstanceUID": "1.2.777.1",
        "SeriesInstanceUID": "1.2.3.4",
        "FrameOfReferenceUID": "1.2.778",
        "InstanceNumber": z + 1,
        "ImagePositionPatient": list(position_mm),
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.75],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
    } | attributes
    for keyword, value in both.items():
        if value is not None:
            setattr(slice_, keyword, value)
    slice_.PixelData = stored.astype(f"<u{slice_.BitsAllocated // 8}", casting="unsafe").tobytes()
    slice_["PixelData"].VR = "OW"
    return slice_


@pytest.fixture(scope="session")
def make_slices():
    """Makes slices of stored values (z, y, x), 2 mm apart, unsigned 12 bits with -1024 for 0.

    `of_slice` maps a slice's number to attributes of its own.
    """

    def make(stored: np.ndarray, of_slice=lambda z: {}, **attributes) -> list[pydicom.Dataset]:
        return [
            _slice(z, plane, (-10.0, -20.0, 5 + 2.0 * z), **(attributes | of_slice(z)))
            for z, plane in enumerate(stored)
        ]

    return make


@pytest.fixture(scope="session")
def save_slices():
    """Writes slices into a folder, each by `write(path, slice)` where given."""

    def save(folder: pathlib.Path, slices: list[pydicom.Dataset], write=None) -> pathlib.Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, slice_ in enumerate(slices):
            path = folder / f"{number:03}.dcm"
            write(path, slice_) if write else slice_.save_as(path, enforce_file_format=True)
        return folder

    return save


@pytest.fixture(scope="session")
def pydicom_hu():
    """HU (z, y, x) of slices as pydicom has them, in the order of the slices."""

    def hu(slices: list[pydicom.Dataset]) -> np.ndarray:
        return np.stack([pydicom.pixels.apply_rescale(s.pixel_array, s) for s in slices])

    return hu
