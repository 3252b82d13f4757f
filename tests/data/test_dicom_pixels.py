"""Stored pixels become HU as pydicom has it, whatever their bits, and as they are compressed."""

import pathlib

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from lung_unet.data.dicom_series import fault, read_volume, series_in
from lung_unet.errors import InputError

RNG = np.random.default_rng(0)


def read(folder: pathlib.Path) -> tuple[np.ndarray, tuple[str, ...]]:
    (slices,) = series_in(folder.iterdir()).values()
    array, _, warnings = read_volume(slices, folder)
    return array, warnings


def refused(folder: pathlib.Path, saying: str) -> None:
    with pytest.raises(InputError, match=saying) as error:
        read(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


# --- Bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("allocated", "stored"), [(8, 8), (16, 10), (16, 12), (16, 16), (32, 32)])
@pytest.mark.parametrize("scale", [(1, -1024), (2, 5), (0.5, -1000.25), (1.5, 0)])
def test_any_bits_are_as_pydicom_reads_them(
    tmp_path, make_slices, save_slices, pydicom_hu, signed, allocated, stored, scale
):
    values = RNG.integers(0, 1 << stored, (3, 4, 5))
    slices = make_slices(
        values, BitsAllocated=allocated, BitsStored=stored, HighBit=stored - 1,
        PixelRepresentation=signed, RescaleSlope=scale[0], RescaleIntercept=scale[1],
    )  # fmt: skip
    array, warnings = read(save_slices(tmp_path, slices))
    np.testing.assert_allclose(array, pydicom_hu(slices), rtol=1e-6)
    assert warnings == ()


def test_each_slice_has_its_own_bits_and_rescale(tmp_path, make_slices, save_slices, pydicom_hu):
    own = [
        {"BitsStored": 16, "HighBit": 15, "RescaleIntercept": 0},
        {"PixelRepresentation": 1, "RescaleIntercept": 24},
        {"RescaleSlope": 2, "RescaleIntercept": -2048},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleSlope": 4},
    ]
    slices = make_slices(RNG.integers(0, 256, (4, 4, 5)), own.__getitem__)
    array, warnings = read(save_slices(tmp_path, slices))
    np.testing.assert_array_equal(array, pydicom_hu(slices))
    assert warnings == ()


@pytest.mark.parametrize("signed", [0, 1])
def test_high_bit_is_believed_if_the_pixels_bear_it_out(
    tmp_path, make_slices, save_slices, pydicom_hu, signed
):
    values = RNG.integers(0, 4096, (3, 4, 5))
    values[1] = 0  # says nothing of itself
    expected = pydicom_hu(make_slices(values, PixelRepresentation=signed))
    attributes = {"PixelRepresentation": signed, "HighBit": 15}
    right = make_slices(values, **attributes)
    if signed:  # extended to 16 bits, as most writers do
        extended = ((values ^ 2048) - 2048) & 0xFFFF
        right = make_slices(extended, **attributes)
    array, (warning,) = read(save_slices(tmp_path / "right", right))
    np.testing.assert_array_equal(array, expected)
    assert "HighBit 15" in warning
    array, warnings = read(save_slices(tmp_path / "left", make_slices(values << 4, **attributes)))
    np.testing.assert_array_equal(array, expected)
    assert warnings == ()
    for name, both in (("either", values & 0xFF0), ("neither", values << 4 | 1)):
        refused(save_slices(tmp_path / name, make_slices(both, **attributes)), "HighBit 15")


def test_bits_beside_the_stored_ones_are_no_value(tmp_path, make_slices, save_slices, pydicom_hu):
    values = RNG.integers(0, 4096, (3, 4, 5))
    expected = pydicom_hu(make_slices(values))
    values[:2, 1] |= 0x8000
    array, (warning,) = read(save_slices(tmp_path / "odd", make_slices(values)))
    np.testing.assert_array_equal(array, expected)
    assert "2 of its slices" in warning
    overlay = make_slices(values)
    for slice_ in overlay:
        slice_.add_new(0x60000100, "US", 16)
        slice_.add_new(0x60000102, "US", 15)
    array, warnings = read(save_slices(tmp_path / "overlay", overlay))
    np.testing.assert_array_equal(array, expected)
    assert warnings == ()


def test_padding_that_needs_other_bits_is_as_low_as_can_be(tmp_path, make_slices, save_slices):
    values = RNG.integers(0, 4096, (3, 4, 5))
    values[:, 0] = 63536  # -2000 in 16 bits
    slices = make_slices(values)
    for slice_ in slices:
        slice_.add_new("PixelPaddingValue", "US", 63536)
    array, warnings = read(save_slices(tmp_path, slices))
    assert (array[:, 0] == -1024).all() and warnings == ()
    np.testing.assert_array_equal(array[:, 1:], values[:, 1:] - 1024)


@pytest.mark.parametrize(
    "attributes",
    [
        {"BitsStored": 17, "HighBit": 16},
        {"BitsStored": 0},
        {"BitsAllocated": 8, "BitsStored": 12},
        {"HighBit": 10},
        {"HighBit": 16},
        {"PixelRepresentation": None},
        {"PixelRepresentation": 2},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"PhotometricInterpretation": None},
        {"SamplesPerPixel": 3},
        {"Rows": 400},
    ],
)
def test_pixels_of_no_layout_are_refused(tmp_path, make_slices, save_slices, attributes):
    values = RNG.integers(0, 200, (3, 4, 5))
    slices = make_slices(values, lambda z: attributes if z == 1 else {})
    refused(save_slices(tmp_path, slices), "pixel|bits|frame")


def test_monochrome1_is_rescaled_and_not_inverted(tmp_path, make_slices, save_slices, pydicom_hu):
    slices = make_slices(RNG.integers(0, 4096, (3, 4, 5)), PhotometricInterpretation="MONOCHROME1")
    array, (warning,) = read(save_slices(tmp_path, slices))
    np.testing.assert_array_equal(array, pydicom_hu(slices))
    assert "MONOCHROME1" in warning


# --- Rescale --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_one", "saying"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, "z = 7 mm has no rescale slope"),
        ({"RescaleSlope": None}, "z = 7 mm has no rescale slope"),
        ({"RescaleIntercept": None}, "z = 7 mm has no rescale intercept"),
        ({"RescaleSlope": 0}, "rescale slope of the slice at z = 7 mm is broken"),
        ({"RescaleType": "Z_EFF"}, "not Hounsfield units"),
    ],
)
def test_a_slice_that_cannot_become_hu_is_told(tmp_path, make_slices, save_slices, of_one, saying):
    slices = make_slices(RNG.integers(0, 4096, (3, 4, 5)), lambda z: of_one if z == 1 else {})
    refused(save_slices(tmp_path, slices), saying)


@pytest.mark.parametrize("value", [b"-1x24", b"-1_024", b"nan  ", b"-1\\24", b"-9e99"])
def test_a_rescale_that_is_no_number_is_told(tmp_path, make_slices, save_slices, value):
    save_slices(tmp_path, make_slices(RNG.integers(0, 4096, (3, 4, 5)), RescaleIntercept=-10244))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"-10244", (value + b"  ")[:6]))
    refused(tmp_path, "rescale intercept .* is broken")


def test_without_any_rescale_stored_values_are_taken_and_it_is_said(
    tmp_path, make_slices, save_slices
):
    values = RNG.integers(0, 4096, (3, 4, 5))
    slices = make_slices(values, RescaleSlope=None, RescaleIntercept=None)
    array, warnings = read(save_slices(tmp_path, slices))
    np.testing.assert_array_equal(array, values)
    assert len(warnings) == 2 and all("no rescale" in w for w in warnings)


def test_a_lookup_table_is_no_rescale(tmp_path, make_slices, save_slices):
    slices = make_slices(RNG.integers(0, 4096, (3, 4, 5)))
    for slice_ in slices:
        slice_.ModalityLUTSequence = [pydicom.Dataset()]
    refused(save_slices(tmp_path, slices), "lookup table")


# --- Compressed -----------------------------------------------------------------------------------


def compressed_by_gdcm(compressor: str):
    def write(path: pathlib.Path, slice_: pydicom.Dataset) -> None:
        slice_.save_as(path, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        neutral = pydicom.dcmread(path)
        neutral.RescaleIntercept, neutral.RescaleSlope = 0, 1
        neutral.PhotometricInterpretation = "MONOCHROME2"
        neutral.save_as(path)
        image = reader.Execute()
        for tag, value in (("0028|0101", "12"), ("0028|0102", "11")):
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(path))
        writer.Execute(image)
        encoded = pydicom.dcmread(path)
        slice_.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
        slice_.BitsStored, slice_.HighBit = encoded.BitsStored, encoded.HighBit
        slice_.PixelData = encoded.PixelData
        slice_["PixelData"].VR, slice_["PixelData"].is_undefined_length = "OB", True
        slice_.save_as(path, enforce_file_format=True)

    return write


def compressed_by_pydicom(syntax: str):
    def write(path: pathlib.Path, slice_: pydicom.Dataset) -> None:
        slice_.compress(syntax, generate_instance_uid=False)
        slice_.save_as(path, enforce_file_format=True)

    return write


COMPRESSED = {
    "JPEG lossless": compressed_by_gdcm("JPEG"),
    "JPEG 2000": compressed_by_gdcm("JPEG2000"),
    "run lengths": compressed_by_pydicom(pydicom.uid.RLELossless),
    "JPEG-LS": compressed_by_pydicom(pydicom.uid.JPEGLSLossless),
}


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("stored", [12, 16])
def test_compressed_pixels_are_those_that_were_compressed(
    tmp_path, make_slices, save_slices, pydicom_hu, codec, signed, photometric, stored
):
    values = RNG.integers(0, 1 << stored, (2, 16, 16))
    if signed:
        values = ((values ^ (1 << stored - 1)) - (1 << stored - 1)) & 0xFFFF
    slices = make_slices(
        values, PixelRepresentation=signed, PhotometricInterpretation=photometric,
        BitsStored=stored, HighBit=stored - 1, RescaleIntercept=-1000,
    )  # fmt: skip
    expected = pydicom_hu(slices)
    array, _ = read(save_slices(tmp_path, slices, COMPRESSED[codec]))
    np.testing.assert_array_equal(array, expected)


def test_a_damaged_stream_is_an_error_that_names_the_file(tmp_path, make_slices, save_slices):
    slices = make_slices(RNG.integers(0, 4096, (2, 16, 16)))
    save_slices(tmp_path, slices, COMPRESSED["JPEG-LS"])
    data = bytearray((tmp_path / "001.dcm").read_bytes())
    data[-300:-100] = bytes(200)
    (tmp_path / "001.dcm").write_bytes(data)
    refused(tmp_path, "001.dcm|decoded")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.201", "1.2.840.113619.5.2"])
def test_a_syntax_that_is_not_read_is_named_once(tmp_path, make_slices, save_slices, syntax):
    slices = make_slices(RNG.integers(0, 4096, (3, 16, 16)))
    save_slices(tmp_path, slices, COMPRESSED["run lengths"])
    for path in tmp_path.iterdir():
        meta = pydicom.dcmread(path).file_meta
        whole = path.read_bytes()
        dataset = whole[144 + meta.FileMetaInformationGroupLength :]
        uid = syntax.encode() + b"\0" * (len(syntax) % 2)
        named = b"\2\0\x10\0UI" + bytes([len(uid), 0]) + uid
        path.write_bytes(whole[:132] + named + dataset)
    refused(tmp_path, rf"{syntax}.*gdcmconv")
    (series,) = series_in(tmp_path.iterdir()).values()
    assert syntax in fault(series).what
