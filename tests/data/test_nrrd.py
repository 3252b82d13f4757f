"""NRRD: what is whole and lies in a known place is read as ITK does; all else is refused."""

import gzip
import pathlib
import re
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.data import nrrd
from lung_unet.data.images import data_files, grid_of, image_of
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (9, 8, 7)).astype(np.int16)
RAW = VOXELS.tobytes()
FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "7 8 9",
    "space directions": "(0.8,0,0) (0,0.56,-0.42) (0,1.5,2)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(30.5,-17,-378.25)",
}


def text(fields: dict[str, str | None]) -> bytes:
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\n".join(["NRRD0005", "# a comment", *lines, "key:=value: 1", "", ""]).encode()


def written(
    folder: pathlib.Path, data: bytes = RAW, name: str = "a.nrrd", **changes: str | None
) -> pathlib.Path:
    changes = {key.replace("_", " "): value for key, value in changes.items()}
    path = folder / name
    path.write_bytes(text(FIELDS | changes) + data)
    return path


def refused(path: pathlib.Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        nrrd.read(path)
    for word in (str(path.parent), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def assert_reads_as_itk(path: pathlib.Path, of: pathlib.Path | None = None) -> None:
    array, grid = nrrd.read(path)
    image = sitk.ReadImage(str(of or path))
    expected = grid_of(image)
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image))
    assert array.shape == grid.shape == expected.shape
    np.testing.assert_allclose(grid.spacing_mm, expected.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(grid.origin_mm, expected.origin_mm, rtol=1e-6)
    np.testing.assert_allclose(grid.direction, expected.direction, atol=1e-6)


@pytest.mark.parametrize("compress", [True, False])
def test_reads_what_itk_writes(tmp_path, direction, compress):
    grid = Grid(VOXELS.shape, np.array([2.5, 0.7, 0.8]), np.array([-378.2, 17, 30.5]), direction)
    for name in ("a.nrrd", "b.nhdr"):
        sitk.WriteImage(image_of(VOXELS, grid), str(tmp_path / name), useCompression=compress)
        assert_reads_as_itk(tmp_path / name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"space": "RAS"},
        {"space": "right-anterior-superior"},
        {"space": "Left-Anterior-Superior"},
        {"encoding": "gzip", "data": gzip.compress(RAW, mtime=0)},
        {
            "encoding": "gz",
            "data": gzip.compress(RAW[:200], mtime=0) + gzip.compress(RAW[200:], mtime=0),
        },
        {"endian": "big", "data": VOXELS.astype(">i2").tobytes()},
        {"type": "unsigned short"},
        {"type": "int8_t", "endian": None, "data": RAW[: len(RAW) // 2]},
        {"type": "float", "data": VOXELS.astype("<f4").tobytes()},
        {"type": "uint64", "data": RAW * 4},
        {"space_directions": "(0.8, 0, 0) (0, 0.7, 0) (0, 0, 2.5)"},
        {"space_units": '"mm" "mm" "mm"'},
        {"space_origin": None},
        {"byte_skip": "5", "data": b"abcde" + RAW},
        {"byte_skip": "-1", "data": b"anything before" + RAW},
        {"kinds": "space space space", "measurement_frame": "(1,0,0) (0,1,0) (0,0,1)"},
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items() if k != "data") or "plain",
)
def test_reads_what_itk_reads(tmp_path, changes):
    assert_reads_as_itk(written(tmp_path, **changes))


def test_an_axis_of_one_value_is_none(tmp_path):
    plain = written(tmp_path, name="plain.nrrd")
    directions = "none " + FIELDS["space directions"]
    one = written(tmp_path, dimension="4", sizes="1 7 8 9", space_directions=directions, kinds=None)
    assert_reads_as_itk(one, plain)
    refused(
        written(
            tmp_path, RAW * 3, dimension="4", sizes="3 7 8 9", space_directions=directions,
            kinds="vector domain domain domain",
        ),
        "3D image of one value",
    )  # fmt: skip
    refused(written(tmp_path, dimension="2", sizes="7 72"), "3D image of one value")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"space": None}, ("space", "left and right")),
        ({"space": None, "space_dimension": "3"}, ("space", "left and right")),
        ({"space": "scanner-xyz"}, ("scanner-xyz", "left and right")),
        ({"space": None, "space_directions": None, "spacings": "0.8 0.7 2.5"}, ("space",)),
        ({"spacings": "0.8 0.7 5"}, ("spacings", "space directions")),
        ({"space_directions": None}, ("space directions",)),
        ({"space_directions": "(0.8,0,0) (0,0.7,0)"}, ("space directions",)),
        ({"space_directions": "(0.8,0,0) (0,0.7,0) none"}, ("space directions",)),
        ({"space_directions": "(0.8,0,0) (0,0.7,0) (0,0,x)"}, ("space directions",)),
        ({"space_directions": "(0.8,0,0) (0,0.7,0) (0,0,nan)"}, ("space directions",)),
        ({"space_directions": "(0.8,0,0) (0,0.7,0) (0,0,0)"}, ("space directions",)),
        ({"space_directions": "(0.8,0,0) (0,0.7,0) (0,1,2.5)"}, ("space directions", "sheared")),
        ({"space_directions": "(0.8,0,0) (0,0.7,0) (0,0,2500)"}, ("spacing",)),
        ({"space_units": '"m" "m" "m"'}, ("space units", "mm")),
        ({"space_origin": "(1,2)"}, ("space",)),
        ({"space_origin": "(1,2,nan)"}, ("space",)),
    ],
    ids=str,
)
def test_a_place_that_is_unknown_or_contradictory(tmp_path, changes, named):
    refused(written(tmp_path, **changes), *named)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dimension": "4"}, "dimension"),
        ({"sizes": "7 8 x"}, "sizes"),
        ({"sizes": "7 8 -9"}, "voxels are not a CT's"),
        ({"sizes": "60000 60000 60000"}, "voxels are not a CT's"),
        ({"sizes": "7 8 10"}, "truncated"),
        ({"sizes": "7 8 8"}, "correct the header"),
        ({"type": "block"}, "type"),
        ({"encoding": "bzip2"}, "encoding"),
        ({"encoding": "gzip"}, "damaged"),
        ({"encoding": "gzip", "data": gzip.compress(RAW, mtime=0)[:-4]}, "truncated"),
        ({"encoding": "gzip", "data": zlib.compress(RAW + RAW)}, "correct the header"),
        ({"endian": None}, "endian"),
        ({"endian": "middle"}, "endian"),
        ({"line_skip": "2"}, "skips"),
        ({"byte_skip": "-7"}, "skips"),
        ({"data_file": "LIST"}, "many files"),
        ({"data_file": "a%03d.raw 1 9 1"}, "many files"),
        ({"data_file": "missing.raw"}, "is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_broken_headers(tmp_path, changes, named):
    refused(written(tmp_path, **changes), named)


@pytest.mark.parametrize(
    "content", [b"", b"NRRD0005", b"NRRD0009\n\n", b"x" * 500, b"NRRD0005\nx\n"]
)
def test_what_is_no_nrrd(tmp_path, content):
    (tmp_path / "a.nrrd").write_bytes(content)
    refused(tmp_path / "a.nrrd", "copy it again")


def test_a_field_that_is_there_twice(tmp_path):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"dimension", b"space: RAS\ndimension"))
    refused(path, "space", "remove the wrong one")


def test_the_data_file_may_be_a_link_and_must_be_beside(tmp_path):
    store, farm = tmp_path / "store", tmp_path / "farm"
    store.mkdir()
    farm.mkdir()
    (store / "a.raw").write_bytes(RAW)
    path = written(store, b"", "a.nhdr", data_file="a.raw")
    for name in ("a.nhdr", "a.raw"):
        (farm / name).symlink_to(store / name)
    assert_reads_as_itk(farm / "a.nhdr", path)
    assert data_files(farm / "a.nhdr") == [farm / "a.nhdr", farm / "a.raw"]
    for name in ("../store/a.raw", str(store / "a.raw"), ".."):
        refused(written(farm, b"", "b.nhdr", data_file=name), "not a file of its folder")


WORDS = ["0", "1", "-1", "3", "7 8 9", "nan", "none", "(0,0,1)", "(1,0,0) (0,1,0) (0,0,1)", "gzip",
         "raw", "little", "big", "short", "ushort", "double", "RAS", "LPS", "a.raw", "LIST", "1e9",
         "left-posterior-superior", "", "\"m\"", "none (0.8,0,0) (0,0.7,0) (0,0,2.5)"]  # fmt: skip


def test_a_thousand_changed_headers(tmp_path):
    """Each is refused, or gives what ITK gives, which reads it without fields that say nothing of
    voxels or place."""
    rng = np.random.default_rng(0)
    original = nrrd.read(written(tmp_path))[1]
    (tmp_path / "a.raw").write_bytes(RAW)
    names = [*FIELDS, "spacings", "space units", "data file", "byte skip", "line skip",
             "space dimension", "thicknesses", "centerings"]  # fmt: skip
    read = 0
    for number in range(1000):
        fields: dict[str, str | None] = dict(FIELDS)
        for _ in range(rng.integers(1, 4)):
            name = str(rng.choice(names))
            kind = rng.integers(4)
            old = fields.get(name) or ""
            if kind == 0:
                fields[name] = None
            elif kind == 1 and old:
                place = rng.integers(len(old))
                letter = chr(rng.integers(32, 127))
                fields[name] = old[:place] + letter + old[place + 1 :]
            else:
                fields[name] = str(rng.choice(WORDS))
        header = text(fields)
        if rng.random() < 0.2:
            place = rng.integers(len(header))
            header = header[:place] + bytes([rng.integers(256)]) + header[place + 1 :]
        path = tmp_path / "b.nrrd"
        path.write_bytes(header + RAW)
        try:
            nrrd.read(path)
        except InputError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error), number
            continue
        read += 1
        for name in ("kinds", "thicknesses", "centerings", "space dimension", "space units"):
            header = re.sub(rf"(?m)^{name}:.*\n".encode(), b"", header)
        (tmp_path / "plain.nrrd").write_bytes(header + RAW)
        try:
            assert_reads_as_itk(path, tmp_path / "plain.nrrd")
        except RuntimeError:  # the name of one of these fields was hit
            array, grid = nrrd.read(path)
            np.testing.assert_array_equal(array, VOXELS)
            np.testing.assert_array_equal(grid.to_world((1, 1, 1)), original.to_world((1, 1, 1)))
    assert 50 < read < 900
