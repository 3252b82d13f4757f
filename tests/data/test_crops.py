"""Crops: the candidate in the middle, and batches that depend on nothing but the seed."""

import numpy as np
import pytest

from lung_unet.data.crops import (
    Crop,
    crop_size,
    cut,
    training_batches,
    validation_batches,
    write_crops,
)
from lung_unet.data.scan import IGNORE, Grid
from lung_unet.data.volume import AIR_HU, Volume
from lung_unet.errors import InputError

PATCH = (4, 4, 4)


@pytest.fixture
def volume():
    grid = Grid((12, 14, 16), np.full(3, 2.0), np.array([5.0, -7.0, 3.0]))
    hu = np.arange(np.prod(grid.shape), dtype=np.int16).reshape(grid.shape)
    return Volume(hu, np.ones(grid.shape, bool), grid, grid)


def write(folder, nodules=3, others=5, split="train"):
    """Crops that are told apart by their values, of two scans."""
    for uid in range(2):
        crops = [
            Crop(np.full((10, 10, 10), 100 * uid + i, np.int16), i < nodules, float(i % 3))
            for i in range(nodules + others)
        ]
        write_crops(folder / split, f"1.{uid}", crops)
    return folder


def batches(folder, **kwargs):
    options = {"patch": PATCH, "batch_size": 4, "nodule_fraction": 0.5, "seed": 0, "threads": 2}
    return training_batches(folder, **options | {"prefetch": 2} | kwargs)


def test_the_candidate_lies_in_the_middle_and_air_beyond_the_volume(volume):
    at = np.array([5, 6, 7])
    inside = cut(volume, volume.grid.to_world(at + 0.5), (4, 4, 4))
    np.testing.assert_array_equal(inside, volume.hu[4:8, 5:9, 6:10])
    corner = cut(volume, volume.grid.to_world(np.array([-0.5, 0.5, 15.5])), (4, 4, 4))
    np.testing.assert_array_equal(corner[2:, 1:, :2], volume.hu[:2, :3, 14:])
    assert (corner[:2] == AIR_HU).all() and (corner[:, :1] == AIR_HU).all()
    assert (corner[:, :, 2:] == AIR_HU).all()
    assert (cut(volume, np.full(3, 1e4), (4, 4, 4)) == AIR_HU).all()


def test_a_crop_comes_back_from_its_record():
    crop = Crop(np.arange(-4, 4, dtype=np.int16).reshape(2, 2, 2), True, 3.75)
    back = Crop.decode(crop.encode())
    np.testing.assert_array_equal(back.hu, crop.hu)
    assert back.nodule is True and back.malignancy == 3.75


def test_batches_are_mixed_moved_and_go_on_where_they_were(tmp_path):
    write(tmp_path)
    whole = iter(batches(tmp_path))
    first = [next(whole) for _ in range(3)]
    state = whole.get_state()
    rest = [next(whole) for _ in range(3)]
    again = iter(batches(tmp_path, threads=5))
    again.set_state(state)
    for expected in rest:
        found = next(again)
        assert expected.keys() == found.keys() == {"hu", "nodule", "malignancy"}
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
    assert first[0]["hu"].shape == (4, *crop_size(PATCH)) and first[0]["hu"].dtype == np.int16
    assert sum(batch["nodule"].sum() for batch in first) == 6


def test_processes_read_parts_of_the_same_batches(tmp_path):
    write(tmp_path)
    whole = iter(batches(tmp_path))
    parts = [iter(batches(tmp_path, shard=i, shards=2)) for i in range(2)]
    for _ in range(3):
        joined = np.concatenate([next(part)["hu"] for part in parts])
        np.testing.assert_array_equal(joined, next(whole)["hu"])


def test_validation_sees_every_candidate_once_and_fills_up_with_ignored(tmp_path):
    write(tmp_path, 1, 2, "validation")
    found = validation_batches(tmp_path, patch=PATCH, batch_size=4, patches=100)
    values = np.concatenate([b["hu"][:, 0, 0, 0] for b in found])
    nodule = np.concatenate([b["nodule"] for b in found])
    assert sorted(values[nodule != IGNORE]) == [0, 1, 2, 100, 101, 102]
    assert nodule.tolist() == [1, 1, 0, 0, 0, 0, IGNORE, IGNORE]
    halves = [
        validation_batches(tmp_path, patch=PATCH, batch_size=4, patches=100, shard=i, shards=2)
        for i in range(2)
    ]
    for number, batch in enumerate(found):
        joined = np.concatenate([half[number]["nodule"] for half in halves])
        np.testing.assert_array_equal(joined, batch["nodule"])


@pytest.mark.parametrize(
    ("nodules", "others", "patches", "kept"),
    [(4, 6, 8, (4, 4)), (1, 6, 8, (2, 6)), (6, 1, 8, (6, 2)), (4, 6, 5, (3, 2)), (3, 0, 4, (4, 0)),
     (0, 3, 4, (0, 4))],
)  # fmt: skip
def test_a_part_of_validation_is_of_both_kinds_and_of_all_scans(
    tmp_path, nodules, others, patches, kept
):
    write(tmp_path, nodules, others, "validation")
    batches = validation_batches(tmp_path, patch=PATCH, batch_size=patches, patches=patches)
    (batch,) = batches
    assert (batch["nodule"].sum(), (batch["nodule"] == 0).sum()) == kept
    values = batch["hu"][:, 0, 0, 0]
    assert len(set(values)) == patches
    for kind in (0, 1):
        of_scan = values[batch["nodule"] == kind] >= 100
        assert abs(of_scan.sum() - (~of_scan).sum()) <= 1


@pytest.mark.parametrize(
    ("nodules", "others", "size", "said"),
    [
        (0, 5, 4, "no candidate on a nodule"),
        (3, 0, 4, "anything but nodules"),
        (1, 1, 8, "4 or less"),
    ],
)
def test_too_few_candidates_are_one_line(tmp_path, nodules, others, size, said):
    write(tmp_path, nodules, others)
    with pytest.raises(InputError, match=said):
        batches(tmp_path, batch_size=size)
    with pytest.raises(InputError, match="validation split has no candidates"):
        validation_batches(tmp_path, patch=PATCH, batch_size=4, patches=100)
