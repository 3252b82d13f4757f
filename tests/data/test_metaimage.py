"""MetaImage: what is whole reads as ITK reads it; what is not is refused, never filled up."""

import gzip
import os
import pathlib
import zlib

import hypothesis
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lung_unet.data import metaimage
from lung_unet.data.images import grid_of
from lung_unet.errors import InputError

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (20, 8, 6)).astype(np.int16)
RAW = VOXELS.tobytes()
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "-195.5 -180 -378.25",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "ALI",
    "ElementSpacing": "0.76 0.5 2.5",
    "DimSize": "6 8 20",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "a.raw",
}


@pytest.fixture
def write(tmp_path):
    """Writes a.mhd and its data file: a header with changes (None: without the key), and bytes."""

    def write(data: bytes | None = RAW, end: str = "\n", **changes: str | None) -> pathlib.Path:
        header = {k: v for k, v in (HEADER | changes).items() if v is not None}
        header["ElementDataFile"] = header.pop("ElementDataFile", "a.raw")  # the last key
        text = "".join(f"{key} = {value}{end}" for key, value in header.items())
        path = tmp_path / "a.mhd"
        path.write_bytes(text.encode("latin-1"))
        if data is not None:
            (tmp_path / "a.raw").write_bytes(data)
        return path

    return write


def refused(path: pathlib.Path, saying: str) -> None:
    with pytest.raises(InputError, match=saying) as error:
        metaimage.read(path)
    assert "\n" not in str(error.value)
    assert str(path.parent) in str(error.value)


def assert_reads_as_itk(path: pathlib.Path) -> None:
    array, grid = metaimage.read(path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image))
    expected = grid_of(image)
    assert grid.shape == expected.shape
    np.testing.assert_allclose(grid.spacing_mm, expected.spacing_mm)
    np.testing.assert_allclose(grid.origin_mm, expected.origin_mm)
    np.testing.assert_allclose(grid.direction, expected.direction)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"end": "\r\n"},
        {"CompressedData": "True", "data": zlib.compress(RAW)},
        {"CompressedData": "True", "data": gzip.compress(RAW, mtime=0)},
        {"CompressedData": "1", "data": zlib.compress(RAW), "Comment": "caf\xe9 = 1"},
        {"BinaryDataByteOrderMSB": "True", "data": VOXELS.astype(">i2").tobytes()},
        {"TransformMatrix": None, "Rotation": "1 0 0 0 0 1 0 -1 0", "AnatomicalOrientation": "RIP"},
        {"TransformMatrix": None, "Offset": None, "AnatomicalOrientation": "RAI"},
        {"AnatomicalOrientation": "PRS"},  # where axes end, as some write it
        {"AnatomicalOrientation": "???"},
        {"AnatomicalOrientation": None},
        {"ElementSize": "0.76 0.5 2.5", "Position": "-195.5 -180 -378.25"},
        {"Offset": None, "Position": "1 2 3"},
        {"ElementSpacing": None, "ElementSize": "1 2 3"},
        {"ElementType": "MET_UCHAR"},
        {"ElementType": "MET_DOUBLE", "data": np.linspace(0, 1, VOXELS.size).tobytes()},
        {"ElementType": "MET_ULONG", "data": RAW * 2},
        {"data": RAW + b"what follows is not voxels"},
    ],
    ids=lambda changes: " ".join(changes) or "plain",
)
def test_reads_what_itk_reads(write, changes):
    assert_reads_as_itk(write(**changes))


@pytest.mark.parametrize("compress", [True, False])
def test_reads_voxels_in_the_header_s_own_file(tmp_path, compress):
    image = sitk.GetImageFromArray(VOXELS)
    image.SetOrigin((1, 2, 3))
    path = tmp_path / "a.mha"
    sitk.WriteImage(image, str(path), useCompression=compress)
    assert_reads_as_itk(path)
    assert metaimage.data_file(path) == path


def test_names_the_data_file(write, tmp_path):
    assert metaimage.data_file(write()) == tmp_path / "a.raw"


# --- Voxels that are not there --------------------------------------------------------------------


def test_missing_data_file(write):
    refused(write(None), "a.raw is missing")


@pytest.mark.parametrize("missing", [1, len(RAW) // 2, len(RAW)])
def test_data_file_cut_short(write, missing):
    refused(write(RAW[: len(RAW) - missing]), "truncated")


STREAM = zlib.compress(RAW)


@pytest.mark.parametrize("size", [None, str(len(STREAM)), str(len(STREAM) // 2), "-5", "x"])
@pytest.mark.parametrize(
    "stream",
    [
        STREAM[: len(STREAM) // 2],
        STREAM[:-1],
        STREAM[:50] + b"\0" * 50 + STREAM[100:],
        zlib.compress(RAW[:-2]),
        zlib.compress(RAW + RAW),
        zlib.compress(b""),
        b"",
        RAW,
    ],
    ids=["half", "no checksum", "damaged", "short", "long", "nothing", "empty", "not compressed"],
)
def test_compressed_data_that_is_not_whole(write, stream, size):
    path = write(stream, CompressedData="True", CompressedDataSize=size)
    refused(path, "copy it again")


def test_the_size_that_the_header_gives_of_compressed_data_is_not_believed(write):
    path = write(STREAM, CompressedData="True", CompressedDataSize=str(len(STREAM) // 2))
    np.testing.assert_array_equal(metaimage.read(path)[0], VOXELS)


# --- Headers that are broken or hostile -----------------------------------------------------------


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "sub/a.raw"])
def test_data_file_outside_of_the_folder(write, tmp_path, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.raw").write_bytes(RAW)
    refused(write(ElementDataFile=name), "ElementDataFile|is missing")


def test_data_file_outside_is_not_read_though_it_would_fit(write, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = write(ElementDataFile="../a.raw").rename(inner / "a.mhd")
    refused(path, "not a file of its folder")


def test_links_of_the_file_system_are_followed(write, tmp_path):
    path = write()
    (tmp_path / "store").mkdir()
    (tmp_path / "a.raw").rename(tmp_path / "store" / "key-of-the-voxels")
    (tmp_path / "a.raw").symlink_to(pathlib.Path("store") / "key-of-the-voxels")
    assert_reads_as_itk(path)
    (tmp_path / "farm").mkdir()
    for name in ("a.mhd", "a.raw"):
        (tmp_path / "farm" / name).symlink_to(tmp_path / name)
    assert_reads_as_itk(tmp_path / "farm" / "a.mhd")
    (tmp_path / "farm" / "a.raw").unlink()  # the header alone is linked
    np.testing.assert_array_equal(metaimage.read(tmp_path / "farm" / "a.mhd")[0], VOXELS)
    (tmp_path / "store" / "key-of-the-voxels").unlink()
    refused(path, "a.raw is a broken link")


def test_a_data_file_with_a_name_beyond_ascii(write, tmp_path):
    for name in ("caf\u00e9.raw".encode(), b"caf\xe9.raw"):
        path = write(ElementDataFile="@")
        path.write_bytes(path.read_bytes().replace(b"@", name))
        (tmp_path / os.fsdecode(name)).write_bytes(RAW)
        np.testing.assert_array_equal(metaimage.read(path)[0], VOXELS)


@pytest.mark.parametrize("name", ["LIST", "a%03d.raw 1 20 1", "x" * 5000, "a\0b"])
def test_data_file_that_is_a_list_or_no_name(write, name):
    refused(write(ElementDataFile=name), "is missing")


@pytest.mark.parametrize(
    "size",
    ["100000 100000 100000", "99999999999999999999 1 1", "2048 2048 1025", "1e300 1 1", "-6 -8 20",
     "6 8 0", "6 8", "6 8 20 1", "6 8 19.5", "six", "nan 8 20", "inf 8 20", ""],
)  # fmt: skip
def test_absurd_size(write, size):
    refused(write(DimSize=size), "voxels are not a CT's|DimSize")


@pytest.mark.parametrize("compressed", ["True", "False"])
def test_no_memory_is_asked_for_that_the_file_cannot_fill(write, monkeypatch, compressed):
    path = write(b"x" * 1000, DimSize="1024 1024 1024", CompressedData=compressed)
    monkeypatch.setattr(metaimage.np, "empty", lambda *_: pytest.fail("allocated"))
    refused(path, "truncated")


@pytest.mark.parametrize("value", ["0 1 1", "-1 1 1", "nan 1 1", "inf 1 1", "1 1", "1e-9 1 1", "x"])
def test_absurd_spacing(write, value):
    refused(write(ElementSpacing=value), "[sS]pacing")


@pytest.mark.parametrize("value", ["nan 0 0", "inf 0 0", "0 0", "0 0 zero"])
def test_absurd_origin(write, value):
    refused(write(Offset=value), "Offset")


@pytest.mark.parametrize(
    "value",
    ["1 0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0 0", "1 0.5 0 0 1 0 0 0 1", "2 0 0 0 1 0 0 0 1",
     "nan 0 0 0 1 0 0 0 1", "1 0 0 0 1"],
)  # fmt: skip
def test_direction_that_is_no_rotation(write, value):
    refused(write(TransformMatrix=value), "right angles|TransformMatrix")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"AnatomicalOrientation": "RAI"}, ("AnatomicalOrientation", "TransformMatrix")),
        ({"AnatomicalOrientation": "ARI"}, ("AnatomicalOrientation", "TransformMatrix")),
        ({"TransformMatrix": None}, ("AnatomicalOrientation", "TransformMatrix")),
        (
            {"TransformMatrix": None, "AnatomicalOrientation": None},
            ("left and right", "TransformM"),
        ),
        ({"TransformMatrix": None, "AnatomicalOrientation": "???"}, ("left and right", "Transf")),
        ({"ElementSize": "0.76 0.5 5"}, ("ElementSpacing", "ElementSize")),
        ({"Origin": "-195.5 -180 378.25"}, ("Offset", "Origin")),
        ({"Orientation": "1 0 0 0 1 0 0 0 1"}, ("TransformMatrix", "Orientation")),
        ({"DistanceUnits": "cm"}, ("DistanceUnits", "mm")),
    ],
    ids=str,
)
def test_geometry_that_contradicts_itself_or_is_unknown(write, changes, named):
    for word in named:
        refused(write(**changes), word)


def test_a_key_that_is_there_twice(write):
    path = write()
    path.write_text(path.read_text(encoding="utf-8").replace("NDims", "Offset = 0 0 0\nNDims"))
    refused(path, "remove the wrong one")


@pytest.mark.parametrize("degrees", [0, 30, 44, 46, 80])
def test_the_orientation_that_itk_writes_is_no_contradiction(tmp_path, direction, degrees):
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.48, 0.6, 0.64])).as_matrix()
    image = sitk.GetImageFromArray(VOXELS)
    image.SetDirection((turn @ direction).ravel())
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    assert_reads_as_itk(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("key", "value"),
    [("NDims", "2"), ("NDims", "4"), ("NDims", None), ("ElementNumberOfChannels", "3"),
     ("HeaderSize", "9"), ("HeaderSize", "-1"), ("BinaryData", "False"),
     ("ElementType", "MET_NONE"), ("ElementType", None), ("DimSize", None),
     ("ElementSpacing", None)],
)  # fmt: skip
def test_key_that_is_missing_or_unknown(write, key, value):
    refused(write(**{key: value}), key if key != "BinaryData" else "text")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 1000, b"garbage", bytes(range(256)) * 300, b"ElementDataFile"],
    ids=["empty", "zeros", "text", "noise", "no value"],
)
def test_no_header_at_all(tmp_path, content):
    path = tmp_path / "a.mhd"
    path.write_bytes(content)
    refused(path, "copy it again|NDims")


def test_last_key_without_a_value(write):
    path = write()
    path.write_text(path.read_text(encoding="utf-8").replace("File = a.raw", "File"))
    refused(path, "has no ElementDataFile")


def test_folder_or_nothing(tmp_path):
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "none.mhd", "cannot be read")


NUMBERS = ["0", "1", "-1", "6", "8", "20", "3", "1e9", "nan", "inf", "0.5", "x"]
values = st.one_of(
    st.sampled_from(
        sorted({*HEADER.values(), "LOCAL", "LIST", "..", "True", "MET_CHAR", "6 8 20"})
    ),
    st.lists(st.sampled_from(NUMBERS), max_size=10).map(" ".join),
    st.text(st.characters(max_codepoint=255), max_size=12),
)
keys = st.sampled_from([*HEADER, "CompressedDataSize", "HeaderSize", "Origin", "ElementSize"])
LINES = [f"{key} = {value}" for key, value in HEADER.items()]


@hypothesis.settings(
    max_examples=600,
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    st.dictionaries(keys, values | st.none(), max_size=3),
    st.lists(st.integers(0, len(LINES)), max_size=3),
    st.binary(max_size=8),
    st.sampled_from([RAW, STREAM, RAW[:99], STREAM[:99], b""]),
    st.booleans(),
)
def test_any_header_reads_whole_or_is_refused(tmp_path, changes, dropped, noise, data, compressed):
    """Whatever stands in the header: an image of the size that it says, or one clear line."""
    header = HEADER | {"CompressedData": str(compressed)} | changes
    lines = [f"{k} = {v}" for k, v in header.items() if v is not None]
    lines = [line for i, line in enumerate(lines) if i not in dropped]
    path = tmp_path / "a.mhd"
    path.write_bytes("\n".join(lines).encode("latin-1") + b"\n" + noise)
    (tmp_path / "a.raw").write_bytes(data)
    try:
        array, grid = metaimage.read(path)
    except InputError as error:
        assert str(path) in str(error) or str(tmp_path / "a.raw") in str(error)
        assert "\n" not in str(error)
    else:
        assert array.shape == grid.shape
        assert array.size <= VOXELS.size * 2
        assert np.isfinite(grid.to_world(np.array(grid.shape))).all()


def test_a_thousand_changed_headers(write):
    """Each is refused, or gives what ITK gives."""
    rng = np.random.default_rng(0)
    names = [*HEADER, "Rotation", "Orientation", "Origin", "Position", "ElementSize", "HeaderSize",
             "DistanceUnits", "ElementByteOrderMSB", "ElementNumberOfChannels"]  # fmt: skip
    words = [*HEADER.values(), *NUMBERS, "1 0 0 0 1 0 0 0 1", "-1 0 0 0 -1 0 0 0 1", "LPI", "RAS",
             "LPS", "???", "1 2 3", "LOCAL", "MET_USHORT", "MET_CHAR", "mm", "cm"]  # fmt: skip
    read = 0
    for number in range(1000):
        changes: dict[str, str | None] = {}
        for _ in range(rng.integers(1, 4)):
            name = str(rng.choice(names))
            old, kind = HEADER.get(name, ""), rng.integers(4)
            if kind == 0:
                changes[name] = None
            elif kind == 1 and old:
                place = rng.integers(len(old))
                changes[name] = old[:place] + chr(rng.integers(33, 127)) + old[place + 1 :]
            else:
                changes[name] = str(rng.choice(words))
        path = write(RAW, **changes)
        try:
            metaimage.read(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error), number
            continue
        read += 1
        assert_reads_as_itk(path)
    assert 50 < read < 900
