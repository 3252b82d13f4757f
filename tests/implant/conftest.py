"""A chest to implant into, with known noise, and readings of nodules that are ellipsoids."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lung_unet.data.nodules import outline
from lung_unet.data.outlines import Mark, Region
from lung_unet.data.phantom import write_xml
from lung_unet.data.scan import Finding, Grid, Scan
from lung_unet.implant.noise import Noise
from lung_unet.implant.outline_pool import Shape

PSF_MM = 0.6
RATED = {"subtlety": 5.0, "texture": 5.0, "margin": 5.0, "spiculation": 1.0, "calcification": 6.0}


def known_noise(sigma_hu: float = 15.0) -> Noise:
    frequency = np.linspace(0, 1.5, 200)
    power = frequency * np.exp(-4 * (np.pi * PSF_MM * frequency) ** 2)
    return Noise(sigma_hu, frequency, power, PSF_MM)


@pytest.fixture(scope="session", name="known_noise")
def known_noise_() -> Callable[..., Noise]:
    """known_noise(sigma_hu) → noise of filtered backprojection with a Gaussian kernel."""
    return known_noise


def ellipsoid(radii_mm: Sequence[float], spacing_mm: Sequence[float]) -> np.ndarray:
    half = np.ceil(np.divide(radii_mm, spacing_mm)).astype(int) + 1
    offset = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1)
    return (((offset * spacing_mm) / radii_mm) ** 2).sum(-1) <= 1


@pytest.fixture(scope="session")
def make_shape() -> Callable[..., Shape]:
    """make_shape(radii mm, readers, **ratings) → an ellipsoid that readers outlined alike."""

    def make(radii_mm=(5.0, 5.0, 5.0), readers: int = 4, **ratings: float) -> Shape:
        spacing_mm = np.array([1.0, 0.7, 0.7])
        mask = ellipsoid(radii_mm, spacing_mm)
        diameter = 2 * (mask.sum() * np.prod(spacing_mm) * 3 / 4 / np.pi) ** (1 / 3)
        bits = mask * np.uint8((1 << readers) - 1)
        return Shape("1.9", 0, bits, spacing_mm, readers, diameter, RATED | ratings)

    return make


def chest(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Grid]:
    """(hu, lungs, grid) of a chest of 150 × 192 × 192 mm: lungs of -860 HU in soft tissue."""
    rng = np.random.default_rng(seed)
    grid = Grid((60, 160, 160), np.array([2.5, 1.2, 1.2]), np.array([-200.0, -90.0, -95.0]))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij", sparse=True)
    hu = np.full(grid.shape, -1000.0, np.float32)
    hu[np.broadcast_to(y**2 / 0.7 + x**2 / 0.9 < 1, grid.shape)] = 40
    lungs = np.zeros(grid.shape, np.uint8)
    for code, side in ((3, 1), (4, -1)):
        lungs[(x - 0.45 * side) ** 2 / 0.12 + y**2 / 0.35 + z**2 / 0.8 < 1] = code
    hu[lungs > 0] = -860
    hu += known_noise().sample(rng, grid.shape, grid.spacing_mm)
    return np.rint(hu).astype(np.int16), lungs, grid


@pytest.fixture(scope="session", name="chest")
def chest_() -> Callable:
    return chest


@pytest.fixture(scope="session")
def scan() -> Scan:
    hu, lungs, grid = chest()
    return Scan("1.2.3", grid, hu, lungs)


def box_of(grid: Grid, low: Sequence[int], shape: Sequence[int], included: bool = True) -> Finding:
    centre = grid.to_world(np.array(low) + (np.array(shape) - 1) / 2)
    readers = 4 if included else 2
    bits = np.full(shape, (1 << readers) - 1, np.uint8)
    return Finding(centre, 10.0, readers, included, np.array(low), bits)


@pytest.fixture(scope="session", name="box_of")
def box_of_() -> Callable:
    """box_of(grid, low, shape, included) → a nodule of the CT's own that fills a box."""
    return box_of


def write_nodules(path: pathlib.Path, uid: str, nodules: Sequence[tuple], step_mm: float = 1.0):
    """LIDC's XML of ellipsoids: (centre voxel, radii mm, readers) each, on pixels of 0.7 mm."""
    grid = Grid((200, 512, 512), np.array([step_mm, 0.7, 0.7]), np.zeros(3))
    marks = []
    for centre, radii, readers in nodules:
        mask = ellipsoid(radii, grid.spacing_mm)
        low = np.array(centre) - np.array(mask.shape) // 2
        regions = tuple(
            Region(float((low[0] + z) * step_mm), outline(mask[z]) + low[1:])
            for z in np.flatnonzero(mask.any((1, 2)))
        )
        marks += [Mark(r, "nodule", regions, RATED, str(path)) for r in range(readers)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_xml(path, uid, marks, grid)


@pytest.fixture(scope="session", name="write_nodules")
def write_nodules_() -> Callable:
    return write_nodules


@pytest.fixture(scope="session")
def readings(tmp_path_factory) -> pathlib.Path:
    """LIDC's XML of 24 series, each with two nodules that four readers outlined and one of two."""
    root = tmp_path_factory.mktemp("xml")
    for number in range(24):
        radius = 3 + 0.2 * number
        nodules = [
            ((50, 100, 100), (radius, radius + 1, radius), 4),
            ((90, 300, 200), (4, 3.5, 4.5), 4),
            ((140, 200, 300), (3.5, 3.5, 3.5), 2),
        ]
        write_nodules(root / f"{number}.xml", f"1.5.{number}", nodules)
    return root


@pytest.fixture(scope="session")
def dicom(write_series, tmp_path_factory) -> list[pathlib.Path]:
    """Two CTs of two patients; the first has a nodule of its own, outlined beside it."""
    root = tmp_path_factory.mktemp("ct")
    folders = []
    for number in range(2):
        hu, _, grid = chest(number)
        folder = root / f"patient{number}"
        if number == 0:
            hu[28:33, 76:84, 108:118] = 40
            marks = []
            for reader in range(4):
                mask = np.ones((8, 10), bool)
                regions = tuple(
                    Region(float(grid.to_world([z, 0, 0])[0]), outline(mask) + np.array([76, 108]))
                    for z in range(28, 33)
                )
                marks.append(Mark(reader, "nodule", regions, RATED, ""))
            folder.mkdir()
            write_xml(folder / "own.xml", f"1.2.{number}", marks, grid)
        write_series(folder, f"1.2.{number}", hu, grid, {"0010|0020": f"MRN-{number}"})
        folders.append(folder)
    return folders
