"""A finding without an outline is a ball, and a point that something covers has no voxels."""

import numpy as np
import pytest

from lung_unet.data.scan import Grid
from lung_unet.data.spheres import covers, excluded, ignored, sphere


@pytest.mark.parametrize("diameter_mm", [8.0, 15.0, 22.0])
def test_a_sphere_has_its_volume(diameter_mm):
    grid = Grid((60, 60, 60), np.array([1.0, 0.7, 0.7]), np.array([-100.0, 5, 6]))
    centre = grid.to_world([31.3, 28.8, 30.4])
    finding = sphere(centre, diameter_mm, grid, included=True)
    volume = (finding.votes == 4).sum() * 0.49
    assert volume == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.05)
    middle = grid.to_world(np.argwhere(finding.votes).mean(0) + finding.low)
    np.testing.assert_allclose(middle, centre, atol=0.3)
    assert (sphere(centre, diameter_mm, grid, included=False).votes.max()) == 1
    assert finding.outlines() == []  # of readers


@pytest.mark.parametrize("at", [(4.5, 4.5, 4.5), (-0.9, 3, 3), (9.4, 9.9, 0.2), (3.2, 9.9, -0.5)])
def test_a_sphere_covers_a_voxel_at_least_and_stays_inside(at):
    grid = Grid((10, 10, 10), np.array([5.0, 0.7, 0.7]), np.zeros(3))
    finding = sphere(grid.to_world(at), 0.5, grid, included=True)
    assert finding.votes.any()
    assert (finding.low >= 0).all()
    assert (finding.low + finding.votes.shape <= grid.shape).all()
    nearest = np.argwhere(finding.votes) + finding.low
    assert np.abs(nearest - at).max() <= 1


def test_points_become_balls_but_where_something_else_says_what_is_there():
    grid = Grid((40, 40, 40), np.array([2.0, 1.0, 1.0]), np.array([-10.0, 3.0, 7.0]))
    nodule = sphere(grid.to_world([20, 20, 20]), 12.0, grid, included=True)
    inside = excluded(grid.to_world([20, 20, 24]), -1, grid)
    one, other = (excluded(grid.to_world([20, 20, x]), -1, grid) for x in (30, 33))
    large = excluded(grid.to_world([5, 20, 20]), 16.0, grid)
    points = [inside, one, other, large]
    assert covers(nodule, inside.centre_mm, grid) and not covers(inside, inside.centre_mm, grid)
    found = ignored([nodule, *points], grid)
    assert found[:2] == [nodule, inside] and not inside.reader_bits.any()
    for before, after, diameter_mm in zip(points[1:], found[2:], (10, 10, 16), strict=True):
        volume = after.reader_bits.sum() * 2.0
        assert volume == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.1)
        assert covers(after, before.centre_mm, grid) and after.diameter_mm == before.diameter_mm
        assert not after.included and not after.outlines()
