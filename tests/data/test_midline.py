"""Left and right are the patient's, whatever part of the lungs is seen."""

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.data.body import coarsen, find_body
from lung_unet.data.midline import LEFT, RIGHT, find_midline, tell_apart
from lung_unet.data.scan import Grid, Midline

SPACING_MM = np.full(3, 3.0)
SHAPE = (40, 60, 80)
MIDDLE = Midline(np.array([0.0, 0.0, 120.0]), np.array([0.0, 0.0, 1.0]))


def ellipsoid(centre, radii) -> np.ndarray:
    where = np.indices(SHAPE).transpose(1, 2, 3, 0)
    return (((where - centre) / radii) ** 2).sum(-1) < 1


LEFT_LUNG = ellipsoid((20, 30, 56), (16, 20, 12))
RIGHT_LUNG = ellipsoid((20, 30, 24), (16, 20, 12))


@pytest.mark.parametrize("midline", [MIDDLE, None])
def test_lungs_that_touch_are_parted_where_they_are_thin(midline):
    junction = np.zeros(SHAPE, bool)
    junction[16:24, 14:18, 28:52] = True
    codes, found = tell_apart(LEFT_LUNG | RIGHT_LUNG | junction, SPACING_MM, midline)
    assert found is not None
    assert (codes[LEFT_LUNG & ~junction] == LEFT).all()
    assert (codes[RIGHT_LUNG & ~junction] == RIGHT).all()
    np.testing.assert_array_equal(codes > 0, LEFT_LUNG | RIGHT_LUNG | junction)


@pytest.mark.parametrize(("lung", "code"), [(LEFT_LUNG, LEFT), (RIGHT_LUNG, RIGHT)])
def test_one_lung_is_of_its_side_also_where_it_crosses_the_midline(lung, code):
    across = ndimage.binary_dilation(lung, iterations=6)
    codes, found = tell_apart(across, SPACING_MM, MIDDLE)
    assert found is MIDDLE
    assert (codes[across] == code).all()


def test_the_side_of_one_lung_alone_is_unknown_without_a_midline():
    assert tell_apart(LEFT_LUNG, SPACING_MM, None)[1] is None
    above = ellipsoid((10, 30, 40), (8, 20, 12)) | ellipsoid((30, 30, 42), (8, 20, 12))
    assert tell_apart(above, SPACING_MM, None)[1] is None  # two lobes of one lung


def chest(make_scan, spine: bool) -> tuple[np.ndarray, Grid, np.ndarray]:
    hu, lungs, grid, _ = make_scan(0)
    if spine:
        hu[:, 46:56, 27:37] = 300
        lungs[:, 46:56, 27:37] = 0
    return hu, grid, lungs


def midline_of(hu: np.ndarray, grid: Grid) -> Midline | None:
    coarse = coarsen(hu, grid.spacing_mm, 3.0)
    return find_midline(coarse, find_body(coarse), np.ones(len(coarse.hu), bool))


@pytest.mark.parametrize(
    ("spine", "first", "last"), [(True, 0, 64), (False, 0, 64), (True, 0, 50), (True, 14, 64)]
)
def test_the_midline_is_that_of_spine_or_body(make_scan, spine, first, last):
    hu, grid, _ = chest(make_scan, spine)
    midline = midline_of(hu[:, :, first:last], grid)
    assert abs(midline.at_mm[2] + 3.0 * first - 96) < 6
    assert midline.left[2] > 0.99


def test_no_midline_where_neither_spine_nor_both_sides_are_seen(make_scan):
    hu, grid, _ = chest(make_scan, spine=True)
    assert midline_of(hu[:, :, 38:56], grid) is None
    assert midline_of(chest(make_scan, spine=False)[0][:, :, 10:], grid) is None


@pytest.mark.parametrize("degrees", [-20, 10, 25])
def test_the_midline_turns_with_the_patient(make_scan, degrees):
    hu, grid, lungs = chest(make_scan, spine=True)
    turned = ndimage.rotate(hu, degrees, (1, 2), reshape=False, order=1, cval=-1000)
    codes = ndimage.rotate(lungs, degrees, (1, 2), reshape=False, order=0)
    midline = midline_of(turned, grid)
    for code, sign in ((LEFT, 1), (RIGHT, -1)):
        points = (np.argwhere(codes == code) + 0.5) * grid.spacing_mm
        assert (sign * midline.left_mm(points) > 0).mean() > 0.97
