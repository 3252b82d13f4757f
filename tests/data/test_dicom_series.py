"""A DICOM series is a volume as SimpleITK has it, or what is wrong with it is told by name."""

import pathlib
import re
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.data.dicom_header import Header, read_header
from lung_unet.data.dicom_series import fault, in_two_folders, read_volume, series_in
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError


def upright(shape: tuple[int, int, int]) -> Grid:
    return Grid(shape, np.array([1.0, 0.5, 0.5]), np.array([5.0, -20.0, -10.0]))


def only_series(folder: pathlib.Path) -> list[Header]:
    (slices,) = series_in(folder.iterdir()).values()
    return slices


def read(folder: pathlib.Path) -> tuple[np.ndarray, Grid]:
    return read_volume(only_series(folder), folder)[:2]


def refused(folder: pathlib.Path, saying: str) -> None:
    with pytest.raises(InputError, match=saying) as error:
        read(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def slices_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a series in the order of its slices."""
    return [s.path for s in sorted(only_series(folder), key=lambda s: s.position[2])]


# --- Voxels and geometry --------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", [None, "JPEG2000", "JPEG"])  # lossless
def test_voxels_and_geometry_come_back(tmp_path, write_series, direction, compressor):
    hu = np.random.default_rng(1).integers(-1000, 1000, (5, 12, 9)).astype(np.int16)
    grid = Grid(hu.shape, np.array([2.5, 0.7, 0.8]), np.array([-378.2, 17.0, 30.5]), direction)
    write_series(tmp_path, hu=hu, grid=grid, compressor=compressor)
    array, found = read(tmp_path)
    turned = np.linalg.det(direction) < 0  # slices are ordered along rows × columns
    np.testing.assert_array_equal(array[::-1] if turned else array, hu)
    corner = found.to_voxel(grid.to_world([0, 0, 0]))
    np.testing.assert_allclose(corner, [len(hu) - 1 if turned else 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(found.spacing_mm, grid.spacing_mm, rtol=1e-6)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_allclose(found.origin_mm[::-1], image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(found.direction[::-1, ::-1].ravel(), image.GetDirection(), atol=1e-6)


def test_a_real_series_is_as_simpleitk_reads_it(real_data):
    folder = real_data / "chest_ct_dicom"
    array, grid = read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(array, sitk.GetArrayViewFromImage(image))
    np.testing.assert_allclose(grid.spacing_mm[::-1], image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(grid.origin_mm[::-1], image.GetOrigin())


# --- What is wrong with a series ------------------------------------------------------------------


def test_a_missing_slice_is_told_by_its_neighbours(tmp_path, write_series):
    write_series(tmp_path, hu=np.zeros((6, 4, 4), np.int16))
    slices_in(tmp_path)[3].unlink()
    refused(tmp_path, r"1\.2\.3\.4: slices are missing between z = 7 mm and z = 9 mm")


def test_a_slice_that_is_there_twice_is_told(tmp_path, write_series):
    write_series(tmp_path, hu=np.zeros((6, 4, 4), np.int16))
    path = slices_in(tmp_path)[3]
    (tmp_path / "copy.dcm").write_bytes(path.read_bytes())
    refused(tmp_path, r"1\.2\.3\.4: the slice at z = 8 mm is there twice")


def one_slice_moved(tmp_path, write_series, number: int, by_mm: tuple[float, float, float]) -> None:
    """A series of six slices, of which one lies elsewhere by (z, y, x) mm."""
    write_series(tmp_path, hu=np.zeros((6, 4, 4), np.int16))
    slices_in(tmp_path)[number].unlink()
    grid = upright((1, 4, 4))
    moved = Grid(grid.shape, grid.spacing_mm, grid.origin_mm + np.add((number, 0, 0), by_mm))
    write_series(tmp_path, hu=np.zeros((1, 4, 4), np.int16), grid=moved, name="moved{}.dcm")


def test_varying_spacing_is_told(tmp_path, write_series):
    one_slice_moved(tmp_path, write_series, 2, (0.3, 0, 0))
    refused(tmp_path, r"its slices are 0\.7 to 1\.3 mm apart")


def test_rounded_positions_are_even(tmp_path, write_series):
    one_slice_moved(tmp_path, write_series, 2, (0.05, 0.01, 0.01))
    assert read(tmp_path)[1].spacing_mm[0] == pytest.approx(1)


@pytest.mark.parametrize("degrees", [-20, 5])
def test_gantry_tilt_is_told_with_its_angle(tmp_path, write_series, degrees):
    for z in range(6):
        shift = z * np.tan(np.deg2rad(degrees))
        grid = upright((1, 4, 4))
        moved = Grid(grid.shape, grid.spacing_mm, grid.origin_mm + np.array([5 * z, 5 * shift, 0]))
        write_series(tmp_path, hu=np.zeros((1, 4, 4), np.int16), grid=moved, name=f"{z}-{{}}.dcm")
    refused(tmp_path, rf"sheared by .* mm \(gantry tilt {abs(degrees)}\.0°\)")


@pytest.mark.parametrize(
    ("old", "new", "saying"),
    [
        (b"-10\\-20\\10", b"-10\\-20 10", "the position of a slice is missing or broken"),
        (b"-10\\-20\\10", b"-10\\-20\\ab", "the position of a slice is missing or broken"),
        (b"-10\\-20\\10", b"-10\\nan\\10", "the position of a slice is missing or broken"),
        (b"-10\\-20\\10", b"-10\\-9e9\\0", "the position of a slice is missing or broken"),
        (b".5\\.5", b".5 .5", "the spacing of a slice is missing or broken"),
        (b"1\\0\\0\\0\\1\\0", b"1\\0\\0\\1\\0\\0", "no pair of directions"),
        (b"1\\0\\0\\0\\1\\0", b"0\\1\\0\\1\\0\\0", "of another orientation"),
        (b"MRN-774900", b"MRN-774901", "several patients"),
        (b"\x28\0\x10\0\2\0\0\0\4\0", b"\x28\0\x10\0\2\0\0\0\0\4", "not one whole frame"),
    ],
)
def test_a_slice_unlike_the_others_is_told(tmp_path, write_series, old, new, saying):
    write_series(tmp_path, hu=np.zeros((6, 4, 4), np.int16))
    path = slices_in(tmp_path)[-1]
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    refused(tmp_path, saying)


@pytest.mark.parametrize(("pixel_mm", "pixels"), [(0.6, 4), (0.5, 5)])
def test_a_slice_of_other_pixels_is_told(tmp_path, write_series, pixel_mm, pixels):
    write_series(tmp_path, hu=np.zeros((5, 4, 4), np.int16))
    spacing, origin = np.array([1.0, pixel_mm, pixel_mm]), np.array([10.0, -20.0, -10.0])
    hu = np.zeros((1, pixels, pixels), np.int16)
    write_series(tmp_path, hu=hu, grid=Grid(hu.shape, spacing, origin), name="x{}.dcm")
    refused(tmp_path, r"the slice at z = 10 mm is of another (shape|spacing)")


def test_several_series_and_what_is_no_ct(tmp_path, write_series):
    write_series(tmp_path, "1.2.3.5", tags={"0008|0060": "PT"}, name="pt{}.dcm")
    write_series(tmp_path, "1.2.3.4")
    write_series(tmp_path, "1.2.3.6", name="second{}.dcm")
    series = series_in(tmp_path.iterdir())
    assert {uid: s[0].modality for uid, s in series.items()} == {
        "1.2.3.4": "CT", "1.2.3.5": "PT", "1.2.3.6": "CT",
    }  # fmt: skip
    assert [fault(slices) for slices in series.values()] == [None] * 3
    assert read_volume(series["1.2.3.4"], tmp_path)[0].shape == (4, 16, 16)
    assert "1 slice, a CT volume needs more" in fault(series["1.2.3.4"][:1]).what


@pytest.mark.parametrize(
    ("tags", "aside"),
    [
        ({"0008|0008": "ORIGINAL\\PRIMARY\\AXIAL"}, False),
        ({"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}, True),
        ({"0008|0008": "DERIVED\\SECONDARY\\SCREEN SAVE"}, False),  # a derived volume says so too
    ],
)
def test_a_localizer_is_no_slice_of_a_volume(tmp_path, write_series, tags, aside):
    write_series(tmp_path, tags=tags)
    assert {s.aside for s in only_series(tmp_path)} == {aside}


def test_two_folders_with_one_series_hold_copies_or_parts_of_it(tmp_path, write_series):
    whole = only_series(write_series(tmp_path / "a"))
    copied = only_series(write_series(tmp_path / "b"))
    told = str(in_two_folders(whole, copied))
    assert told.startswith(f"{tmp_path}/b: series 1.2.3.4 is also in {tmp_path}/a; remove one")
    told = str(in_two_folders(whole[:2], copied[2:]))
    assert "has other slices in" in told and told.endswith("put all of them into one folder")


def test_files_that_are_not_dicom(tmp_path, write_series):
    write_series(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "._0.dcm").write_bytes(b"as some systems leave")
    (tmp_path / "folder.dcm").mkdir()
    read(tmp_path)
    (tmp_path / "9.dcm").write_bytes(b"")
    with pytest.raises(InputError, match=r"9\.dcm: is no sound DICOM file"):
        read(tmp_path)


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", [None, "JPEG"])
def test_a_file_cut_short_anywhere_is_told(tmp_path, write_series, compressor):
    path = min(write_series(tmp_path / "whole", compressor=compressor).iterdir())
    content = path.read_bytes()
    cut = tmp_path / "cut.dcm"
    assert read_header(path).plain
    for size in (*range(0, len(content), 23), len(content) - 8):  # the last, before a delimiter
        cut.write_bytes(content[:size])
        try:
            assert not read_header(cut).plain
        except InputError as error:
            assert re.search(r"cut\.dcm: (is no sound DICOM file|its SeriesInst)", str(error))


SEQUENCE = {  # an element that holds items, of known and of unknown length, nested
    "explicit": bytes.fromhex(
        "0800 4011 5351 0000 ffffffff  feff00e0 ffffffff  0800 5011 5549 0200 312e"
        "0800 9911 554e 0000 ffffffff  feff00e0 ffffffff 2000 0e00 02000000 3920"  # UN: implicit
        "feff0de0 00000000  feffdde0 00000000  feff0de0 00000000"
        "feff00e0 0a000000 2000 0e00 5549 0200 3920  feffdde0 00000000"
    ),
    "implicit": bytes.fromhex(
        "0800 4011 ffffffff  feff00e0 ffffffff  0800 5011 02000000 312e"
        "feff0de0 00000000  feff00e0 0a000000 2000 0e00 02000000 3920  feffdde0 00000000"
    ),
}
UIDS = {"explicit": b"1.2.840.10008.1.2.1\0", "implicit": b"1.2.840.10008.1.2\0"}
NUMBERS = {2: b"US", 4: b"CS", 0x10: b"US", 0x11: b"US", 0x30: b"DS", 0x1052: b"DS", 0x1053: b"DS"}
NUMBERS |= dict.fromkeys([0x100, 0x101, 0x102, 0x103], b"US")


def encoded(path: pathlib.Path, syntax: str) -> bytes:
    """A file that GDCM wrote (implicit) in another transfer syntax, with SEQUENCE in it."""
    data = path.read_bytes()
    at = data.index(b"\x08\0\x16\0")
    meta = data[144:at].replace(
        b"\x12\0" + UIDS["implicit"], bytes([len(UIDS[syntax]), 0]) + UIDS[syntax]
    )
    out = data[:140] + struct.pack("<I", len(meta)) + meta
    while at < len(data):
        group, number, length = struct.unpack_from("<HHI", data, at)
        value, at = data[at + 8 : at + 8 + length], at + 8 + length
        vr = {0x18: b"DS", 0x20: b"DS", 0x28: NUMBERS.get(number, b"LO"), 0x7FE0: b"OW"}.get(
            group, b"LO"
        )
        if (group, number) in [(8, 0x16), (8, 0x18), (0x20, 0xD), (0x20, 0xE)]:
            vr = b"UI"
        if (group, number) == (0x10, 0x10):
            out += SEQUENCE[syntax]
        out += struct.pack("<HH", group, number)
        if syntax == "implicit":
            out += struct.pack("<I", length)
        elif vr == b"OW":
            out += vr + struct.pack("<HI", 0, length)
        else:
            out += vr + struct.pack("<H", length)
        out += value
    return out


@pytest.mark.parametrize("syntax", SEQUENCE)
def test_every_encoding_says_the_same(tmp_path, write_series, syntax):
    folder = write_series(tmp_path / "explicit")
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(encoded(path, syntax))
        for name in ("series_uid", "modality", "patient", "shape", "position", "plain", "aside"):
            assert getattr(read_header(other / path.name), name) == getattr(read_header(path), name)
    np.testing.assert_array_equal(read(other)[0], read(folder)[0])


@pytest.mark.parametrize("uid", ["../../1.2", "1.2 3", "planted", "1..2", "9" * 65])
def test_a_series_uid_that_is_none(tmp_path, write_series, uid):
    write_series(tmp_path, uid)
    with pytest.raises(InputError, match="its SeriesInstanceUID is no UID") as error:
        read(tmp_path)
    assert uid not in str(error.value)
