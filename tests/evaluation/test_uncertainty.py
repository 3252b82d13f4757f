"""How sure an outline is: the formula on shapes whose shell and entropy are known."""

import numpy as np
import pytest

from lung_unet.data.labels import agreement
from lung_unet.data.shard_reader import scan_records
from lung_unet.evaluation.candidates import Candidate, find_candidates, mask_on_source
from lung_unet.evaluation.uncertainty import boundary, entropy, regions_of, shell
from lung_unet.evaluation.voxel import score

SHAPE = (12, 11, 10)


def cuboid(low, high) -> Candidate:
    box = tuple(map(slice, low, high))
    mask = np.ones(np.subtract(high, low), bool)
    return Candidate(np.zeros(3), 1.0, 1.0, 1.0, box, mask)


def volume(region, inside, outside):
    values = np.full(SHAPE, outside, np.float32)
    values[region.box][region.mask] = inside
    return values


def test_entropy_is_in_bits():
    values = np.array([0, 0.11, 0.5, 0.89, 1], np.float32)
    np.testing.assert_allclose(entropy(values), [0, 0.5, 1, 0.5, 0], atol=1e-3)


def test_the_shell_is_one_voxel_on_either_side_of_the_contour():
    box, mask = shell(cuboid((3, 3, 3), (8, 7, 6)), SHAPE)  # 5 × 4 × 3
    assert [s.start for s in box] == [2, 2, 2]
    within, around = 5 * 4 * 3 - 3 * 2 * 1, 2 * (5 * 4 + 5 * 3 + 4 * 3)
    assert mask.sum() == within + around
    edge, mask = shell(cuboid((0, 3, 3), (12, 7, 6)), SHAPE)  # from end to end of the volume
    assert edge[0] == slice(0, 12) and (mask.sum((1, 2)) == 4 * 3 - 2 * 1 + 2 * (4 + 3)).all()


@pytest.mark.parametrize(
    ("inside", "outside", "wanted"), [(1, 0, 0.0), (0.5, 0.5, 1.0), (0.5, 0.0, 54 / (54 + 94))]
)
def test_a_sharp_edge_is_sure_and_a_faint_one_is_not(inside, outside, wanted):
    region = cuboid((3, 3, 3), (8, 7, 6))
    found = boundary([region], volume(region, inside, outside), None)
    assert found == {"boundary_entropy": pytest.approx(wanted, abs=1e-4)}


def test_spread_is_the_root_of_the_mean_variance_and_a_miss_has_none():
    region = cuboid((3, 3, 3), (8, 7, 6))
    variance = volume(region, 0.09, 0.0)
    found = boundary([region, region], volume(region, 1, 0), variance)
    assert found["boundary_spread"] == pytest.approx((0.09 * 54 / 148) ** 0.5)
    nothing = boundary([], variance, variance)
    assert nothing == {"boundary_entropy": None, "boundary_spread": None}


def test_a_nodules_regions_are_those_that_it_was_found_by(dataset, config, oracle):
    record = scan_records(dataset, "test")[0]
    near = oracle()(record.volume.hu, record.volume.lungs)
    probability = np.maximum(near, np.roll(near, 9, 1))
    candidates = find_candidates(probability, record.volume, 0.5, 3.0)
    assert len(candidates) == 2
    mask = mask_on_source(probability, candidates, record.volume, 0.5)
    spacing_mm, readers = record.volume.source.spacing_mm, agreement(config.data)
    (nodule,) = score(mask, record.findings, record.ignored(), readers, spacing_mm).nodules
    (region,) = regions_of(nodule, candidates, record.volume)
    assert np.linalg.norm(region.centre_mm - nodule.finding.centre_mm) < 4
    (missed,) = score(mask & False, record.findings, record.ignored(), readers, spacing_mm).nodules
    assert regions_of(missed, candidates, record.volume) == []
