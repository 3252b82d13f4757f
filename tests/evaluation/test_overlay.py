"""Pictures of cases: the planes are the right way round and to scale, the outlines true."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from lung_unet.evaluation import overlay
from lung_unet.evaluation.overlay import Case, crop_case, draw, summary

AXIAL, CORONAL, SAGITTAL = range(3)
FIELDS = {"title": "Nodule 1", "kind": "nodule"}
FIELDS |= {"dice": 0.5, "diameter_mm": 8.0, "probability": 0.9}


def blank(shape=(41, 41, 41), spacing_mm=(1.0, 1.0, 1.0), hu=-900) -> Case:
    """Even lung without any mask, the planes through the middle voxel."""
    nothing = np.zeros(shape, bool)
    return Case(
        hu=np.full(shape, hu, np.int16),
        truth=nothing,
        prediction=nothing,
        ignore=nothing,
        spacing_mm=np.array(spacing_mm),
        centre=tuple(n // 2 for n in shape),
        **FIELDS,
    )


def panels(case: Case) -> list[np.ndarray]:
    """The three planes of the picture, (292, 292, RGB) each."""
    picture = imread(io.BytesIO(draw(case)))[..., :3]
    assert picture.shape == (320, 900, 3)
    size, step = overlay.PANEL, overlay.PANEL + overlay.GAP
    return [picture[-size:, i * step : i * step + size] for i in range(3)]


def changed(before: Case, after: Case) -> list[np.ndarray]:
    """Where each of the three planes differs."""
    pairs = zip(panels(before), panels(after), strict=True)
    return [np.abs(a - b).max(-1) > 0.15 for a, b in pairs]


def middle(mask: np.ndarray) -> np.ndarray:
    """The (row, column) around which a mask lies, as a fraction of its shape."""
    return np.argwhere(mask).mean(0) / mask.shape


def extent(mask: np.ndarray) -> np.ndarray:
    return np.ptp(np.argwhere(mask), axis=0) + 1


LOW, MID, HIGH = slice(4, 9), slice(18, 23), slice(32, 37)
# The patient in LPS: z grows to the head, y to the back, x to the patient's left.
MARKERS = [
    ((MID, LOW, HIGH), AXIAL, "upper right"),  # front, left
    ((MID, HIGH, LOW), AXIAL, "lower left"),  # back, right
    ((HIGH, MID, HIGH), CORONAL, "upper right"),  # head, left
    ((LOW, MID, LOW), CORONAL, "lower left"),  # feet, right
    ((HIGH, LOW, MID), SAGITTAL, "upper left"),  # head, front
    ((LOW, HIGH, MID), SAGITTAL, "lower right"),  # feet, back
]


@pytest.mark.parametrize(("place", "plane", "corner"), MARKERS)
@pytest.mark.parametrize("field", ["hu", "truth"])
def test_planes_are_the_way_radiologists_look_at_them(place, plane, corner, field):
    before = blank()
    marked = getattr(before, field).copy()
    marked[place] = 400 if field == "hu" else True
    differences = changed(before, dataclasses.replace(before, **{field: marked}))
    row, column = middle(differences[plane])
    vertical, horizontal = "upper" if row < 0.4 else "lower", "left" if column < 0.4 else "right"
    assert f"{vertical} {horizontal}" == corner
    assert abs(row - 0.5) > 0.2
    assert abs(column - 0.5) > 0.2
    assert not any(differences[other].any() for other in {0, 1, 2} - {plane})


@pytest.mark.parametrize("spacing_mm", [(5.0, 0.8, 0.8), (1.25, 0.7, 0.7), (1.0, 1.0, 1.0)])
def test_all_planes_are_to_one_scale_in_mm(spacing_mm):
    half = np.rint(32 / np.array(spacing_mm)).astype(int)
    before = blank(tuple(2 * half + 1), spacing_mm)
    cube = np.zeros(before.hu.shape, bool)
    reach = np.rint((20 / before.spacing_mm - 1) / 2).astype(int)  # about 20 mm
    cube[tuple(slice(m - r, m + r + 1) for m, r in zip(half, reach, strict=True))] = True
    size_mm = (2 * reach + 1) * before.spacing_mm
    pixel_mm = np.max(before.spacing_mm * before.hu.shape) / overlay.PANEL
    line = overlay.TRUTH["linewidth"] / 72 * 100
    after = dataclasses.replace(before, truth=cube)
    for plane, difference in enumerate(changed(before, after)):
        expected = np.delete(size_mm, plane) / pixel_mm + line
        np.testing.assert_allclose(extent(difference), expected, atol=3)


def test_window_is_the_lung_window():
    for hu, grey in ((-1400, 0.0), (-1350, 0.0), (-600, 0.5), (150, 1.0), (3000, 1.0)):
        for panel in panels(blank(hu=hu)):
            np.testing.assert_allclose(panel[80:100, 80:100], grey, atol=0.01)


def ball(radius: float) -> np.ndarray:
    return np.square(np.indices((41, 41, 41)) - 20).sum(0) < radius**2


@pytest.mark.parametrize("field", ["truth", "prediction", "ignore"])
def test_outlines_follow_their_masks(field):
    before = blank()
    small = changed(before, dataclasses.replace(before, **{field: ball(4)}))
    large = changed(before, dataclasses.replace(before, **{field: ball(9)}))
    for s, l in zip(small, large, strict=True):
        np.testing.assert_allclose(middle(s), 0.5, atol=0.02)
        np.testing.assert_allclose(extent(l) - extent(s), 10 * overlay.PANEL / 41, atol=3)


def coloured(case: Case) -> tuple[int, int]:
    """How many pixels of the planes are clearly green, and clearly magenta."""
    red, green, blue = np.moveaxis(np.concatenate(panels(case)), -1, 0)
    greenish = green - np.maximum(red, blue) > 0.2
    magentaish = np.minimum(red, blue) - green > 0.2
    return int(greenish.sum()), int(magentaish.sum())


def test_truth_is_green_and_prediction_magenta_and_both_show_where_they_agree():
    truth, prediction = {"truth": ball(7)}, {"prediction": ball(7)}
    assert coloured(blank()) == (0, 0)
    green, magenta = coloured(dataclasses.replace(blank(), **truth))
    assert green > 300
    assert magenta == 0
    green, magenta = coloured(dataclasses.replace(blank(), **prediction))
    assert green == 0
    assert magenta > 100
    assert min(coloured(dataclasses.replace(blank(), **truth, **prediction))) > 100
    assert coloured(dataclasses.replace(blank(), ignore=ball(7))) == (0, 0)


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    where=st.tuples(*[st.floats(0, 1)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5)] * 3),
    size_mm=st.floats(2, 20),
)
def test_crop_is_the_cube_around_the_centre_and_air_outside(shape, where, spacing, size_mm):
    random = np.random.default_rng(0)
    hu = random.integers(-1000, 400, shape).astype(np.int16)
    masks = random.random((3, *shape)) < 0.5
    centre = np.array(where) * (np.array(shape) - 1)
    case = crop_case(hu, *masks, np.array(spacing), centre, size_mm, **FIELDS)

    assert np.all(np.abs(case.hu.shape * case.spacing_mm - size_mm) <= 2 * case.spacing_mm)
    at = tuple(np.rint(centre).astype(int))
    assert case.hu[case.centre] == hu[at]
    reach = np.array(case.centre)
    padded = np.pad(hu, [(r, r) for r in reach], constant_values=-1024)
    window = tuple(slice(a, a + 2 * r + 1) for a, r in zip(at, reach, strict=True))
    np.testing.assert_array_equal(case.hu, padded[window])
    assert case.hu.dtype == np.int16
    for mask, cropped in zip(masks, (case.truth, case.prediction, case.ignore), strict=True):
        np.testing.assert_array_equal(cropped, np.pad(mask, [(r, r) for r in reach])[window])
        assert cropped.dtype == bool


def test_what_is_not_defined_is_not_mentioned():
    assert summary(blank()) == "8.0 mm · Dice 0.50 · probability 0.90"
    undefined = dataclasses.replace(
        blank(), diameter_mm=float("nan"), dice=None, probability=np.float32("nan")
    )
    assert summary(undefined) == ""


@pytest.mark.parametrize("title", ["$\\frac{$ <b> & _x_", "long " * 50])
def test_any_title_leaves_room_for_what_was_measured(title):
    plain = dataclasses.replace(blank(), title="")
    pictures = (draw(plain), draw(dataclasses.replace(plain, title=title)))
    before, after = (imread(io.BytesIO(picture)) for picture in pictures)
    columns = np.flatnonzero(np.abs(before - after).max((0, 2)))
    assert columns.min() > 0
    assert columns.max() < 390
