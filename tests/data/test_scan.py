"""A grid says where voxels lie, whichever way its axes run; a scan says what counts."""

import dataclasses
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lung_unet.data.scan import Finding, Grid, Scan

SHAPE = (4, 6, 5)


def random_grid(seed: int) -> Grid:
    """Axes turned by any angle, then permuted and flipped."""
    rng = np.random.default_rng(seed)
    direction = Rotation.random(random_state=rng).as_matrix()[:, rng.permutation(3)]
    direction = direction * rng.choice([-1, 1], 3)
    return Grid(SHAPE, rng.uniform(0.3, 5, 3), rng.uniform(-500, 500, 3), direction)


def voxels(shape) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)


seeds = hypothesis.given(st.integers(0, 2**32 - 1))
few = hypothesis.settings(max_examples=60, derandomize=True, deadline=None)


@few
@seeds
def test_to_voxel_inverts_to_world(seed):
    grid = random_grid(seed)
    points = np.random.default_rng(seed).uniform(-20, 20, (7, 2, 3))
    np.testing.assert_allclose(grid.to_voxel(grid.to_world(points)), points, atol=1e-9)


@few
@seeds
def test_a_grid_holds_what_lies_within_a_voxel_of_it(seed):
    grid = random_grid(seed)
    at = np.random.default_rng(seed).uniform(-2, 8, (50, 3))
    inside = ((at > -1) & (at < SHAPE)).all(1)
    np.testing.assert_array_equal(grid.holds(grid.to_world(at)), inside)


def test_an_array_axis_runs_along_its_direction():
    direction = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])
    grid = Grid(SHAPE, np.array([2.0, 3.0, 5.0]), np.array([10.0, 20.0, 30.0]), direction)
    np.testing.assert_allclose(grid.to_world([1, 0, 0]), [10, 22, 30])
    np.testing.assert_allclose(grid.to_world([0, 1, 0]), [10, 20, 27])
    np.testing.assert_allclose(grid.to_world([0, 0, 1]), [15, 20, 30])


def assert_lps_keeps_the_voxels(grid: Grid) -> None:
    """Each voxel, told by its number, lies where it lay, and goes back to where it was."""
    number = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    lps, axes, flips = grid.to_lps()
    turned = number.transpose(axes)[flips]
    assert lps.shape == turned.shape
    before, after = np.empty((number.size, 3)), np.empty((number.size, 3))
    before[number.ravel()] = grid.to_world(voxels(grid.shape)).reshape(-1, 3)
    after[turned.ravel()] = lps.to_world(voxels(lps.shape)).reshape(-1, 3)
    np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_array_equal(turned[flips].transpose(np.argsort(axes)), number)


@few
@seeds
def test_to_lps_keeps_every_voxel_where_it_is(seed):
    assert_lps_keeps_the_voxels(random_grid(seed))


def test_to_lps_turns_the_axes_to_the_world_s(direction):
    grid = Grid(SHAPE, np.array([1.0, 2.0, 3.0]), np.array([7.0, 8.0, 9.0]), direction)
    assert_lps_keeps_the_voxels(grid)
    lps = grid.to_lps()[0]
    np.testing.assert_allclose(lps.direction, np.eye(3), atol=0.15)
    assert np.linalg.det(lps.direction) == pytest.approx(1)


def test_to_lps_takes_each_axis_once_in_a_tie():
    s = np.sqrt(0.5)
    assert_lps_keeps_the_voxels(
        Grid(SHAPE, np.ones(3), np.zeros(3), np.array([[s, -s, 0], [s, s, 0], [0, 0, 1]]))
    )


@few
@seeds
def test_crop_keeps_positions(seed):
    grid = random_grid(seed)
    low, high = np.array([1, 2, 0]), np.array([3, 6, 4])
    crop = grid.crop(low, high)
    assert crop.shape == (2, 4, 4)
    inside = voxels(crop.shape)
    np.testing.assert_allclose(crop.to_world(inside), grid.to_world(inside + low), atol=1e-9)


@few
@seeds
def test_json_round_trip_is_exact(seed):
    grid = random_grid(seed)
    again = Grid.from_json(json.loads(json.dumps(grid.to_json())))
    assert again.shape == grid.shape
    for name in ("spacing_mm", "origin_mm", "direction"):
        np.testing.assert_array_equal(getattr(again, name), getattr(grid, name))


def finding(included: bool, low, votes) -> Finding:
    votes = np.array(votes, np.uint8)
    bits = (1 << votes) - 1  # of the first readers
    return Finding(np.zeros(3), 5.0, int(votes.max(initial=0)), included, np.array(low), bits)


def scan_of(*findings: Finding) -> Scan:
    grid = Grid(SHAPE, np.ones(3), np.zeros(3))
    return Scan("1.2", grid, np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.uint8), "", findings)


def test_votes_are_the_largest_of_the_findings_at_each_voxel():
    scan = scan_of(
        finding(True, (0, 0, 0), np.full((2, 2, 2), 3)), finding(False, (1, 1, 1), [[[1, 2]]])
    )
    expected = np.zeros(SHAPE, np.uint8)
    expected[:2, :2, :2] = 3
    expected[1, 1, 2] = 2
    np.testing.assert_array_equal(scan.votes, expected)
    assert scan.votes.dtype == np.uint8


def test_a_mark_of_no_reader_is_ignored_but_no_vote():
    for readers in (0, 1):  # a row of LUNA16's table, a point of one reader: a ball of neither
        mark = dataclasses.replace(
            finding(False, (0, 0, 0), [[[1, 1]]]), readers=readers, outlined=False
        )
        scan = scan_of(mark)
        assert not scan.votes.any()
        assert scan.ignore.sum() == 2


@few
@seeds
def test_ignore_covers_what_does_not_count_and_never_what_counts(seed):
    rng = np.random.default_rng(seed)
    findings = [
        finding(bool(rng.integers(2)), rng.integers(0, 3, 3), rng.integers(0, 4, (2, 2, 2)))
        for _ in range(rng.integers(0, 6))
    ]
    findings.append(finding(False, (0, 0, 0), np.zeros((0, 0, 0))))  # one point: no voxels
    counted, other = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    for f in findings:
        for at in np.argwhere(f.votes) + f.low:
            (counted if f.included else other)[tuple(at)] = True
    np.testing.assert_array_equal(scan_of(*findings).ignore, other & ~counted)
