"""DICOM to test with: series as a scanner writes them, and folders of them as TCIA ships them."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.data.outlines import Mark, Region
from lung_unet.data.phantom import write_xml
from lung_unet.data.scan import READERS, Grid

PERSONAL = {  # what must never leave a reader; the UIDs are tags too
    "0008|0020": "19991231",
    "0008|0050": "ACC5550123",
    "0008|0080": "Hospital Santa Planted",
    "0008|0090": "Referring^Planted",
    "0008|1030": "planted study description",
    "0008|103e": "planted series description",
    "0010|0010": "Quixote^Planted",
    "0010|0030": "19470605",
    "0010|1040": "12 Planted Street",
    "0020|0010": "STUDYNUMBER77",
    "0020|4000": "planted comment",
    "0018|1000": "DEVICESERIAL88",
    "0020|000d": "1.2.777.1",
    "0020|0052": "1.2.777.2",
}


def write_series(
    folder: pathlib.Path,
    uid: str = "1.2.3.4",
    hu: np.ndarray | None = None,
    grid: Grid | None = None,
    tags: dict[str, str] | None = None,
    compressor: str | None = None,
    name: str = "{}.dcm",
) -> pathlib.Path:
    """A CT series of int16 HU (z, y, x) on a grid; by default four slices of 16 × 16 pixels.

    `name` is that of a file, of the number of its slice; files are not named in the slices' order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hu is None:
        hu = np.random.default_rng(0).integers(-1000, 400, (4, 16, 16)).astype(np.int16)
    if grid is None:
        grid = Grid(hu.shape, np.array([1.0, 0.5, 0.5]), np.array([5.0, -20.0, -10.0]))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    along_column, along_row = grid.direction[::-1, 1], grid.direction[::-1, 2]
    for z, plane in enumerate(hu):
        image = sitk.GetImageFromArray(plane[None])
        image.SetSpacing([*(float(v) for v in grid.spacing_mm[:0:-1]), 1.0])
        position = grid.to_world([z, 0, 0])[::-1]
        both = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{z + 1}",
            "0008|0060": "CT",
            "0010|0020": "MRN-774900",
            "0020|000d": "1.2.777.1",
            "0020|000e": uid,
            "0020|0032": "\\".join(f"{v:.9g}" for v in position),
            "0020|0037": "\\".join(f"{v:.9g}" for v in (*along_row, *along_column)),
            "0028|1052": "-1024",
            "0028|1053": "1",
        } | (tags or {})
        for tag, value in both.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / name.format((z * 7 + 3) % len(hu))))
        writer.Execute(image)
    return folder


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


@pytest.fixture(scope="session", name="write_series")
def write_series_() -> Callable:
    return write_series


@pytest.fixture(scope="session", name="write_reading")
def write_reading_() -> Callable:
    return write_reading


@pytest.fixture(scope="session")
def personal() -> dict[str, str]:
    """Tags of the folder `lidc_idri` that name the patient or the study, beside the PatientID."""
    return PERSONAL


@pytest.fixture(scope="session")
def lidc_idri(make_scan, tmp_path_factory) -> pathlib.Path:
    """Five chests of four patients in TCIA's layout, with readings; a radiograph and a text."""
    root = tmp_path_factory.mktemp("lidc_idri")
    for number in range(5):
        uid, patient = f"1.2.{number}", number % 4
        hu, _, grid, centre = make_scan(number)
        tags = PERSONAL | {"0010|0020": f"MRN-77490{patient}"}
        folder = root / f"Quixote-{patient}" / f"1.2.777.1.{number}" / uid
        write_series(folder, uid, hu, grid, tags)
        voxel = np.rint(grid.to_voxel(centre)).astype(int)
        write_reading(folder / "07.xml", uid, grid, voxel)
    radiograph = {"0008|0060": "DX"}
    write_series(root / "Quixote-0" / "1.2.777.1.9" / "x", "1.2.9", tags=PERSONAL | radiograph)
    (root / "LICENSE").write_text("CC BY 3.0")
    return root
