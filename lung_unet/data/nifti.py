"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz), read strictly: one geometry, or an error.

A NIfTI header describes its geometry up to twice, by qform with pixdim and by sform, and programs
differ in which they take. So both must put the corners of the image at the same places, within half
of the smallest voxel spacing, and pixdim must be the voxel spacing of either.
"""

import gzip
import math
import pathlib
import zlib
from typing import Literal

import numpy as np

from lung_unet.data.geometry import (
    APART,
    affine_of,
    check_grid,
    corners_apart_mm,
    straight_grid,
)
from lung_unet.data.scan import Grid
from lung_unet.data.voxel_file import GZIP, read_bytes
from lung_unet.errors import InputError

FIELDS = [
    "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "xyzt_units",
    "qform_code", "sform_code", "quatern", "qoffset", "srow", "magic",
]  # fmt: skip
NIFTI1 = np.dtype(
    {
        "names": FIELDS,
        "formats": [
            "8i2", "i2", "i2", "8f4", "f4", "f4", "f4",
            "u1", "i2", "i2", "3f4", "3f4", "(3,4)f4", "S4",
        ],
        "offsets": [40, 70, 72, 76, 108, 112, 116, 123, 252, 254, 256, 268, 280, 344],
        "itemsize": 348,
    }
)  # fmt: skip
NIFTI2 = np.dtype(
    {
        "names": FIELDS,
        "formats": [
            "8i8", "i2", "i2", "8f8", "i8", "f8", "f8",
            "i4", "i4", "i4", "3f8", "3f8", "(3,4)f8", "S8",
        ],
        "offsets": [16, 12, 14, 104, 168, 176, 184, 500, 344, 348, 352, 376, 400, 4],
        "itemsize": 540,
    }
)  # fmt: skip
VERSIONS = {348: (NIFTI1, b"n+1"), 540: (NIFTI2, b"n+2\0\r\n\x1a\n")}
PAIRS = (b"ni1", b"ni2")
TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip
NO_NUMBERS = {1: "bits", 32: "complex", 128: "RGB", 1536: "float128", 1792: "complex", 2304: "RGBA"}
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, m, mm, µm
ORDERS: tuple[Literal["<"], Literal[">"]] = ("<", ">")
TO_LPS = np.array([1.0, -1.0, -1.0])[:, None]  # of RAS, z, y, x


def read(path: pathlib.Path) -> tuple[np.ndarray, Grid]:
    """Voxels (z, y, x), scaled where the header says so, and grid of a NIfTI file.

    Raises:
      InputError: damaged, not 3D, of no numbers, or of unknown or contradictory geometry.
    """
    header, compressed = _header(path)
    size = _size(path, header)
    kind = int(header["datatype"])
    if kind not in TYPES:
        raise InputError(
            f"{path}: holds {NO_NUMBERS.get(kind, f'an unknown datatype, {kind}')}; "
            "give a 3D image of one value, as int16"
        )
    order = header.dtype["datatype"].byteorder
    stored = np.dtype(order + TYPES[kind])
    if header["bitpix"] != 8 * stored.itemsize:
        raise InputError(
            f"{path}: datatype {kind} has {8 * stored.itemsize} bits a voxel, but bitpix is "
            f"{header['bitpix']}; correct one of them, or copy it again"
        )
    grid = _grid(path, header, size)
    start = float(header["vox_offset"])
    first = header.dtype.itemsize + 4  # the four bytes say whether extensions follow
    if start == 0:
        start = first
    if not first <= start <= 1 << 30 or start != int(start):
        raise InputError(f"{path}: vox_offset = {start:g} is no place of voxels; copy it again")
    skipped = int(start)
    needed = skipped + math.prod(size) * stored.itemsize
    row = size[2] * stored.itemsize
    content = read_bytes(path, path, 0, needed, compressed, spare=row - 1)
    array = content[skipped:].view(stored).reshape(size)
    return _scaled(path, header, array.astype(stored.newbyteorder("="), copy=False)), grid


def _header(path: pathlib.Path) -> tuple[np.void, bool]:
    """The header, and whether the file is compressed, whatever its name."""
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == GZIP
        with gzip.open(path) if compressed else open(path, "rb") as file:
            start = file.read(NIFTI2.itemsize)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is damaged ({error}); copy it again") from error
    if not start:
        raise InputError(f"{path}: is empty; copy it again")
    for order in ORDERS:
        size = int(np.frombuffer(start[:4].ljust(4, b"\0"), f"{order}i4")[0])
        if size not in VERSIONS:
            continue
        layout, magic = VERSIONS[size]
        if len(start) < layout.itemsize:
            break
        header = np.frombuffer(start, layout.newbyteorder(order), 1)[0]
        found = bytes(header["magic"])
        if found[:3] in PAIRS or (not found and size == 348):
            raise InputError(
                f"{path}: is the header of an ANALYZE or NIfTI pair (.hdr, .img); convert both to "
                "one .nii.gz"
            )
        if found == magic.rstrip(b"\0"):
            return header, compressed
    raise InputError(
        f"{path}: is not a NIfTI file, or damaged (it begins with {start[:8]!r}); "
        "give it the suffix of what it is, or copy it again"
    )


def _size(path: pathlib.Path, header: np.void) -> tuple[int, int, int]:
    """The numbers of voxels (z, y, x)."""
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : max(count, 0) + 1]]
    if not 3 <= count <= 7 or any(n != 1 for n in sizes[3:]):
        shown = "×".join(map(str, sizes)) or str(count)
        raise InputError(f"{path}: has {shown} values; give a 3D image of one value")
    return sizes[2], sizes[1], sizes[0]


def _grid(path: pathlib.Path, header: np.void, size: tuple[int, int, int]) -> Grid:
    units = int(header["xyzt_units"]) & 7
    if units not in UNITS_MM:
        raise InputError(f"{path}: xyzt_units = {units} is no unit of length; set it to 2, mm")
    spacing = np.array(header["pixdim"][3:0:-1], np.float64) * UNITS_MM[units]
    grids = {}
    check_grid(path, Grid(size, spacing, np.zeros(3)))  # its size and pixdim
    if header["qform_code"] > 0:
        affine = _qform(path, header, spacing, UNITS_MM[units])
        grids["qform"] = straight_grid(path, "qform", size, affine)
    rows = np.array(header["srow"], np.float64)
    if header["sform_code"] > 0 and rows[:, :3].any():
        affine = rows[::-1][:, [2, 1, 0, 3]] * TO_LPS * UNITS_MM[units]
        grids["sform"] = straight_grid(path, "sform", size, affine)
    if not grids:
        raise InputError(
            f"{path}: neither its qform_code nor its sform_code is set, so that left and right are "
            "unknown; set one, as with nibabel's image.set_sform(affine, code=1)"
        )
    grid = grids.get("sform") or grids["qform"]
    for other in grids.values():
        apart = corners_apart_mm(size, affine_of(grid), affine_of(other))
        if apart > APART * grid.spacing_mm.min():
            raise InputError(
                f"{path}: its qform and sform lie up to {apart:.1f} mm apart; keep the right one, "
                "as with nibabel's image.set_qform(image.get_sform(), code=1)"
            )
    off = np.abs(grid.spacing_mm - spacing) * (np.array(size) - 1)
    if off.max() > APART * spacing.min():
        raise InputError(
            f"{path}: its pixdim, {_mm(spacing)} (z, y, x), and its sform, {_mm(grid.spacing_mm)}, "
            "are different voxel spacings; correct the wrong one, as with nibabel's "
            "image.set_sform or image.header.set_zooms"
        )
    return grid


def _qform(path: pathlib.Path, header: np.void, spacing: np.ndarray, unit_mm: float) -> np.ndarray:
    """The affine (3, 4) of the quaternion: LPS mm of voxels, z, y, x."""
    b, c, d = (float(v) for v in header["quatern"])
    rest = 1 - (b * b + c * c + d * d)
    if not rest > -1e-3:
        raise InputError(f"{path}: its qform is no rotation; copy it again, or set it anew")
    a = math.sqrt(max(rest, 0.0))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    if header["pixdim"][0] < 0:
        rotation[:, 2] *= -1
    origin = np.array(header["qoffset"], np.float64)[::-1, None] * unit_mm
    return np.hstack([rotation[::-1, ::-1] * spacing, origin]) * TO_LPS


def _scaled(path: pathlib.Path, header: np.void, array: np.ndarray) -> np.ndarray:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope) or (slope, inter) == (1, 0):
        return array  # 0 and NaN: not scaled
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise InputError(f"{path}: scl_slope = {slope:g} and scl_inter = {inter:g}; correct them")
    values: np.ndarray = array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)
    with np.errstate(over="ignore"):  # infinite values are refused where they are used
        return values * slope + inter


def _mm(spacing: np.ndarray) -> str:
    return "×".join(f"{v:g}" for v in spacing) + " mm"
