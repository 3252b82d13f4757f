"""DICOM to test with: folders of series as TCIA ships them."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
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
