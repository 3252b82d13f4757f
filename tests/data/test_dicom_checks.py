"""Positions are taken as scanners write them, and what is no straight even stack is named."""

import numpy as np
import pytest

from lung_unet.data.dicom_checks import fault
from lung_unet.data.dicom_header import Header
from lung_unet.data.dicom_series import read_volume, series_in

STORED = np.zeros((40, 2, 2), int)


def headers(folder) -> list[Header]:
    (slices,) = series_in(folder.iterdir()).values()
    return slices


def at(step_mm: float, digits: int, degrees: float = 0.0):
    """Attributes of slices so far apart along an axis turned about x, rounded to some digits."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))

    def of_slice(z: int) -> dict:
        place = np.array([-228.036842, -93.063160, -124.4]) + z * step_mm * np.array([0, -s, c])
        return {
            "ImagePositionPatient": [round(float(v), digits) for v in place],
            "ImageOrientationPatient": [1, 0, 0, 0, round(c, 6), round(s, 6)],
        }

    return of_slice


@pytest.mark.parametrize("step_mm", [0.3, 0.45, 0.625, 0.7, 1.25, 2.5, 5.0])
@pytest.mark.parametrize("degrees", [0, 17])
def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(
    tmp_path, make_slices, save_slices, step_mm, degrees
):
    save_slices(tmp_path, make_slices(STORED, at(step_mm, 1, degrees)))
    grid = read_volume(headers(tmp_path), tmp_path)[1]
    assert grid.spacing_mm[0] == pytest.approx(step_mm, abs=0.2 / 39)


@pytest.mark.parametrize("step_mm", [0.3, 0.625, 1.25, 5.0])
@pytest.mark.parametrize("missing", [1, 20, 38])
@pytest.mark.parametrize("digits", [1, 6])
def test_a_gap_among_rounded_positions_is_told(
    tmp_path, make_slices, save_slices, step_mm, missing, digits
):
    slices = make_slices(STORED, at(step_mm, digits))
    del slices[missing]
    wrong = fault(headers(save_slices(tmp_path, slices)))
    assert wrong.what.startswith("slices are missing between z = ")


def test_tags_that_contradict_the_positions_are_not_believed(tmp_path, make_slices, save_slices):
    slices = make_slices(STORED[:6], SpacingBetweenSlices=1, SliceThickness=7, GantryDetectorTilt=9)
    for number, slice_ in enumerate(slices):
        slice_.InstanceNumber = None if number % 2 else 3
    folder = save_slices(tmp_path, slices[::-1])
    assert read_volume(headers(folder), folder)[1].spacing_mm[0] == 2


def test_a_modality_is_known_by_the_storage_class(tmp_path, make_slices, save_slices):
    folder = save_slices(tmp_path, make_slices(STORED[:3], Modality=None))
    assert {h.modality for h in headers(folder)} == {"CT"}
    slices = make_slices(STORED[:3], lambda z: {"Modality": "CT" if z else "PT"})
    wrong = fault(headers(save_slices(folder, slices)))
    assert "several modalities" in wrong.what


def test_one_slice_twice_names_both_files(tmp_path, make_slices, save_slices):
    slices = make_slices(STORED[:5])
    folder = save_slices(tmp_path, [*slices, slices[2]])
    wrong = fault(headers(folder))
    assert "z = 9 mm is there twice (002.dcm, 005.dcm)" in wrong.what


@pytest.mark.parametrize("degrees", [0.5, 12])
def test_a_tilted_gantry_is_never_read_as_straight(tmp_path, make_slices, save_slices, degrees):
    shift = np.tan(np.deg2rad(degrees))
    slices = make_slices(
        STORED, lambda z: {"ImagePositionPatient": [-10, round(-20 + 2 * z * shift, 3), 2 * z]}
    )
    assert "sheared" in fault(headers(save_slices(tmp_path, slices))).what
