"""Images come with their geometry, whole, or not at all; and go back to where they were."""

import gzip
import pathlib

import numpy as np
import pytest
import SimpleITK as sitk

from lung_unet.data.dicom_series import read_volume, series_in
from lung_unet.data.hounsfield import hounsfield
from lung_unet.data.images import image_of, read_image, write_image
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (9, 8, 7)).astype(np.int16)


def refused(path: pathlib.Path, saying: str) -> None:
    with pytest.raises(InputError, match=saying) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.fixture
def grid(direction) -> Grid:
    return Grid(VOXELS.shape, np.array([2.5, 0.7, 0.8]), np.array([-378.2, 17.0, 30.5]), direction)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_keeps_voxels_and_geometry(tmp_path, grid, suffix):
    path = tmp_path / f"new folder/a{suffix}"
    write_image(path, VOXELS, grid)
    array, again = read_image(path)
    np.testing.assert_array_equal(hounsfield(array, path), VOXELS)
    assert again.shape == grid.shape
    np.testing.assert_allclose(again.spacing_mm, grid.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(again.origin_mm, grid.origin_mm, rtol=1e-6)
    np.testing.assert_allclose(again.direction, grid.direction, atol=1e-6)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary


def test_a_voxel_lies_where_simpleitk_says(grid):
    image = image_of(VOXELS, grid)
    z, y, x = 3, 5, 2
    position = image.TransformIndexToPhysicalPoint((x, y, z))
    np.testing.assert_allclose(grid.to_world([z, y, x]), position[::-1])
    assert image.GetPixel(x, y, z) == VOXELS[z, y, x]


def upright(shape=VOXELS.shape) -> Grid:
    return Grid(shape, np.ones(3), np.zeros(3))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_file_cut_short(tmp_path, suffix, kept):
    path = tmp_path / f"a{suffix}"
    write_image(path, VOXELS, upright())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    refused(path, "copy it again")


def test_damaged_nifti(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_image(path, VOXELS, upright())
    content = gzip.decompress(path.read_bytes())
    stream = bytearray(gzip.compress(content, compresslevel=0))
    stream[len(stream) // 2] ^= 1
    path.write_bytes(stream)
    refused(path, "damaged")


def test_damaged_metaimage_is_checked_too(tmp_path):
    path = tmp_path / "a.mhd"
    sitk.WriteImage(image_of(VOXELS, upright()), str(path), useCompression=True)
    stream = (tmp_path / "a.zraw").read_bytes()
    (tmp_path / "a.zraw").write_bytes(stream[: len(stream) // 2])
    header = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in header if "CompressedDataSize" not in line))
    refused(path, "copy it again")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 4000, b"\xff" * 4000])
def test_no_image_at_all(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refused(path, "copy it again")


def test_missing_and_unknown_files(tmp_path):
    refused(tmp_path / "none.nii.gz", "no such image")
    (tmp_path / "a.png").write_bytes(b"x")
    refused(tmp_path / "a.png", "unknown image type")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_what_is_no_ct(tmp_path, suffix):
    path = str(tmp_path / f"a{suffix}")
    rgb = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    series = sitk.GetImageFromArray(np.zeros((2, 4, 5, 6), np.int16), isVector=False)
    plane = sitk.GetImageFromArray(np.zeros((5, 6), np.int16))
    many = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.complex64))
    for image in (rgb, series, plane, many):
        sitk.WriteImage(image, path)
        refused(pathlib.Path(path), "3D image of one value")


@pytest.mark.parametrize(("spacing", "origin"), [(500.0, 0.0), (1e-5, 0.0), (1.0, np.nan)])
def test_absurd_geometry(tmp_path, spacing, origin):
    path = tmp_path / "a.nii"
    write_image(path, VOXELS, Grid(VOXELS.shape, np.full(3, spacing), np.full(3, origin)))
    refused(path, "spacing|origin|cannot be read")


def test_header_of_absurd_size_is_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "a.nrrd"
    path.write_text(
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\n"
        "sizes: 60000 60000 60000\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
        "space origin: (0,0,0)\nencoding: raw\nendian: little\n\nxx"
    )
    refused(path, "voxels are not a CT's")


def test_real_ct(real_data):
    ((uid, slices),) = series_in((real_data / "chest_ct_dicom").iterdir()).items()
    array, grid, warnings = read_volume(slices, real_data)
    assert grid.shape == (64, 512, 512) and warnings == ()
    np.testing.assert_allclose(grid.spacing_mm, [5, 0.841796875, 0.841796875])
    np.testing.assert_allclose(grid.direction, np.eye(3))
    hu = hounsfield(array, uid)
    air, tissue = (hu > -1050) & (hu < -950), (hu > -100) & (hu < 150)
    assert -2048 <= hu.min() <= -1000
    assert hu.max() > 500  # bone
    assert air.mean() > 0.2
    assert tissue.mean() > 0.1
    top, bottom = hu[-1], hu[0]  # z grows to the head: shoulders are wider than they are deep
    assert (top > -300).any(0).sum() > (top > -300).any(1).sum()
    assert (bottom > -300).any()
