"""Left and right are the patient's, whatever part of the lungs is seen."""

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.data.body import coarsen, find_body
from lung_unet.data.lungs import scan_with_lungs
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


def test_lobes_that_are_close_side_by_side_are_not_two_lungs():
    lobes = ellipsoid((20, 30, 32), (16, 20, 8)) | ellipsoid((20, 30, 48), (16, 20, 8))
    assert tell_apart(lobes, SPACING_MM, None)[1] is None


@pytest.mark.parametrize("beyond", [-1024, 0, 32767])
def test_a_round_field_of_view_within_the_body_has_no_middle(beyond):
    hu = np.full((20, 90, 90), 40, np.int16)
    hu[:, 25:65, 25:65] = -850
    y, x = np.indices((90, 90)) - 44.5
    hu[:, np.hypot(y, x) > 45] = beyond
    assert midline_of(hu, Grid(hu.shape, SPACING_MM, np.zeros(3))) is None


@pytest.mark.parametrize("degrees", [45, 60, 90])
def test_there_is_no_midline_of_a_patient_who_is_turned_too_far(degrees):
    z, y, x = np.indices((20, 90, 90)) - np.array([10, 44.5, 44.5])[:, None, None, None]
    turn = np.deg2rad(degrees)
    across, deep = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    inside = np.hypot(across / (34 + z / 5), deep / (24 + z / 5)) < 1
    hu = np.where(inside, 40, -1000).astype(np.int16)
    assert midline_of(hu, Grid(hu.shape, SPACING_MM, np.zeros(3))) is None


@pytest.mark.parametrize("flips", [np.s_[:, ::-1], np.s_[:, ::-1, ::-1]])
def test_no_side_is_told_where_the_spine_is_in_front(make_scan, flips):
    hu, grid, _ = chest(make_scan, spine=True)
    right = scan_with_lungs("1.2", grid, hu)
    assert right.sides_known and not any("spine" in w for w in right.warnings)
    wrong = scan_with_lungs("1.2", grid, hu[flips])
    assert not wrong.sides_known and wrong.midline is None and wrong.body is not None
    assert any("spine" in w for w in wrong.warnings)
