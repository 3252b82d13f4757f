"""MetaImage (.mhd, .mha), read strictly: voxels as they were written, or an error.

ITK follows `ElementDataFile` out of the folder, and takes a compressed stream that is cut short or
damaged for whole: the rest of the scan is then what the memory happened to hold.
"""

import math
import os
import pathlib
import zlib

import numpy as np

from lung_unet.data.geometry import check_grid
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
MAX_HEADER = 65536  # bytes
MAX_RATIO = 1032  # deflate compresses no better
CHUNK = 65536


def read(path: pathlib.Path) -> tuple[np.ndarray, Grid]:
    """Voxels (z, y, x) and grid of a MetaImage file.

    Raises:
      InputError: the header is broken or hostile, or not all voxels are there.
    """
    header, end = _header(path)
    plain = {"NDims": "3", "ElementNumberOfChannels": "1", "HeaderSize": "0"}
    for key, value in ({"NDims": "missing"} | header).items():
        if value != plain.get(key, value):
            raise InputError(
                f"{path}: {key} = {value[:80]}, {plain[key]} expected; "
                "save it again as a plain 3D image"
            )
    grid = _grid(path, header)
    check_grid(path, grid)
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
    try:
        voxels = _bytes(path, data, end if data == path else 0, needed, compressed)
    except OSError as error:
        raise InputError(f"{data}: cannot be read ({error.strerror}); copy it again") from error
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
        key, found, value = line.decode("latin-1").partition("=")
        if not found:
            continue
        header[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":  # the last key: what follows may be voxels
            return header, end
    raise InputError(f"{path}: has no ElementDataFile; it is not a MetaImage header, copy it again")


def _grid(path: pathlib.Path, header: dict[str, str]) -> Grid:
    size = _numbers(path, header, 3, "DimSize")
    if any(n != int(n) for n in size):
        raise InputError(f"{path}: DimSize = {header['DimSize'][:80]} is not whole numbers; fix it")
    spacing = _numbers(path, header, 3, "ElementSpacing", "ElementSize")
    origin = _numbers(path, header, 3, "Offset", "Origin", "Position", default=[0.0] * 3)
    rows = _numbers(
        path, header, 9, "TransformMatrix", "Rotation", "Orientation",
        default=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    )  # fmt: skip
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
    for key in keys:
        if key in header:
            try:
                values = [float(v) for v in header[key].split()]
            except ValueError:
                values = []
            if len(values) != count or not np.isfinite(values).all():
                raise InputError(
                    f"{path}: {key} = {header[key][:80]} is not {count} finite numbers; fix it"
                )
            return values
    if default is None:
        raise InputError(f"{path}: has no {keys[0]}; it is not a MetaImage header, copy it again")
    return default


def _true(header: dict[str, str], *keys: str, default: str = "False") -> bool:
    return next((header[k] for k in keys if k in header), default)[:1] in ("T", "t", "1")


def _data_file(path: pathlib.Path, header: dict[str, str]) -> pathlib.Path:
    name = header["ElementDataFile"]
    if name == "LOCAL":
        return path
    data = path.parent / name
    if pathlib.PurePath(name).name != name or name == ".." or os.path.islink(data):
        raise InputError(
            f"{path}: ElementDataFile = {name[:200]!r} is not a file of its folder; "
            "put the data file beside the header"
        )
    if not os.path.isfile(data):
        raise InputError(
            f"{path}: its data file {name[:200]} is missing; copy it beside the header"
        )
    return data


def _bytes(
    path: pathlib.Path, data: pathlib.Path, offset: int, needed: int, compressed: bool
) -> np.ndarray:
    stored = data.stat().st_size - offset
    if stored * (MAX_RATIO if compressed else 1) < needed:  # before memory is asked for
        raise InputError(
            f"{path}: its data file {data.name} has {stored} bytes, too few for {needed} bytes of "
            "voxels; it is truncated, copy it again"
        )
    if not compressed:
        return np.fromfile(data, np.uint8, needed, offset=offset)
    voxels = np.empty(needed, np.uint8)
    stream = zlib.decompressobj(wbits=47)  # zlib or gzip, with its checksum
    used = 0
    with open(data, "rb") as file:
        file.seek(offset)
        try:
            while not stream.eof and used <= needed and (chunk := file.read(CHUNK)):
                part = np.frombuffer(stream.decompress(chunk), np.uint8)
                voxels[used : used + len(part)] = part[: needed - used]
                used += len(part)
        except zlib.error as error:
            raise InputError(
                f"{path}: its data file {data.name} is damaged ({error}); copy it again"
            ) from error
    if used != needed or not stream.eof:
        found = f"{used} bytes of voxels, {needed} expected" if used != needed else "no checksum"
        raise InputError(f"{path}: its data file {data.name} holds {found}; copy it again")
    return voxels
