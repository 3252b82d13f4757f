"""What the network sees lies where it lay in the patient, and what it finds goes back there."""

import dataclasses

import numpy as np
import pytest

from lung_unet.data.scan import IGNORE, Finding, Grid, Scan
from lung_unet.data.spheres import sphere
from lung_unet.data.volume import make_labels, make_volume, onto_source

CENTRE_MM = np.array([40.0, -25.0, 60.0])
SPACING_MM = np.array([3.0, 2.0, 2.5])


def positions(grid: Grid) -> np.ndarray:
    return grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))


def blob(points_mm: np.ndarray) -> np.ndarray:
    """-1000 … 0 HU, smooth: a bright ball around CENTRE_MM, longer in z than in y than in x."""
    distance = (points_mm - CENTRE_MM) / [14.0, 10.0, 8.0]
    return 1000 * np.exp(-0.5 * (distance**2).sum(-1)) - 1000


def scan_around(direction: np.ndarray, lung_mm: float = 22.0) -> Scan:
    """A scan whose middle is near CENTRE_MM; lungs in a ball there, a trachea in a corner."""
    shape = (30, 42, 36)
    middle = (np.array(shape) - 1) / 2 * SPACING_MM
    grid = Grid(shape, SPACING_MM, CENTRE_MM - direction @ middle + [1.2, -0.7, 0.4], direction)
    hu = np.rint(blob(positions(grid))).astype(np.int16)
    away = np.linalg.norm(positions(grid) - CENTRE_MM, axis=-1)
    lungs = np.where(away < lung_mm, 3, 0).astype(np.uint8)
    lungs[(lungs > 0) & (positions(grid)[..., 2] < CENTRE_MM[2])] = 4
    lungs[:2, :2, :2] = 5
    return Scan("1.2", grid, hu, lungs)


@pytest.mark.parametrize("spacing_mm", [1.5, 3.0])
def test_every_voxel_shows_what_lies_there(direction, spacing_mm):
    volume = make_volume(scan_around(direction), spacing_mm, 12.0)
    assert volume.hu.dtype == np.int16
    assert volume.hu.shape == volume.lungs.shape == volume.grid.shape
    np.testing.assert_array_equal(volume.grid.spacing_mm, spacing_mm)
    error = np.abs(volume.hu - blob(positions(volume.grid)))[1:-1, 1:-1, 1:-1]
    assert error.max() < 40  # of 1000, by linear interpolation; a voxel's shift makes over 100


def test_a_marker_s_centroid_stays(direction):
    volume = make_volume(scan_around(direction), 2.0, 12.0)
    weight = np.maximum(0.0, volume.hu + 700.0)[..., None]
    centroid = (positions(volume.grid) * weight).sum((0, 1, 2)) / weight.sum()
    np.testing.assert_allclose(centroid, CENTRE_MM, atol=0.25)


def test_the_volume_s_axes_are_the_world_s(direction):
    volume = make_volume(scan_around(direction), 2.0, 12.0)
    np.testing.assert_allclose(volume.grid.direction, np.eye(3), atol=0.15)


@pytest.mark.parametrize("margin_mm", [0.0, 9.0])
def test_the_crop_holds_the_lungs_and_a_margin_and_little_more(direction, margin_mm):
    scan = scan_around(direction)
    volume = make_volume(scan, 2.0, margin_mm)
    inside = volume.grid.to_voxel(positions(scan.grid)[(scan.lungs == 3) | (scan.lungs == 4)])
    before_mm = (inside.min(0) + 0.5) * 2.0
    after_mm = (volume.grid.shape - inside.max(0) - 0.5) * 2.0
    for kept in (before_mm, after_mm):
        assert (kept >= margin_mm - 0.5).all()  # half a scan voxel lies beyond its centre
        assert (kept < margin_mm + 1.5 * SPACING_MM.max() + 2.0).all()


def test_a_margin_ends_at_the_scan_s_end():
    scan = scan_around(np.eye(3), lung_mm=500.0)
    extent = scan.grid.shape * SPACING_MM
    volume = make_volume(scan, 2.0, 50.0)
    np.testing.assert_allclose(volume.grid.shape * volume.grid.spacing_mm, extent, atol=1.0)


def test_lungs_are_codes_3_and_4(direction):
    scan = scan_around(direction)
    volume = make_volume(scan, 2.0, 12.0)
    away = np.linalg.norm(positions(volume.grid) - CENTRE_MM, axis=-1)
    assert volume.lungs[away < 19].all()
    assert not volume.lungs[away > 25].any()


def test_without_lungs_the_whole_scan_is_taken():
    scan = scan_around(np.eye(3), lung_mm=0.0)
    assert (scan.lungs == 5).any()
    volume = make_volume(scan, 3.0, 12.0)
    extent = scan.grid.shape * SPACING_MM
    np.testing.assert_allclose(volume.grid.shape * volume.grid.spacing_mm, extent, atol=1.5)
    assert volume.lungs.all() and volume.whole_body


def test_a_body_is_searched_whole_and_cropped_to(direction):
    scan = scan_around(direction, lung_mm=12.0)
    away = np.linalg.norm(positions(scan.grid) - CENTRE_MM, axis=-1)
    volume = make_volume(dataclasses.replace(scan, body=away < 25), 2.0, 3.0)
    assert volume.whole_body and not make_volume(scan, 2.0, 3.0).whole_body
    away = np.linalg.norm(positions(volume.grid) - CENTRE_MM, axis=-1)
    assert volume.lungs[away < 22].all()
    assert not volume.lungs[away > 28].any()
    assert volume.hu.size < 0.6 * np.prod(scan.grid.shape) * np.prod(SPACING_MM) / 8


@pytest.mark.parametrize("spacing_mm", [1.0, 3.0])
def test_onto_source_is_the_way_back(direction, spacing_mm):
    scan = scan_around(direction)
    volume = make_volume(scan, spacing_mm, 12.0)
    low, box = onto_source(blob(positions(volume.grid)), volume.grid, scan.grid)
    there = tuple(slice(l, l + n) for l, n in zip(low, box.shape, strict=True))
    covered = np.zeros(scan.grid.shape, bool)
    covered[there] = True
    at = volume.grid.to_voxel(positions(scan.grid))
    np.testing.assert_array_equal(
        covered, ((at >= -0.5 - 1e-6) & (at <= np.array(volume.grid.shape) - 0.5 + 1e-6)).all(-1)
    )
    assert covered[(scan.lungs == 3) | (scan.lungs == 4)].all()
    assert not covered.all()
    error = np.abs(box - scan.hu[there])[1:-1, 1:-1, 1:-1]
    assert error.max() < 40


def test_a_mask_comes_back_onto_the_scan_s_own_voxels(direction):
    scan = scan_around(direction)
    volume = make_volume(scan, 1.0, 12.0)
    inside = np.linalg.norm(positions(volume.grid) - CENTRE_MM - [0, 6, -4], axis=-1) < 12
    low, box = onto_source(inside.astype(np.float32), volume.grid, scan.grid)
    mask = np.zeros(scan.grid.shape, bool)
    mask[tuple(slice(l, l + n) for l, n in zip(low, box.shape, strict=True))] = box > 0.5
    away = np.linalg.norm(positions(scan.grid) - CENTRE_MM - [0, 6, -4], axis=-1)
    assert mask[away < 11].all()
    assert not mask[away > 13].any()


# --- Labels ---------------------------------------------------------------------------------------


def ball(scan: Scan, offset_mm, diameter_mm: float, included: bool = True) -> Finding:
    return sphere(CENTRE_MM + offset_mm, diameter_mm, scan.grid, included)


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0, 3.3])
def test_a_sphere_keeps_its_size_and_place(direction, spacing_mm):
    scan = scan_around(direction)
    volume = make_volume(scan, spacing_mm, 12.0)
    finding = ball(scan, [3, -5, 2], 22.0)
    labels = make_labels((finding,), volume)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 4}
    assert (labels > 0).sum() * spacing_mm**3 == pytest.approx(np.pi / 6 * 22.0**3, rel=0.08)
    centroid = positions(volume.grid)[labels > 0].mean(0)
    np.testing.assert_allclose(centroid, finding.centre_mm, atol=0.7)


def test_what_does_not_count_is_ignored_and_what_counts_is_drawn_over_it(direction):
    scan = scan_around(direction)
    volume = make_volume(scan, 2.0, 12.0)
    counted, excluded = ball(scan, 0, 14.0), ball(scan, [0, 8, 0], 14.0, included=False)
    alone = make_labels((counted,), volume)
    ignored = make_labels((excluded,), volume)
    assert set(np.unique(ignored)) == {0, IGNORE}
    for findings in ((counted, excluded), (excluded, counted)):
        labels = make_labels(findings, volume)
        np.testing.assert_array_equal(labels[alone > 0], alone[alone > 0])
        np.testing.assert_array_equal(labels == IGNORE, (ignored == IGNORE) & (alone == 0))


def test_the_most_votes_win_where_two_findings_meet():
    scan = scan_around(np.eye(3))
    volume = make_volume(scan, 2.0, 12.0)
    four, two = ball(scan, 0, 14.0), ball(scan, [0, 5, 0], 14.0)
    two.reader_bits[:] &= 0b0101
    both = np.maximum(make_labels((four,), volume), make_labels((two,), volume))
    for findings in ((four, two), (two, four)):
        np.testing.assert_array_equal(make_labels(findings, volume), both)
    assert set(np.unique(both)) == {0, 2, 4}


@pytest.mark.parametrize("spacing_mm", [1.0, 4.0])
@pytest.mark.parametrize("offset_mm", [0.0, 0.9, 1.8])
def test_the_smallest_nodule_keeps_a_voxel_where_it_is(direction, spacing_mm, offset_mm):
    scan = scan_around(direction)
    volume = make_volume(scan, spacing_mm, 12.0)
    labels = make_labels((ball(scan, offset_mm, 0.5),), volume)
    assert labels.any()
    away = np.linalg.norm(positions(volume.grid)[labels > 0] - CENTRE_MM - offset_mm, axis=-1)
    assert away.max() < max(spacing_mm, SPACING_MM.max()) * np.sqrt(3)


def test_what_lies_outside_the_crop_is_left_out():
    scan = scan_around(np.eye(3), lung_mm=15.0)
    volume = make_volume(scan, 2.0, 3.0)
    beyond = ball(scan, [38, 0, 0], 5.0)
    assert beyond.votes.any()
    point = Finding(
        CENTRE_MM, -1.0, 1, False, np.array([15, 20, 18]), np.zeros((0, 0, 0), np.uint8)
    )
    assert not make_labels((beyond, point), volume).any()
