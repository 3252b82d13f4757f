"""A nodule lies in a lung, at the site it was given, and never on what is there."""

import dataclasses

import numpy as np

from lung_unet.implant import lesion as lesions
from lung_unet.implant import placement
from lung_unet.implant.placement import CUT, Lungs


def found(scan, shape, seeds=12, taken=None):
    lungs = Lungs(scan)
    hu = scan.hu.astype(np.float32)
    places = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        lesion = lesions.grow(rng, shape, scan.grid, 0.6)
        places.append(lungs.find(rng, lesion, hu, [] if taken is None else taken))
    return places


def test_nodules_lie_in_the_lungs_at_every_site(scan, make_shape):
    shape = make_shape((5, 5, 5))
    places = found(scan, shape, 30)
    assert all(places) and {place.site for place in places} >= {"free", "pleura"}
    volume = 4 / 3 * np.pi * 5**3 / np.prod(scan.spacing_mm)
    for place in places:
        agreed = place.lesion.agreed > 0.5
        inside = scan.lungs[place.box] > 0
        assert (agreed & inside).sum() >= 0.9 * agreed.sum()
        assert place.lesion.agreed.sum() >= (1 - CUT[place.site] - 0.1) * volume
    near = [place for place in places if place.site == "pleura"]
    assert all((scan.lungs[place.box] == 0).any() for place in near)


def test_a_nodule_keeps_away_from_others_and_from_the_cts_own(scan, make_shape, box_of):
    own = box_of(scan.grid, (20, 60, 100), (12, 30, 30))
    with_own = dataclasses.replace(scan, findings=(own,))
    taken: list = []
    places = [p for p in found(with_own, make_shape((6, 6, 6)), 30, taken) if p]
    assert len(places) == len(taken) > 5
    drawn = np.zeros(scan.grid.shape, int)
    drawn[own.box] += 1
    for place in places:
        drawn[place.box] += place.lesion.agreed > 0.01
    assert drawn.max() == 1


def test_where_there_is_no_room_nothing_is_put(scan, make_shape):
    thin = np.zeros_like(scan.lungs)
    thin[:, 70:76, 40:60] = 3
    assert found(dataclasses.replace(scan, lungs=thin), make_shape((12, 12, 12)), 3) == [None] * 3
    taken = [(np.array(scan.grid.shape) / 2 * scan.spacing_mm, 300.0)]
    assert found(scan, make_shape(), 2, taken) == [None, None]


def test_no_nodule_lies_in_an_airway(scan, make_shape):
    tube = (slice(None), slice(74, 86), slice(40, 52))  # 14 mm wide, along z
    hu = scan.hu.copy()
    hu[tube] -= 130
    lesion = lesions.grow(np.random.default_rng(0), make_shape((4, 4, 4)), scan.grid, 0.6)
    for values, fits in ((hu, False), (scan.hu, True)):
        lungs = Lungs(dataclasses.replace(scan, hu=values))
        place = lungs._fitted("free", np.array([30, 80, 46]), lesion, values.astype(np.float32))
        assert (place is not None) == fits


def test_a_nodule_does_not_go_on_in_an_airway_behind_a_wall(scan, make_shape, monkeypatch):
    for name in ("OUTSIDE", "AIRWAY"):  # not refused, so that what is cut is seen
        monkeypatch.setattr(placement, name, 1.0)
    monkeypatch.setitem(CUT, "pleura", 1.0)
    hu = scan.hu.copy()
    lungs = scan.lungs.copy()
    hu[:, :88, 30:60] = 40  # a wall of 5 mm, then air
    hu[:, :84, 30:60] = -1000
    lungs[:, :88, 30:60] = 0
    lesion = lesions.grow(np.random.default_rng(0), make_shape((9, 9, 9)), scan.grid, 0.6)
    at = np.array([30, 88, 45])
    place = Lungs(dataclasses.replace(scan, hu=hu, lungs=lungs))._fitted(
        "pleura", at, lesion, hu.astype(np.float32)
    )
    assert place is not None and lesion.coverage[:, :, : 82 - place.low[1]].any()
    assert not place.lesion.coverage[:, :, : 82 - place.low[1]].any()
