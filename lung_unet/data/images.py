"""Image files to arrays with geometry and back: MetaImage, NIfTI, NRRD, through SimpleITK.

The one border where SimpleITK's (x, y, z) becomes (z, y, x).
"""

import gzip
import os
import pathlib
import shutil
import struct

import numpy as np
import SimpleITK as sitk

from lung_unet.data import metaimage, nifti
from lung_unet.data.geometry import check_grid
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError
from lung_unet.files import atomic_path

SUFFIXES = (".mhd", ".mha", ".nii", ".nii.gz", ".nrrd", ".nhdr")
SCL_SLOPE = 112  # where a NIfTI-1 header has it, float32

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own warnings name no remedy


def grid_of(image: sitk.Image | sitk.ImageFileReader) -> Grid:
    """The grid of a 3D SimpleITK image, or of a reader that has read its header."""
    return Grid(
        tuple(image.GetSize()[::-1]),
        np.array(image.GetSpacing()[::-1]),
        np.array(image.GetOrigin()[::-1]),
        np.array(image.GetDirection()).reshape(3, 3)[::-1, ::-1],
    )


def image_of(array: np.ndarray, grid: Grid) -> sitk.Image:
    """A SimpleITK image of an array (z, y, x) on a grid."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(v) for v in grid.spacing_mm[::-1]])
    image.SetOrigin([float(v) for v in grid.origin_mm[::-1]])
    image.SetDirection([float(v) for v in grid.direction[::-1, ::-1].ravel()])
    return image


def write_image(path: str | os.PathLike, array: np.ndarray, grid: Grid) -> None:
    """Writes an array (z, y, x) on its grid, compressed, atomically; the suffix is the format.

    A format of one file: .mhd and .nhdr name another file and so cannot be renamed into place.
    """
    with atomic_path(path) as temporary:
        sitk.WriteImage(image_of(array, grid), str(temporary), useCompression=True)


def write_fractions(path: pathlib.Path, array: np.ndarray, grid: Grid) -> None:
    """Writes uint8 (z, y, x), of which 255 stands for 1, as .nii.gz that is read as 0..1.

    NIfTI-1 has a scale for it, which ITK, 3D Slicer and nibabel apply, and SimpleITK cannot write.
    """
    with atomic_path(path) as temporary:
        plain = temporary.with_suffix("")  # .nii
        try:
            sitk.WriteImage(image_of(array, grid), str(plain))
            with open(plain, "r+b") as file:
                file.seek(SCL_SLOPE)
                file.write(struct.pack("<f", 1 / 255))
                file.seek(0)
                with gzip.open(temporary, "wb", compresslevel=1) as compressed:
                    shutil.copyfileobj(file, compressed, 1 << 20)
        finally:
            plain.unlink(missing_ok=True)


def read_image(path: pathlib.Path) -> tuple[np.ndarray, Grid]:
    """Voxels (z, y, x), of the file's own type, and grid of a 3D image.

    Raises:
      InputError: missing, unreadable, truncated, not 3D, absurdly large, or of broken geometry.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such image; check the path")
    name = path.name.lower()
    if name.endswith((".mhd", ".mha")):
        return metaimage.read(path)
    if name.endswith((".nii", ".nii.gz")):
        return nifti.read(path)
    if not name.endswith(SUFFIXES):
        raise InputError(
            f"{path}: unknown image type; give {', '.join(SUFFIXES)} or a DICOM folder"
        )
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
            raise InputError(
                f"{path}: {reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} "
                "values a voxel; give a 3D image of one value"
            )
        check_grid(path, grid_of(reader))
        image = reader.Execute()
        return sitk.GetArrayFromImage(image), grid_of(image)
    except RuntimeError as error:
        remedy = (
            "resample it to a straight grid" if "orthonormal" in str(error) else "copy it again"
        )
        raise InputError(f"{path}: cannot be read ({_reason(error)}); {remedy}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ")[:160] if lines else type(error).__name__
