"""MetaImage (.mhd, .mha), read strictly: voxels as they were written, or an error.

ITK follows `ElementDataFile` out of the folder, and takes a compressed stream that is cut short or
damaged for whole: the rest of the scan is then what the memory happened to hold.
"""

import math
import os
import pathlib

import numpy as np

from lung_unet.data.geometry import check_grid
from lung_unet.data.scan import Grid
from lung_unet.data.voxel_file import beside, read_bytes
from lung_unet.errors import InputError

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
PLAIN = {
    "NDims": ("3",), "ElementNumberOfChannels": ("1",), "HeaderSize": ("0",),
    "DistanceUnits": ("mm", "?"),
}  # fmt: skip
LETTERS = ("IS", "AP", "RL")  # where the world's axes z, y, x begin and end
MATRIX = ("TransformMatrix", "Rotation", "Orientation")
IDENTITY = "1 0 0 0 1 0 0 0 1"
MAX_HEADER = 65536  # bytes


def read(path: pathlib.Path) -> tuple[np.ndarray, Grid]:
    """Voxels (z, y, x) and grid of a MetaImage file.

    Raises:
      InputError: the header is broken or hostile, or not all voxels are there.
    """
    header, end = _header(path)
    for key, value in ({"NDims": "missing"} | header).items():
        if value not in PLAIN.get(key, value):
            raise InputError(
                f"{path}: {key} = {value[:80]}, {PLAIN[key][0]} expected; "
                "save it again as a plain 3D image"
            )
    grid = _grid(path, header)
    check_grid(path, grid)
    _check_orientation(path, header, grid)
    kind = header.get("ElementType", "missing")
    if kind not in TYPES:
        raise InputError(
            f"{path}: ElementType = {kind[:80]} is unknown; save it again as MET_SHORT"
        )
    order = ">" if _true(header, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<"
    if not _true(header, "BinaryData", default="True"):
        raise InputError(f"{path}: its voxels are text; save it again as a binary image")
    data = _data_file(path, header)
    stored = np.dtype(order + TYPES[kind])
    needed = math.prod(grid.shape) * stored.itemsize
    compressed = _true(header, "CompressedData")
    spare = 0 if compressed else None
    voxels = read_bytes(path, data, end if data == path else 0, needed, compressed, spare)
    array = voxels.view(stored).reshape(grid.shape)
    return array.astype(stored.newbyteorder("="), copy=False), grid


def data_file(path: pathlib.Path) -> pathlib.Path:
    """The file that holds a MetaImage's voxels: itself, or one beside it.

    Raises:
      InputError: it is missing, or the header names none.
    """
    return _data_file(path, _header(path)[0])


def _header(path: pathlib.Path) -> tuple[dict[str, str], int]:
    """Keys and values, and where the header ends."""
    try:
        with open(path, "rb") as file:
            start = file.read(MAX_HEADER)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    header: dict[str, str] = {}
    end = 0
    for line in start.splitlines(keepends=True):
        end += len(line)
        name, found, value = (text.strip() for text in os.fsdecode(line).partition("="))
        if not found:
            continue
        if header.setdefault(name, value) != value and name.isidentifier():
            raise InputError(
                f"{path}: has {name} = {header[name][:80]} and = {value[:80]}; remove the wrong one"
            )
        if name == "ElementDataFile":  # the last key: what follows may be voxels
            return header, end
    raise InputError(f"{path}: has no ElementDataFile; it is not a MetaImage header, copy it again")


def _grid(path: pathlib.Path, header: dict[str, str]) -> Grid:
    size = _numbers(path, header, 3, "DimSize")
    if any(n != int(n) for n in size):
        raise InputError(f"{path}: DimSize = {header['DimSize'][:80]} is not whole numbers; fix it")
    spacing = _numbers(path, header, 3, "ElementSpacing", "ElementSize")
    origin = _numbers(path, header, 3, "Offset", "Origin", "Position", default=[0.0] * 3)
    rows = _numbers(path, header, 9, *MATRIX, default=[float(v) for v in IDENTITY.split()])
    z, y, x = (int(n) for n in reversed(size))
    direction = np.array(rows).reshape(3, 3).T  # a row is the direction of an axis
    return Grid(
        (z, y, x), np.array(spacing[::-1]), np.array(origin[::-1]), direction[::-1, ::-1].copy()
    )


def _numbers(
    path: pathlib.Path,
    header: dict[str, str],
    count: int,
    *keys: str,
    default: list[float] | None = None,
) -> list[float]:
    found: dict[str, list[float]] = {}
    for key in (key for key in keys if key in header):
        try:
            values = [float(v) for v in header[key].split()]
        except ValueError:
            values = []
        if len(values) != count or not np.isfinite(values).all():
            raise InputError(
                f"{path}: {key} = {header[key][:80]} is not {count} finite numbers; fix it"
            )
        first = next(iter(found), key)
        if not np.allclose(found.setdefault(key, values), found[first], rtol=1e-4, atol=1e-4):
            raise InputError(
                f"{path}: {first} = {header[first][:80]} contradicts {key} = {header[key][:80]}; "
                "remove the wrong one"
            )
    if found:
        return next(iter(found.values()))
    if default is None:
        raise InputError(f"{path}: has no {keys[0]}; it is not a MetaImage header, copy it again")
    return default


def _check_orientation(path: pathlib.Path, header: dict[str, str], grid: Grid) -> None:
    """AnatomicalOrientation names where the axes x, y, z begin (ITK), or where they end (others).

    Readers take the matrix alone; where both are given they must agree, and one must be.
    """
    label = header.get("AnatomicalOrientation", "").upper()
    axes = [next((w for w in range(3) if letter in LETTERS[w]), -1) for letter in label]
    known = sorted(axes) == [0, 1, 2]
    matrix = next((key for key in MATRIX if key in header), None)
    if matrix is None and not known:
        raise InputError(
            f"{path}: has no TransformMatrix, so that left and right are unknown; if x grows to "
            f"the left, y to the back and z to the head, add TransformMatrix = {IDENTITY}"
        )
    if known:
        ends = [LETTERS[w].index(letter) * 2 - 1 for w, letter in zip(axes, label, strict=True)]
        along = grid.direction[axes, [2, 1, 0]] * ends
        if not ((along > 0).all() or (along < 0).all()):
            given = f"{matrix} = {header[matrix][:80]}" if matrix else "no TransformMatrix"
            raise InputError(
                f"{path}: AnatomicalOrientation = {label} contradicts {given}; correct the matrix, "
                "or remove AnatomicalOrientation"
            )


def _true(header: dict[str, str], *keys: str, default: str = "False") -> bool:
    return next((header[k] for k in keys if k in header), default)[:1] in ("T", "t", "1")


def _data_file(path: pathlib.Path, header: dict[str, str]) -> pathlib.Path:
    name = header["ElementDataFile"]
    return path if name == "LOCAL" else beside(path, "ElementDataFile", name)
