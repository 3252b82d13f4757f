"""Image files to arrays with geometry and back: MetaImage, NIfTI, NRRD.

They are read by readers of our own, which refuse what ITK makes up or guesses, and written by
SimpleITK, whose (x, y, z) becomes (z, y, x) here.
"""

import gzip
import os
import pathlib
import shutil
import struct
import unicodedata

import numpy as np
import SimpleITK as sitk

from lung_unet.data import metaimage, nifti, nrrd
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError
from lung_unet.files import atomic_path

SUFFIXES = (".mhd", ".mha", ".nii", ".nii.gz", ".nrrd", ".nhdr")
PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz")
SCL_SLOPE = 112  # where a NIfTI-1 header has it, float32

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own warnings name no remedy


def grid_of(image: sitk.Image) -> Grid:
    """The grid of a 3D SimpleITK image."""
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
    """Voxels (z, y, x) and grid of a 3D image. Its suffix tells the format, in any case.

    Raises:
      InputError: missing, unreadable, truncated, not 3D, absurdly large, or of broken, unknown or
        contradictory geometry.
    """
    check_name(path)
    if not path.is_file():
        if path.is_symlink():
            raise InputError(f"{path}: is a broken link, to {os.readlink(path)}; get that file")
        raise InputError(f"{path}: no such image; check the path")
    name = path.name.lower()
    if name.endswith((".mhd", ".mha")):
        return metaimage.read(path)
    if name.endswith((".nii", ".nii.gz")):
        return nifti.read(path)
    if name.endswith((".nrrd", ".nhdr")):
        return nrrd.read(path)
    kind = "is half of an ANALYZE or NIfTI pair" if name.endswith(PAIRS) else "unknown image type"
    raise InputError(f"{path}: {kind}; give {', '.join(SUFFIXES)} or a DICOM folder")


def data_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that an image is made of: itself, and the one with its voxels if that is another.

    Raises:
      InputError: its header is broken, or its data file missing.
    """
    reader = {".mhd": metaimage, ".mha": metaimage, ".nrrd": nrrd, ".nhdr": nrrd}.get(
        path.suffix.lower()
    )
    data = reader.data_file(path) if reader else path
    return [path] if data == path else [path, data]


def check_name(path: pathlib.Path) -> None:
    """Refuses a path that no message, table or DICOM file can hold.

    Raises:
      InputError: it is not UTF-8, or has a line break or another control character.
    """
    try:
        name = str(path).encode().decode()
    except UnicodeEncodeError:
        name = None
    if name is None or any(unicodedata.category(letter) == "Cc" for letter in name):
        shown = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
        kind = "is not UTF-8" if name is None else "has a control character"
        raise InputError(f"{shown}: its name {kind}; rename it, or the folder that it is in")
