"""DICOM is read however a file is encoded, as pydicom reads the same file in its usual encoding."""

import pathlib
import struct
import zlib

import numpy as np
import pydicom
import pytest

from lung_unet.data import dicom_elements
from lung_unet.data.dicom_header import read_attributes, read_header
from lung_unet.data.dicom_series import is_dicom, read_volume, series_in
from lung_unet.errors import InputError

STORED = np.random.default_rng(0).integers(0, 4096, (3, 4, 5))


def content(slice_: pydicom.Dataset, implicit: bool = False, order: str = "<") -> bytes:
    """The dataset alone, without preamble and meta information."""
    if order == ">":
        slice_.PixelData = np.frombuffer(slice_.PixelData, "<u2").astype(">u2").tobytes()
    out = pydicom.filebase.DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = order == "<", implicit
    pydicom.filewriter.write_dataset(out, slice_)
    return out.getvalue()


def head(syntax: str | None, implicit: bool = False) -> bytes:
    """Preamble and meta information that names a transfer syntax, or none."""
    value = (syntax or "").encode() + b"\0" * (len(syntax or "") % 2)
    vr = b"" if implicit else b"UI"
    length = struct.pack("<I" if implicit else "<H", len(value))
    return bytes(128) + b"DICM" + (b"\2\0\x10\0" + vr + length + value if syntax else b"")


def private(vr: bytes, wide: bool, value: bytes, number: int, order: str = "<") -> bytes:
    length = struct.pack(order + ("HI" if wide else "H"), *([0] if wide else []), len(value))
    return struct.pack(order + "HH", 9, number) + vr + length + value


def with_private(data: bytes, extra: bytes) -> bytes:
    """Elements of the private group 9 put where they belong, before the patient's name."""
    creator = b"\x09\0\x10\0LO\4\0TEST"
    at = data.index(b"\x10\0\x10\0PN")
    return data[:at] + creator + extra + data[at:]


IMPLICIT, EXPLICIT = dicom_elements.IMPLICIT, dicom_elements.EXPLICIT
BIG, DEFLATED = dicom_elements.BIG_ENDIAN, dicom_elements.DEFLATED


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


ENCODINGS = {
    "implicit": lambda s: head(IMPLICIT) + content(s, True),
    "explicit": lambda s: head(EXPLICIT) + content(s),
    "big-endian": lambda s: head(BIG) + content(s, order=">"),
    "deflated": lambda s: head(DEFLATED) + deflated(content(s)),
    "implicit alone": lambda s: content(s, True),
    "explicit alone": content,
    "big-endian alone": lambda s: content(s, order=">"),
    "meta without preamble": lambda s: head(EXPLICIT)[132:] + content(s),
    "implicit meta": lambda s: head(EXPLICIT, implicit=True) + content(s),
    "DICM without meta": lambda s: head(None) + content(s, True),
    "no syntax": lambda s: head(None) + b"\2\0\2\0UI\2\0001\0" + content(s),
    "another syntax, implicit": lambda s: head(EXPLICIT) + content(s, True),
    "another syntax, explicit": lambda s: head(IMPLICIT) + content(s),
    "another preamble": lambda s: b"\xfe\xff" * 64 + (head(EXPLICIT) + content(s))[128:],
    "what follows the pixels": lambda s: head(EXPLICIT) + content(s) + b"\xfc\xff\xfc\xff??garbage",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_every_encoding_gives_the_same_volume(tmp_path, make_slices, pydicom_hu, encoding, suffix):
    expected = pydicom_hu(make_slices(STORED))
    for number, slice_ in enumerate(make_slices(STORED, PatientName="Müller")):
        (tmp_path / f"IM{number}{suffix}").write_bytes(ENCODINGS[encoding](slice_))
    (series,) = series_in(tmp_path.iterdir()).values()
    array, grid, warnings = read_volume(series, tmp_path)
    np.testing.assert_array_equal(array, expected)
    assert grid.spacing_mm.tolist() == [2, 0.5, 0.75] and warnings == ()


@pytest.mark.parametrize("vr", [b"??", b"OX", b"  ", b"\0\0", b"ZZ", b"-1"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("values", [(b"abcd", b"", b"12"), (b"",), (b"odd",), (b"\x09\0\x11\x10",)])
def test_unknown_representations_are_stepped_over(tmp_path, make_slices, vr, wide, values):
    (slice_,) = make_slices(STORED[:1])
    data = head(EXPLICIT) + content(slice_)
    path = tmp_path / "plain.dcm"
    path.write_bytes(data)
    plain = read_header(path)
    extra = b"".join(private(vr, wide, v, 0x1001 + n) for n, v in enumerate(values))
    sequence = b"\x09\0\0\x20SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    ends = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    for number, added in enumerate((extra, sequence + extra + ends)):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(with_private(data, added))
        header = read_header(path)
        for name in ("shape", "position", "orientation", "spacing_mm", "rescale", "kinds"):
            assert getattr(header, name) == getattr(plain, name)
        assert header.pixels.start == plain.pixels.start + len(added) + 12


@pytest.mark.parametrize("vr", [b"UN", b"OX", b"??"])
def test_known_elements_of_another_representation(tmp_path, make_slices, vr):
    (slice_,) = make_slices(STORED[:1])
    data = head(EXPLICIT) + content(slice_)
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    plain = read_header(path)
    for tag in (b"\x20\0\x32\0", b"\x28\0\x10\0", b"\x28\0\x52\x10", b"\x20\0\x52\0"):
        at = data.index(tag)
        length = data[at + 6 : at + 8]
        data = data[: at + 4] + vr + b"\0\0" + length + b"\0\0" + data[at + 8 :]
    path.write_bytes(data)
    header = read_header(path)
    for name in ("shape", "position", "rescale"):
        assert getattr(header, name) == getattr(plain, name)
    found = read_attributes(path, ("FrameOfReferenceUID", "Rows", "PatientName"))
    assert (found.FrameOfReferenceUID, found.Rows, found.PatientName) == ("1.2.778", 4, "Quixote")
    assert len(found) == 3


def test_what_begins_as_dicom(tmp_path, make_slices):
    (slice_,) = make_slices(STORED[:1])
    for number, data in enumerate((content(slice_), content(slice_, True))):
        (tmp_path / str(number)).write_bytes(data)
        assert is_dicom(tmp_path / str(number))
    others = (b"", b"\x08\0", b"PK\3\4" + bytes(200), b"\x08\0\0\0" * 50, b"seriesuid,coordX" * 9)
    others += (b"\x89PNG\r\n\x1a\n" + bytes(200), b"\x1f\x8b\x08\0" + bytes(200), b"\2\0\0\0" * 40)
    for number, data in enumerate(others):
        path = tmp_path / f"other{number}"
        path.write_bytes(data)
        assert not is_dicom(path), data[:8]


def refused(path: pathlib.Path, data: bytes, saying: str) -> None:
    path.write_bytes(data)
    with pytest.raises(InputError, match=saying) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_a_hostile_file_asks_for_no_memory(tmp_path, make_slices, monkeypatch):
    (slice_,) = make_slices(STORED[:1])
    data = content(slice_)
    path = tmp_path / "hostile.dcm"
    monkeypatch.setattr(dicom_elements, "LARGEST_INFLATED", 1 << 20)
    refused(path, head(DEFLATED) + deflated(data + bytes(1 << 22)), "more than a slice")
    refused(path, head(DEFLATED) + deflated(data)[:-20], "cut short")
    refused(path, head(DEFLATED) + b"\xff" * 100, "damaged")
    refused(
        path,
        with_private(head(EXPLICIT) + data, private(b"UT", True, b"", 0x1001)[:-4] + b"\xfe" * 4),
        "cut short",
    )
    deep = b"\x09\0\0\x20SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 100_000
    refused(path, with_private(head(EXPLICIT) + data, deep), "cut short")
