"""Surface metrics against their definition, and what is defined where a mask is empty."""

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.evaluation.surface import surface, surface_distances

SPACING_MM = np.array([2.5, 0.7, 0.8])
NONE = np.zeros((4, 5, 6), bool)


def random_pair(seed):
    rng = np.random.default_rng(seed)
    return [ndimage.uniform_filter(rng.random((9, 12, 11)), 3) > 0.53 for _ in range(2)]


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_distance_transforms_of_the_eroded_masks(seed):
    pair = random_pair(seed)
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in pair]
    to = [ndimage.distance_transform_edt(~edge, sampling=SPACING_MM) for edge in edges]
    there, back = to[1][edges[0]], to[0][edges[1]]
    found = surface_distances(*pair, SPACING_MM)
    larger = max(np.percentile(there, 95), np.percentile(back, 95))
    assert found.hd95_mm() == pytest.approx(larger, rel=1e-6)
    for tolerance in (0.9, 2.3, 4.1):  # that no distance is equal to
        near = (there <= tolerance).sum() + (back <= tolerance).sum()
        assert found.surface_dice(tolerance) == pytest.approx(near / (len(there) + len(back)))


def test_a_surface_is_what_has_a_face_outside_also_at_the_arrays_end():
    mask = np.ones((3, 4, 5), bool)
    assert len(surface(mask)) == 60 - 1 * 2 * 3
    assert len(surface(np.pad(mask, 1))) == 60 - 1 * 2 * 3
    np.testing.assert_array_equal(surface(np.pad(mask, 2)), surface(mask) + 2)


@pytest.mark.parametrize("axis", range(3))
def test_a_shift_is_as_far_as_it_is_in_mm(axis):
    plate = np.zeros((40, 40, 40), bool)
    plate[tuple(slice(12, 13) if a == axis else slice(12, 18) for a in range(3))] = True
    found = surface_distances(plate, np.roll(plate, 10, axis), SPACING_MM)
    assert found.hd95_mm() == pytest.approx(10 * SPACING_MM[axis])
    assert found.surface_dice(10.1 * SPACING_MM[axis]) == 1
    assert found.surface_dice(9.9 * SPACING_MM[axis]) == 0


def test_what_is_a_tolerance_away_is_within_it_however_a_float_rounds():
    """Ten voxels of 0.1 mm are 1 mm."""
    for at in range(20):
        a, b = np.zeros((2, 40, 1, 1), bool)
        a[at], b[at + 10] = True, True
        assert surface_distances(a, b, [0.1, 1, 1]).surface_dice(1.0) == 1


def test_empty_masks_have_defined_values():
    some = ~NONE
    for pair in ((some, NONE), (NONE, some)):
        found = surface_distances(*pair, SPACING_MM)
        assert found.hd95_mm() is None and found.surface_dice(2.0) == 0
    both = surface_distances(NONE, NONE, SPACING_MM)
    assert both.hd95_mm() is None and both.surface_dice(2.0) is None
    same = surface_distances(some, some, SPACING_MM)
    assert same.hd95_mm() == 0 and same.surface_dice(0.0) == 1
