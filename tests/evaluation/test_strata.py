"""Every nodule is in one stratum of each kind, and means are over what is defined."""

import json

import pytest

from lung_unet.evaluation.strata import MEANS, size_of, stratify, texture_of


def row(diameter_mm, texture=None, dice=0.5, found=True, hd95_mm=1.0):
    return {"diameter_mm": diameter_mm, "texture": texture, "dice": dice, "found": found,
            "hd95_mm": hd95_mm, "series_uid": "1.2"}  # fmt: skip


@pytest.mark.parametrize(
    ("diameter_mm", "size"),
    [
        (2.9, "under 3 mm"), (3, "3-6 mm"), (5.99, "3-6 mm"), (6, "6-10 mm"), (10, "10-20 mm"),
        (20, "20 mm and more"), (33, "20 mm and more"),
    ],
)  # fmt: skip
def test_a_size_begins_at_its_lower_end(diameter_mm, size):
    assert size_of(row(diameter_mm)) == size


@pytest.mark.parametrize(
    ("texture", "name"),
    [
        (1, "non-solid"), (1.25, "non-solid"), (1.5, "part-solid"), (3, "part-solid"),
        (4.25, "part-solid"), (4.5, "solid"), (5, "solid"), (None, "not rated"),
    ],
)  # fmt: skip
def test_a_texture_is_the_nearest_level(texture, name):
    assert texture_of(row(8, texture)) == name


def test_strata_hold_every_nodule_once_and_means_of_what_is_defined():
    rows = [row(4, 5, 0.8), row(5, 1, 0.0, False, None), row(25, None, 0.9, hd95_mm=3.0)]
    strata = stratify(rows)
    assert list(strata["size"]) == ["3-6 mm", "20 mm and more"]  # those that have nodules, in order
    assert list(strata["texture"]) == ["non-solid", "solid", "not rated"]
    for groups in strata.values():
        assert sum(group["nodules"] for group in groups.values()) == 3
        assert all(group.keys() == {"nodules", "found", *MEANS} for group in groups.values())
    small = strata["size"]["3-6 mm"]
    assert (small["nodules"], small["found"]) == (2, 1)
    assert small["dice"] == pytest.approx(0.4) and small["hd95_mm"] == 1.0
    assert strata["texture"]["non-solid"]["hd95_mm"] is None
    assert small["nsd_2mm"] is None  # that no row has
    assert "NaN" not in json.dumps(strata)


def test_no_nodules_have_no_strata():
    assert stratify([]) == {"size": {}, "texture": {}}
