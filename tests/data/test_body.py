"""What is not anatomy, blank slices and padding of any value, changes neither body nor air."""

import numpy as np
import pytest

from lung_unet.data.body import coarsen, find_body
from lung_unet.data.scan import Grid

COARSE_MM = 3.0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def air_and_body(hu: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    coarse = coarsen(hu, grid.spacing_mm, COARSE_MM)
    return coarse.upsample(coarse.air), coarse.upsample(find_body(coarse))


def outside_circle(shape: tuple[int, ...], radius: float) -> np.ndarray:
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
    return np.broadcast_to(y**2 + x**2 > radius**2, shape)


@pytest.mark.parametrize("value", [-3024, -1024, 0])
@pytest.mark.parametrize("slices", [[15], [10, 20], [13, 14, 15, 16], list(range(6, 26, 3))])
def test_blank_slices_are_bridged(make_scan, value, slices):
    hu, lungs, grid, _ = make_scan(0)
    blank = hu.copy()
    blank[slices] = value
    expected, body = air_and_body(hu, grid)
    found, found_body = air_and_body(blank, grid)
    assert dice(found, expected) > 0.95
    assert dice(found_body, body) > 0.95
    for z in slices:
        assert dice(found[z], lungs[z] > 0) > 0.75


@pytest.mark.parametrize("value", [-3024, -2000, -1024, 0, 32767])
def test_padding_around_the_field_of_view_is_outside(make_scan, value):
    hu, _, grid, _ = make_scan(1)
    ring = outside_circle(hu.shape, 0.98)
    expected, body = air_and_body(hu, grid)
    found, found_body = air_and_body(np.where(ring, value, hu).astype(np.int16), grid)
    assert dice(found, expected) > 0.98
    assert dice(found_body & ~ring, body & ~ring) > 0.98
    assert not (found & ring).any()


@pytest.mark.parametrize("value", [-3024, 0, 32767])
def test_lungs_that_the_field_of_view_cuts_are_inside(make_scan, value):
    hu, lungs, grid, _ = make_scan(1)
    seen = ~outside_circle(hu.shape, 0.5)
    found, _ = air_and_body(np.where(seen, hu, value).astype(np.int16), grid)
    assert dice(found, (hu < -400) & (lungs > 0) & seen) > 0.9
    left = (slice(None), slice(None), slice(32, 48))
    cut, _ = air_and_body(hu[left], Grid((30, 64, 16), grid.spacing_mm, grid.origin_mm))
    assert dice(cut, (hu < -400)[left] & (lungs > 0)[left]) > 0.9


def test_air_as_dense_as_lung_is_outside_where_there_is_fat_beneath_the_skin(make_scan):
    """Clothes, foam and streaks."""
    hu, lungs, grid, _ = make_scan(2)
    _, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    away = y**2 / 0.7 + x**2 / 0.9
    hu[(away < 1) & (away > 0.75)] = -100
    hu[away > 1] += 100
    assert not air_and_body(hu, grid)[0][away > 1.1].any()
    hu[(away < 1) & (lungs == 0)] = 40  # as where a field of view ends within the lungs
    assert air_and_body(hu, grid)[0][away > 1.1].all()


def test_a_table_is_no_body(make_scan):
    hu, _, grid, _ = make_scan(0)
    expected = air_and_body(hu, grid)[1]
    hu[:, 61:63] = 100
    body = air_and_body(hu, grid)[1]
    assert body.any() and not body[:, 62].any()
    assert dice(body, expected) > 0.97
