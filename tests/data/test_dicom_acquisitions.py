"""Scans that share a series UID are told apart; pieces of one scan are not taken for several."""

import itertools
import pathlib

import numpy as np
import pydicom
import pytest

from lung_unet.data.dicom import Dicom
from lung_unet.data.dicom_acquisitions import scans_of
from lung_unet.data.dicom_series import series_in
from lung_unet.data.inputs import find_inputs, read_input

OUTPUT = pathlib.Path("/nowhere/out")
SIZE = (12, 16, 16)


@pytest.fixture
def stack(make_slices):
    """Makes slices at some heights, of values that are those of `seed`, with attributes."""
    uids = itertools.count(1)

    def make(heights_mm, seed: int, of_slice=lambda z: {}, **attributes) -> list[pydicom.Dataset]:
        stored = np.random.default_rng(seed).integers(0, 4096, (len(heights_mm), *SIZE[1:]))
        return make_slices(
            stored,
            lambda z: {
                "ImagePositionPatient": [-10, -20, float(heights_mm[z])],
                "SOPInstanceUID": f"1.2.3.4.{next(uids)}",
                **of_slice(z),
            },
            **attributes,
        )

    return make


def labels(folder: pathlib.Path) -> list[tuple[str, int]]:
    (slices,) = series_in(folder.iterdir()).values()
    return [(part.label, len(part.slices)) for part in scans_of(slices)]


HEIGHTS = np.arange(12) * 2.5


@pytest.mark.parametrize("offset_mm", [0, 0.25, 1.25])
def test_interleaved_acquisitions_are_scans_with_names_and_values_of_their_own(
    tmp_path, stack, save_slices, pydicom_hu, offset_mm
):
    first = stack(HEIGHTS, 1, AcquisitionNumber=1)
    second = stack(HEIGHTS + offset_mm, 2, AcquisitionNumber=2)
    mixed = [s for pair in zip(first, second, strict=True) for s in pair]
    folder = save_slices(tmp_path / "ct", mixed)
    found = find_inputs(tmp_path, OUTPUT)
    assert not found.errors
    assert [s.name for s in found.scans] == ["ct_acquisition_1", "ct_acquisition_2"]
    for source, slices in zip(found.scans, (first, second), strict=True):
        scan = read_input(source)
        np.testing.assert_array_equal(scan.hu, pydicom_hu(slices))
        assert scan.spacing_mm[0] == 2.5
        assert source.part in str(source) and source.part in scan.warnings[0]
        assert "2 scans" in scan.warnings[0]
    assert len({s.full_name for s in found.scans}) == 2
    assert labels(folder) == [("acquisition 1", 12), ("acquisition 2", 12)]


def test_acquisitions_that_follow_one_another_are_one_scan(tmp_path, stack, save_slices):
    for name, number_of in (
        ("halves", lambda z: 1 + z // 6),
        ("one each", lambda z: z),
        ("blocks", lambda z: z // 3),
        ("interleaved blocks", lambda z: z // 4 * 2 + z % 2),
    ):
        slices = stack(HEIGHTS, 1, lambda z, of=number_of: {"AcquisitionNumber": of(z)})
        assert labels(save_slices(tmp_path / name, slices)) == [("", 12)]
    (source,) = find_inputs(tmp_path / "halves", OUTPUT).scans
    assert source.name == "halves" and source.warnings == ()
    assert not any("acquisition" in clause for clause in read_input(source).warnings)


def test_a_gap_or_a_slice_twice_is_no_other_scan(tmp_path, stack, save_slices):
    blocks = stack(HEIGHTS, 1, lambda z: {"AcquisitionNumber": z // 3})
    assert labels(save_slices(tmp_path / "gap", blocks[:4] + blocks[5:])) == [("", 11)]
    again = stack(HEIGHTS[3:6], 2, AcquisitionNumber=9)
    assert labels(save_slices(tmp_path / "block again", blocks + again)) == [("", 15)]
    timed = stack(HEIGHTS, 1, lambda z: {"ContentTime": f"10{z // 2:02}"})
    assert labels(save_slices(tmp_path / "copy", [*timed, timed[4]])) == [("", 13)]
    one = stack(HEIGHTS[4:5], 2, ImageType=["DERIVED", "PRIMARY"])
    assert labels(save_slices(tmp_path / "one", timed + one)) == [("", 13)]


def test_a_repeat_of_a_part_and_another_distance_are_scans(tmp_path, stack, save_slices):
    whole = stack(HEIGHTS, 1, AcquisitionNumber=1)
    part = stack(HEIGHTS[4:9], 2, AcquisitionNumber=2)
    folder = save_slices(tmp_path / "part", whole + part)
    assert labels(folder) == [("acquisition 1", 12), ("acquisition 2", 5)]
    below = stack(-5 - 5 * np.arange(6), 2, AcquisitionNumber=7)
    folder = save_slices(tmp_path / "below", whole + below)
    assert labels(folder) == [("acquisition 1", 12), ("acquisition 7", 6)]


def test_one_scan_with_a_gap_does_not_end_the_other(tmp_path, stack, save_slices):
    slices = stack(HEIGHTS, 1, AcquisitionNumber=1) + stack(HEIGHTS, 2, AcquisitionNumber=2)
    del slices[5]
    first, second = find_inputs(save_slices(tmp_path / "ct", slices), OUTPUT).scans
    assert read_input(second).hu.shape == SIZE
    with pytest.raises(Exception, match=r"acquisition 1: slices are missing") as error:
        read_input(first)
    assert str(tmp_path / "ct") in str(error.value)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("AcquisitionNumber", (1, 2, 3)),
        ("TemporalPositionIdentifier", (1, 2)),
        ("ImageType", (["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY", "MIP"])),
        ("ConvolutionKernel", ("B30f", "B70f")),
        ("KVP", (80, 140)),
        ("EchoNumbers", (1, 2)),
        ("TriggerTime", (0.0, 40.5, 81)),
        ("AcquisitionTime", ("101010.1", "101112")),
        ("NominalPercentageOfCardiacPhase", (40.0, 75.0)),
    ],
)
def test_what_else_tells_scans_apart(tmp_path, stack, save_slices, kind, values):
    slices = [s for n, v in enumerate(values) for s in stack(HEIGHTS, n, **{kind: v})]
    parts = labels(save_slices(tmp_path, slices))
    assert [n for _, n in parts] == [12] * len(values)
    assert len({label for label, _ in parts}) == len(values)
    assert not any("1010" in label for label, _ in parts)  # a time of day is the patient's


def test_two_kinds_at_once(tmp_path, stack, save_slices):
    slices = [
        s
        for number in (1, 2)
        for kernel in ("B30f", "B70f")
        for s in stack(HEIGHTS, number, AcquisitionNumber=number, ConvolutionKernel=kernel)
    ]
    found = find_inputs(save_slices(tmp_path / "ct", slices), OUTPUT).scans
    assert [s.name for s in found] == [
        f"ct_acquisition_{n}_kernel_{k}" for n in (1, 2) for k in (1, 2)
    ]


def test_scans_that_nothing_tells_apart_are_refused_by_name(tmp_path, stack, save_slices):
    slices = stack(HEIGHTS, 1) + stack(HEIGHTS, 2)
    (source,) = find_inputs(save_slices(tmp_path / "ct", slices), OUTPUT).scans
    with pytest.raises(Exception, match=r"there twice \(.*\), as 11 others; .*series UID"):
        read_input(source)


def test_prepare_leaves_out_what_the_readings_do_not_tell_apart(
    tmp_path, stack, save_slices, write_series, write_reading
):
    slices = stack(HEIGHTS, 1, AcquisitionNumber=1) + stack(HEIGHTS, 2, AcquisitionNumber=2)
    save_slices(tmp_path / "two", slices)
    write_series(tmp_path / "good", "1.2.9")
    for uid in ("1.2.3.4", "1.2.9"):
        write_reading(
            tmp_path / uid / "1.xml",
            uid,
            read_input(find_inputs(tmp_path / "good", OUTPUT).scans[0]).grid,
        )
    source = Dicom(tmp_path)
    assert list(source.files) == ["1.2.9"]
    (note,) = source.notes
    assert "series 1.2.3.4 is left out" in note and "acquisition 1, acquisition 2" in note
