"""A prediction on the scan's own grid: where the model saw it, each finding apart."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.data.scan import Grid, Midline, Scan
from lung_unet.data.volume import make_volume, onto_source
from lung_unet.evaluation import prediction
from lung_unet.evaluation.candidates import find_candidates, mask_of
from lung_unet.evaluation.operating_point import OperatingPoint
from lung_unet.evaluation.prediction import label_candidates, lung_of, predict_scan

SPACING_MM = np.array([5.0, 1.5, 2.0])
THRESHOLD = 0.5


def scan_in(direction: np.ndarray, spacing_mm=SPACING_MM) -> Scan:
    """70 × 70 × 70 mm of noise, all of it the left lung but for the edge."""
    shape = np.rint(70 / spacing_mm).astype(int)
    hu = np.random.default_rng(1).integers(-1000, 0, shape).astype(np.int16)
    lungs = np.zeros(shape, np.uint8)
    lungs[2:-2, 3:-3, 3:-3] = 3
    grid = Grid(tuple(map(int, shape)), spacing_mm, np.array([-30.0, 12.0, 7.0]), direction)
    return Scan("1.2", grid, hu, lungs)


def blobs(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Probability of a few dozen regions, some of them a voxel from the next, up to the edges."""
    noise = np.random.default_rng(2).normal(size=hu.shape)
    smooth = ndimage.gaussian_filter(noise, 2.0)
    return (1 / (1 + np.exp(-12 * smooth / smooth.std() + 9))).astype(np.float32)


def point_at(min_diameter_mm: float) -> OperatingPoint:
    return OperatingPoint(THRESHOLD, THRESHOLD, THRESHOLD, min_diameter_mm)


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, np.array([0.8, 0.6, 0.7])])
def test_labels_are_the_mask_of_all_candidates_told_apart(direction, spacing_mm):
    scan = scan_in(direction, spacing_mm)
    volume = make_volume(scan, 1.3, 4.0)
    probability = blobs(volume.hu, volume.lungs)
    candidates = find_candidates(probability, volume, THRESHOLD, 3.0)
    assert len(candidates) > 8
    labels, boxes = label_candidates(candidates, probability, volume, THRESHOLD)

    whole = probability.copy()
    whole[(probability > THRESHOLD) & ~mask_of(candidates, volume.grid.shape)] = 0
    assert (whole != probability).any()  # some were too small
    low, box = onto_source(whole, volume.grid, scan.grid)
    expected = np.zeros(scan.grid.shape, np.float32)
    expected[tuple(slice(l, l + n) for l, n in zip(low, box.shape, strict=True))] = box
    sure = np.abs(expected - THRESHOLD) > 1e-5
    assert (labels > 0)[sure & (expected > THRESHOLD)].all()
    added = labels[sure & (expected < THRESHOLD) & (labels > 0)]
    assert (np.bincount(labels.ravel())[added] == 1).all()  # the thinnest keep one voxel

    for number, (candidate, where) in enumerate(zip(candidates, boxes, strict=True), 1):
        own = labels == number
        assert own.any()
        assert own.sum() == (labels[where] == number).sum()  # its box holds all of it
        at = np.rint(volume.grid.to_voxel(scan.grid.to_world(np.argwhere(own)))).astype(int)
        at = np.clip(at, 0, np.array(volume.grid.shape) - 1)
        near = ndimage.binary_dilation(in_volume(candidate, volume), iterations=4)
        assert near[tuple(at.T)].all()


def test_more_candidates_than_two_bytes_count_keep_their_numbers(monkeypatch):
    scan = scan_in(np.eye(3))
    volume = make_volume(scan, 2.0, 0.0)
    probability = np.zeros(volume.grid.shape, np.float32)
    probability[2, 2, 2] = 1
    (candidate,) = find_candidates(probability, volume, THRESHOLD, 0.0)
    rising = iter(np.linspace(0.6, 1, 1 << 17, dtype=np.float32))  # each above the one before
    monkeypatch.setattr(
        prediction,
        "onto_source",
        lambda *_: (np.zeros(3, int), np.full((1, 1, 1), next(rising))),
    )
    monkeypatch.setattr(prediction, "mask_on_source", lambda *_: np.ones(scan.grid.shape, bool))
    for count, dtype in ((9, np.uint16), (65_536, np.uint32)):
        labels, boxes = label_candidates([candidate] * count, probability, volume, THRESHOLD)
        assert (labels.dtype, labels[0, 0, 0], len(boxes)) == (dtype, count, count)


def in_volume(candidate, volume) -> np.ndarray:
    return mask_of([candidate], volume.grid.shape)


def test_one_thinner_than_the_scans_grid_keeps_its_middle_voxel():
    scan = scan_in(np.eye(3), np.array([10.0, 1.0, 1.0]))
    volume = make_volume(scan, 1.0, 0.0)
    inside = volume.grid.to_voxel(scan.grid.to_world([3.5, 30, 30])).round().astype(int)

    def dot(hu, lungs):
        probability = np.zeros(hu.shape, np.float32)
        probability[tuple(slice(i - 1, i + 2) for i in inside)] = 0.9
        return probability

    prediction = predict_scan(dot, scan, volume, point_at(0.0))
    assert (prediction.labels > 0).sum() == 1
    assert prediction.detections[0].volume_mm3 == pytest.approx(10.0)


def test_positions_sizes_and_probability_are_those_of_the_scans_voxels(direction):
    scan = scan_in(direction, np.array([0.8, 0.6, 0.7]))
    volume = make_volume(scan, 1.3, 4.0)
    prediction = predict_scan(blobs, scan, volume, point_at(3.0))
    voxel_mm3 = np.prod(scan.spacing_mm)
    counts = np.bincount(prediction.labels.ravel())[1:] * voxel_mm3
    np.testing.assert_allclose([d.volume_mm3 for d in prediction.detections], counts)
    for number, d in enumerate(prediction.detections, 1):
        np.testing.assert_allclose(scan.grid.to_world(d.centre_voxel), d.centre_mm, atol=1e-9)
        own = prediction.labels == number
        middle = scan.grid.to_world(np.argwhere(own).mean(0))
        assert np.linalg.norm(middle - d.centre_mm) < 2.0
        values = prediction.probability[own] / 255
        assert values.min() - 0.01 <= d.probability <= values.max() + 0.05
    spheres = sum(np.pi / 6 * d.diameter_mm**3 for d in prediction.detections)
    assert counts.sum() == pytest.approx(spheres, rel=0.05)  # nothing shrinks
    inside = prediction.labels > 0
    assert prediction.probability[inside].min() >= 127
    assert prediction.probability.dtype == np.uint8


def test_the_lung_is_the_one_around_or_the_one_near():
    grid = Grid((10, 10, 60), np.array([5.0, 2.0, 2.0]), np.zeros(3))
    lungs = np.zeros(grid.shape, np.uint8)
    lungs[..., 10:20], lungs[..., 30:40] = 4, 3
    scan = Scan("1.2", grid, np.zeros(grid.shape, np.int16), lungs)

    def side(start: int, stop: int, scan: Scan = scan) -> str:
        box = (slice(2, 4), slice(2, 4), slice(start, stop))
        return lung_of(np.ones((2, 2, stop - start), bool), box, scan)

    assert side(12, 15) == "right"
    assert side(32, 35) == "left"
    assert side(27, 34) == "left"  # half in the mediastinum
    assert side(7, 9) == "right"  # at the pleura
    assert side(50, 55) == "outside"
    none = Scan("1.2", grid, scan.hu, np.zeros_like(lungs))
    assert side(12, 15, none) == "unknown"


def test_without_plausible_lungs_the_side_is_that_of_the_midline_where_it_is_sure():
    grid = Grid((10, 10, 80), np.array([5.0, 2.0, 2.0]), np.zeros(3))
    lungs = np.zeros(grid.shape, np.uint8)
    lungs[..., 50:75] = 3  # the right one is opaque; some of it was taken for the left
    lungs[..., 5:8] = 3
    scan = Scan(
        "1.2", grid, np.zeros(grid.shape, np.int16), lungs,
        body=np.ones(grid.shape, bool), midline=Midline(np.array([0.0, 0.0, 80.0]), np.eye(3)[2]),
    )  # fmt: skip

    def side(start: int, stop: int, scan: Scan = scan) -> str:
        box = (slice(2, 4), slice(2, 4), slice(start, stop))
        return lung_of(np.ones((2, 2, stop - start), bool), box, scan)

    assert side(60, 63) == side(76, 79) == "left"
    assert side(15, 18) == "right"
    assert side(36, 44) == "unknown"  # in the middle
    assert side(5, 8) == "unknown"  # lung and midline do not agree
    for unknown in (
        dataclasses.replace(scan, sides_known=False, midline=None),
        dataclasses.replace(scan, sides_known=False, midline=None, body=None),
    ):
        assert side(60, 63, unknown) == "unknown"


def test_what_lies_outside_the_lungs_is_no_finding_and_is_listed():
    scan = scan_in(np.eye(3), np.array([2.0, 1.0, 1.0]))
    scan.lungs[:, :, 20:] = 0
    volume = make_volume(scan, 1.0, 100.0)

    def two(hu, lungs):
        probability = np.zeros(hu.shape, np.float32)
        probability[30:36, 30:36, 5:11], probability[30:36, 30:36, 50:56] = 0.8, 0.9
        probability[5:8, 5:8, 60:63] = 0.4  # not above the threshold
        return probability

    prediction = predict_scan(two, scan, volume, point_at(3.0))
    (found,), (outside,) = prediction.detections, prediction.outside
    assert (found.probability, outside.probability) == pytest.approx((0.8, 0.9))
    assert (found.lung, outside.lung) == ("left", "outside")
    assert outside.volume_mm3 == pytest.approx(found.volume_mm3)
    assert set(np.unique(prediction.labels)) == {0, 1}
    body = dataclasses.replace(scan, body=np.ones(scan.grid.shape, bool))
    whole = predict_scan(two, body, make_volume(body, 1.0, 100.0), point_at(3.0))
    assert len(whole.detections) == 2 and not whole.outside
