"""NIfTI: what is whole and of one geometry is read as ITK does; what contradicts itself is not."""

import gzip
import pathlib
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.data import nifti
from lung_unet.data.images import grid_of, image_of
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (9, 8, 7)).astype(np.int16)
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTER = 40, 70, 72, 76, 108, 112, 116
UNITS, QFORM_CODE, SFORM_CODE, QUATERN, QOFFSET, SROW, MAGIC = 123, 252, 254, 256, 268, 280, 344


def made(tmp_path: pathlib.Path, direction: np.ndarray | None = None) -> bytearray:
    """A NIfTI-1 file as ITK writes it: qform and sform, both of code 1."""
    path = tmp_path / "made.nii"
    direction = np.eye(3) if direction is None else direction
    grid = Grid(VOXELS.shape, np.array([2.5, 0.7, 0.8]), np.array([-378.2, 17.0, 30.5]), direction)
    sitk.WriteImage(image_of(VOXELS, grid), str(path))
    return bytearray(path.read_bytes())


def written(tmp_path: pathlib.Path, content: bytes, name: str = "a.nii") -> pathlib.Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refused(path: pathlib.Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        nifti.read(path)
    for word in (str(path), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def assert_same(found: tuple[np.ndarray, Grid], array: np.ndarray, grid: Grid) -> None:
    np.testing.assert_array_equal(found[0], array)
    assert found[1].shape == grid.shape == array.shape
    np.testing.assert_allclose(found[1].spacing_mm, grid.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(found[1].origin_mm, grid.origin_mm, rtol=1e-6)
    np.testing.assert_allclose(found[1].direction, grid.direction, atol=1e-6)


def as_itk(path: pathlib.Path) -> tuple[np.ndarray, Grid]:
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), grid_of(image)


def as_nifti2(one: bytes) -> bytes:
    """The same as NIfTI-2; nifti2.h says what lies where."""
    (dim,) = struct.iter_unpack("<8h", one[DIM : DIM + 16])
    (pixdim,) = struct.iter_unpack("<8f", one[PIXDIM : PIXDIM + 32])
    two = bytearray(544)
    struct.pack_into("<i8s2h8q", two, 0, 540, b"n+2\0\r\n\x1a\n", *struct.unpack_from(
        "<2h", one, DATATYPE), *dim)  # fmt: skip
    struct.pack_into("<8d", two, 104, *pixdim)
    struct.pack_into("<q2d", two, 168, 544, *struct.unpack_from("<2f", one, SLOPE))
    struct.pack_into("<2i", two, 344, *struct.unpack_from("<2h", one, QFORM_CODE))
    struct.pack_into("<18d", two, 352, *struct.unpack_from("<18f", one, QUATERN))
    struct.pack_into("<i", two, 500, one[UNITS])
    return bytes(two) + one[352:]


def as_big_endian(one: bytes) -> bytes:
    big = bytearray(one)
    fields = [(0, "i"), (DIM, "8h"), (DATATYPE, "2h"), (PIXDIM, "8f"), (VOX_OFFSET, "3f")]
    for offset, form in [*fields, (QFORM_CODE, "2h"), (QUATERN, "18f")]:
        struct.pack_into(f">{form}", big, offset, *struct.unpack_from(f"<{form}", one, offset))
    return bytes(big[:352]) + np.frombuffer(one[352:], "<i2").astype(">i2").tobytes()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.Nii.GZ"])
def test_reads_what_itk_reads(tmp_path, direction, name):
    content = made(tmp_path, direction)
    plain = written(tmp_path, content)
    packed = gzip.compress(content) if name.lower().endswith("gz") else content
    assert_same(nifti.read(written(tmp_path, packed, name)), *as_itk(plain))


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 2), (0, 4), (2, 1), (1, 2), (3, 3)])
def test_one_form_or_both_of_any_code(tmp_path, direction, codes):
    content = made(tmp_path, direction)
    expected = as_itk(written(tmp_path, content))
    struct.pack_into("<2h", content, QFORM_CODE, *codes)
    if not codes[1]:
        struct.pack_into("<12f", content, SROW, *[0] * 12)
    if not codes[0]:
        struct.pack_into("<6f", content, QUATERN, *[0] * 6)
    assert_same(nifti.read(written(tmp_path, content)), *expected)


def test_left_handed_axes(tmp_path):
    content = made(tmp_path, np.diag([1.0, 1.0, -1.0]))  # z, y, x: x grows to the right
    array, grid = nifti.read(written(tmp_path, content))
    assert np.linalg.det(grid.direction) < 0
    assert_same((array, grid), *as_itk(written(tmp_path, content)))


def test_versions_byte_orders_units_and_members(tmp_path, direction):
    one = bytes(made(tmp_path, direction))
    expected = as_itk(written(tmp_path, one))
    half = len(one) // 2
    for content in (
        as_nifti2(one),
        as_big_endian(one),
        gzip.compress(as_nifti2(one)),
        gzip.compress(one[:half]) + gzip.compress(one[half:]),  # as bgzip writes
        gzip.compress(one) + b"\0" * 100,
        one + b"\0" * 8,
    ):
        assert_same(nifti.read(written(tmp_path, content)), *expected)
    metres = bytearray(one)
    metres[UNITS] = 1
    for offset, count in ((PIXDIM + 4, 3), (QOFFSET, 3), (SROW, 12)):
        values = struct.unpack_from(f"<{count}f", one, offset)
        struct.pack_into(f"<{count}f", metres, offset, *(v / 1000 for v in values))
    grid = nifti.read(written(tmp_path, metres))[1]
    np.testing.assert_allclose(grid.origin_mm, expected[1].origin_mm, rtol=1e-5)


def test_one_volume_of_four_dimensions(tmp_path):
    content = made(tmp_path)
    struct.pack_into("<h", content, DIM, 4)
    assert_same(nifti.read(written(tmp_path, content)), *as_itk(written(tmp_path, made(tmp_path))))
    struct.pack_into("<h", content, DIM + 8, 2)
    refused(written(tmp_path, content + content[352:]), "3D image of one value")


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [(0, 5, VOXELS), (np.nan, 0, VOXELS), (1, 0, VOXELS), (1, -1024, VOXELS - 1024.0),
     (0.5, 10, VOXELS * 0.5 + 10)],
)  # fmt: skip
def test_scaling(tmp_path, slope, inter, expected):
    content = made(tmp_path)
    struct.pack_into("<2f", content, SLOPE, slope, inter)
    np.testing.assert_array_equal(nifti.read(written(tmp_path, content))[0], expected)


@pytest.mark.parametrize(("slope", "inter"), [(np.inf, 0), (1, np.nan), (2, np.inf)])
def test_scaling_that_is_no_number(tmp_path, slope, inter):
    content = made(tmp_path)
    struct.pack_into("<2f", content, SLOPE, slope, inter)
    refused(written(tmp_path, content), "scl_slope")


# --- Geometry that contradicts itself -------------------------------------------------------------


def change(content: bytearray, offset: int, form: str, *values: float) -> bytearray:
    struct.pack_into(f"<{form}", content, offset, *values)
    return content


def turned(degrees: float) -> list[float]:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return [
        *(-c * 0.8, s * 0.7, 0, -30.5),
        *(-s * 0.8, -c * 0.7, 0, -17.0),
        *(0, 0, 2.5, -378.2),
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([(PIXDIM + 12, "f", 1.25), (QFORM_CODE, "h", 0)], ("pixdim", "sform")),
        ([(PIXDIM + 4, "f", 0.9), (QFORM_CODE, "h", 0)], ("pixdim", "sform")),
        ([(PIXDIM + 12, "f", 1.25)], ("qform", "sform")),
        ([(SFORM_CODE, "h", 2), (SROW, "12f", *turned(12))], ("qform", "sform")),
        ([(SROW, "12f", *turned(180))], ("qform", "sform")),
        ([(QOFFSET + 8, "f", -370.0)], ("qform", "sform")),
        ([(PIXDIM, "f", -1.0)], ("qform", "sform")),
        ([(QFORM_CODE, "2h", 0, 0)], ("qform_code", "sform_code", "left and right")),
        ([(SROW + 4, "f", 0.4)], ("sform", "sheared")),
        ([(SROW + 4, "f", 0.4), (SFORM_CODE, "h", 2)], ("sform", "sheared")),
        ([(SROW + 4, "f", 0.4), (QFORM_CODE, "h", 0)], ("sform", "sheared")),
        ([(SROW + 4, "f", np.nan)], ("sform",)),
        ([(QUATERN, "f", 1.5)], ("qform", "rotation")),
        ([(UNITS, "B", 5)], ("xyzt_units",)),
        ([(PIXDIM + 4, "f", -0.8)], ("spacing",)),
    ],
    ids=str,
)
def test_contradictions_name_both_sides(tmp_path, changes, named):
    content = made(tmp_path)
    nifti.read(written(tmp_path, content))
    for offset, form, *values in changes:
        change(content, offset, form, *values)
    refused(written(tmp_path, content), *named)


@pytest.mark.parametrize(("degrees", "agree"), [(0.0, True), (0.5, True), (5.0, False)])
def test_what_differs_by_less_than_half_a_voxel_agrees(tmp_path, degrees, agree):
    content = change(made(tmp_path), SROW, "12f", *turned(degrees))
    path = written(tmp_path, content)
    if agree:
        assert_same(nifti.read(path), *as_itk(path))
    else:
        refused(path, "qform", "sform")


# --- What is no such file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([(DATATYPE, "2h", 32, 64)], "complex"),
        ([(DATATYPE, "2h", 128, 24)], "RGB"),
        ([(DATATYPE, "2h", 999, 16)], "999"),
        ([(BITPIX, "h", 8)], "bitpix"),
        ([(VOX_OFFSET, "f", 351.0)], "vox_offset"),
        ([(VOX_OFFSET, "f", np.nan)], "vox_offset"),
        ([(VOX_OFFSET, "f", 352.5)], "vox_offset"),
        ([(DIM, "8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)], "voxels are not a CT's"),
        ([(DIM, "8h", 3, 7, 8, -9, 1, 1, 1, 1)], "voxels are not a CT's"),
        ([(DIM, "8h", 3, 7, 8, 8, 1, 1, 1, 1)], "correct the header"),
        ([(DIM, "8h", 3, 7, 8, 10, 1, 1, 1, 1)], "truncated"),
        ([(MAGIC, "4s", b"ni1\0")], ".img"),
        ([(MAGIC, "4s", b"\0\0\0\0")], ".img"),
        ([(MAGIC, "4s", b"xx1\0")], "not a NIfTI file"),
        ([(0, "i", 347)], "not a NIfTI file"),
    ],
    ids=str,
)
def test_broken_headers(tmp_path, changes, named):
    for name, pack in (("a.nii", bytes), ("a.nii.gz", gzip.compress)):
        content = made(tmp_path)
        for offset, form, *values in changes:
            change(content, offset, form, *values)
        refused(written(tmp_path, pack(content), name), named)


@pytest.mark.parametrize("kept", [0, 1, 300, 348, 352, 400, -1])
def test_cut_short(tmp_path, kept):
    content = bytes(made(tmp_path))
    for part in (content[:kept], gzip.compress(content[:kept]), gzip.compress(content)[:kept]):
        refused(written(tmp_path, part), "copy it again")


def test_a_thousand_headers_with_changed_bytes(tmp_path):
    """Each gives the voxels and the geometry that its file had, or is refused.

    But for what no reader can know to be wrong: a scale, and a type or byte order of as many bits.
    """
    rng = np.random.default_rng(0)
    turn = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    original = bytes(made(tmp_path, turn))
    array, grid = nifti.read(written(tmp_path, original))
    two = as_nifti2(original)
    used = [*range(4), *range(DIM, DIM + 16), *range(DATATYPE, BITPIX + 2),
            *range(PIXDIM, PIXDIM + 16), *range(VOX_OFFSET, VOX_OFFSET + 4), UNITS,
            *range(QFORM_CODE, 328), *range(MAGIC, MAGIC + 4)]  # fmt: skip
    read = 0
    for number in range(1000):
        content = bytearray(two if number % 4 == 0 else original)
        for _ in range(rng.integers(1, 4)):
            place = rng.integers(540) if number % 4 == 0 else rng.choice(used)
            if number % 4 == 0 and 176 <= place < 192:  # the scale
                continue
            if rng.random() < 0.5:
                content[place] = rng.integers(256)
            else:
                content[place] ^= 1 << rng.integers(8)
        path = written(tmp_path, content)
        try:
            found, its = nifti.read(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        read += 1
        assert found.tobytes() == array.tobytes(), number
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1)
        off = np.linalg.norm(its.to_world(corners) - grid.to_world(corners), axis=1).max()
        assert off <= 0.5 * grid.spacing_mm.min() * 1.01, number
    assert 50 < read < 900
