"""Shapes of readers' outlines, and parts of them that share no series."""

import numpy as np
import pytest

from lung_unet.data import lidc
from lung_unet.errors import InputError
from lung_unet.implant.outline_pool import part_of, shapes_of

UIDS = [f"1.3.6.1.{n}" for n in range(500)]


def test_parts_are_disjoint_cover_all_and_are_refined_by_multiples():
    for parts in (1, 3, 7):
        part = {uid: part_of(uid, parts) for uid in UIDS}
        assert set(part.values()) == set(range(parts))
        assert part == {uid: part_of(uid, parts) for uid in reversed(UIDS)}
        finer = {uid: part_of(uid, parts * 4) for uid in UIDS}
        assert all(finer[uid] % parts == part[uid] for uid in UIDS)


def test_a_shape_is_what_the_readers_outlined(write_nodules, tmp_path):
    write_nodules(tmp_path / "a.xml", "1.1", [((50, 100, 100), (6, 7, 5), 4)])
    write_nodules(tmp_path / "b.xml", "1.0", [((50, 100, 100), (4, 4, 4), 2)])
    shapes = shapes_of(lidc.read_marks([tmp_path]))
    assert [(s.series_uid, s.readers) for s in shapes] == [("1.0", 2), ("1.1", 4)]
    assert shapes[1].diameter_mm == pytest.approx(2 * (6 * 7 * 5) ** (1 / 3), rel=0.05)
    assert shapes[1].reader_bits.max() == 15 and shapes[1].ratings["texture"] == 5
    np.testing.assert_array_equal(shapes[1].spacing_mm, [1.0, 0.7, 0.7])


def test_what_is_no_volume_or_too_small_is_left_out(write_nodules, tmp_path):
    sound = ((50, 100, 100), (5, 5, 5), 3)
    flat, small = ((80, 100, 100), (0.5, 5, 5), 4), ((110, 100, 100), (1.4, 1.4, 1.4), 4)
    write_nodules(tmp_path / "a.xml", "1.1", [sound, flat, small])
    marks = lidc.read_marks([tmp_path])
    assert [shape.readers for shape in shapes_of(marks)] == [3]
    gap = [m for m in marks["1.1"] if len(m.regions) > 5]
    for mark in gap:
        object.__setattr__(mark, "regions", mark.regions[:3] + mark.regions[4:])
    with pytest.raises(InputError, match="lidc_xml"):
        shapes_of({"1.1": gap})
    with pytest.raises(InputError, match="lidc_xml"):
        shapes_of(marks, but=["1.1"])
