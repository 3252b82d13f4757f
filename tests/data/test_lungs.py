"""Lungs found by their air, whatever touches them, whichever way the scan is turned."""

import numpy as np
import pytest

from lung_unet.data.dicom_series import read_volume, series_in
from lung_unet.data.hounsfield import hounsfield
from lung_unet.data.lungs import LEFT, RIGHT, segment_lungs
from lung_unet.data.scan import Grid


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("seed", range(3))
def test_lungs_of_a_plain_chest(make_scan, seed):
    hu, lungs, grid, _ = make_scan(seed)
    found = segment_lungs(hu, grid)
    assert found.dtype == np.uint8
    assert found.shape == hu.shape
    for code in (LEFT, RIGHT):
        assert dice(found == code, lungs == code) > 0.9


def test_a_nodule_that_touches_the_wall_belongs_to_the_lung(make_scan):
    hu, lungs, grid, _ = make_scan(0)
    left = np.argwhere(lungs == LEFT)
    edge = left[np.lexsort((-left[:, 2], abs(left[:, 0] - 15)))[0]]  # the lateral wall, mid height
    where = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    away = np.linalg.norm(grid.to_world(where) - grid.to_world(edge) + [0, 0, 8], axis=-1)
    nodule = (away < 7) & (lungs == LEFT)
    assert nodule.sum() > 20
    hu[nodule] = 40
    found = segment_lungs(hu, grid)
    assert (found[nodule] == LEFT).mean() > 0.6
    assert dice(found > 0, lungs > 0) > 0.9


def test_orientation_does_not_matter(make_scan, direction):
    """The same patient, scanned with the axes another way round: the same voxels are lung."""
    hu, _, grid, _ = make_scan(1)
    expected = segment_lungs(hu, grid)
    turned = Grid(grid.shape, grid.spacing_mm, grid.origin_mm, direction)
    _, axes, flips = turned.to_lps()
    back = np.argsort(axes)
    own_hu = hu[flips].transpose(back)
    own = Grid(own_hu.shape, grid.spacing_mm[back], turned.origin_mm, direction)
    np.testing.assert_array_equal(segment_lungs(own_hu, own), expected[flips].transpose(back))


@pytest.mark.parametrize("hu", [-1000, 40])
def test_no_lungs(hu):
    grid = Grid((12, 30, 30), np.full(3, 5.0), np.zeros(3))
    found = segment_lungs(np.full(grid.shape, hu, np.int16), grid)
    assert found.shape == grid.shape
    assert not found.any()


def test_air_outside_the_body_is_no_lung(make_scan):
    hu, lungs, grid, _ = make_scan(2)
    found = segment_lungs(np.where(lungs > 0, 40, hu).astype(np.int16), grid)
    assert not found.any()


def test_lungs_of_a_real_chest(real_data):
    ((uid, slices),) = series_in((real_data / "chest_ct_dicom").iterdir()).items()
    array, grid = read_volume(slices, real_data)
    found = segment_lungs(hounsfield(array, uid), grid)
    litres = np.prod(grid.spacing_mm) * 1e-6
    middle = {}
    for code in (LEFT, RIGHT):
        assert 1 < (found == code).sum() * litres < 4
        middle[code] = grid.to_world(np.argwhere(found == code).mean(0))
    assert middle[LEFT][2] - middle[RIGHT][2] > 80  # x grows to the patient's left
    assert set(np.unique(found)) == {0, LEFT, RIGHT}
