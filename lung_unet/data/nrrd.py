"""NRRD (.nrrd, .nhdr), read strictly: voxels as they were written, and their place, or an error."""

import math
import os
import pathlib
import re

import numpy as np

from lung_unet.data.geometry import check_grid, straight_grid
from lung_unet.data.scan import Grid
from lung_unet.data.voxel_file import beside, read_bytes
from lung_unet.errors import InputError

TYPES = {
    name: kind
    for kind, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, "
        "int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
COMPRESSED = {"raw": False, "gzip": True, "gz": True}
SPACES = {  # LPS of each, x, y, z
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
MAX_HEADER = 1 << 20  # bytes
VECTOR = re.compile(r"none|\([^()]*\)")


def read(path: pathlib.Path) -> tuple[np.ndarray, Grid]:
    """Voxels (z, y, x) and grid of a NRRD file.

    Raises:
      InputError: damaged, not 3D, of an encoding that is not read, or of unknown or contradictory
        geometry.
    """
    header, end = _header(path)
    axes, size = _axes(path, header)
    grid = _grid(path, header, axes, size)
    kind = _field(path, header, "type").lower()
    if kind not in TYPES:
        raise InputError(f"{path}: type: {kind[:80]} is not read; save it again as short")
    encoding = _field(path, header, "encoding").lower()
    if encoding not in COMPRESSED:
        raise InputError(
            f"{path}: encoding: {encoding[:80]} is not read; save it again as raw or gzip"
        )
    stored = np.dtype(TYPES[kind])
    if stored.itemsize > 1:
        endian = _field(path, header, "endian").lower()
        if endian not in ("little", "big"):
            raise InputError(f"{path}: endian: {endian[:80]} is neither little nor big; correct it")
        stored = stored.newbyteorder("<" if endian == "little" else ">")
    needed = math.prod(size) * stored.itemsize
    data, offset = _place(path, header, end, needed)
    row = size[2] * stored.itemsize
    content = read_bytes(path, data, offset, needed, COMPRESSED[encoding], spare=row - 1)
    array = content.view(stored).reshape(size)
    return array.astype(stored.newbyteorder("="), copy=False), grid


def data_file(path: pathlib.Path) -> pathlib.Path:
    """The file that holds the voxels: itself, or one beside it.

    Raises:
      InputError: it is missing, or it is no NRRD header.
    """
    header, end = _header(path)
    return _place(path, header, end, 0)[0]


def _header(path: pathlib.Path) -> tuple[dict[str, str], int]:
    """Fields by name, and where the header ends."""
    try:
        with open(path, "rb") as file:
            start = file.read(MAX_HEADER)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    lines = start.splitlines(keepends=True)
    if not lines or not re.fullmatch(rb"NRRD000[1-6]\s*", lines[0]):
        raise InputError(f"{path}: is not a NRRD file, or damaged; copy it again")
    fields: dict[str, str] = {}
    end = 0
    for number, line in enumerate(lines):
        end += len(line)
        text = os.fsdecode(line).strip()
        if not text:
            return fields, end
        if number == 0 or text.startswith("#") or re.match(r"[^:]*:=", text):
            continue
        name, found, value = (part.strip() for part in text.partition(":"))
        name = {"datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip",
                "spaceunits": "space units"}.get(name.lower(), name.lower())  # fmt: skip
        if not found or not name:
            raise InputError(f"{path}: line {number + 1} is no field of a NRRD; copy it again")
        if fields.setdefault(name, value) != value:
            raise InputError(f"{path}: has {name} twice; remove the wrong one")
        if name == "data file" and value.upper().startswith("LIST"):
            return fields, end  # files follow
    if "data file" not in fields:
        raise InputError(f"{path}: its header has no end; it is truncated, copy it again")
    return fields, end


def _field(path: pathlib.Path, header: dict[str, str], name: str) -> str:
    if name not in header:
        raise InputError(f"{path}: has no field {name}; copy it again, or save it anew")
    return header[name]


def _axes(path: pathlib.Path, header: dict[str, str]) -> tuple[list[int], tuple[int, int, int]]:
    """Which of the axes are x, y and z, and the numbers of voxels (z, y, x)."""
    words = _field(path, header, "sizes").split()
    count = _field(path, header, "dimension")
    try:
        sizes = [int(word) for word in words]
    except ValueError:
        sizes = []
    if not sizes or str(len(sizes)) != count:
        raise InputError(
            f"{path}: sizes: {' '.join(words)[:80]} are not {count[:80]} whole numbers, which "
            "dimension tells; correct one of them"
        )
    vectors = _vectors(header.get("space directions", ""))
    spatial = [
        axis
        for axis, size in enumerate(sizes)
        if not (size == 1 and len(vectors) == len(sizes) and vectors[axis] is None)
    ]
    if len(spatial) != 3:
        raise InputError(f"{path}: has {'×'.join(words)[:80]} values; give a 3D image of one value")
    x, y, z = (sizes[axis] for axis in spatial)
    return spatial, (z, y, x)


def _grid(
    path: pathlib.Path, header: dict[str, str], axes: list[int], size: tuple[int, int, int]
) -> Grid:
    check_grid(path, Grid(size, np.ones(3), np.zeros(3)))
    space = header.get("space", "")
    if space.lower() not in SPACES:
        found = f"space: {space[:80]} is not read" if space else "has no field space"
        raise InputError(
            f"{path}: {found}, so that left and right are unknown; if x grows to the left, y to "
            "the back and z to the head, give it space: left-posterior-superior and space "
            "directions"
        )
    units = set(re.findall(r'"([^"]*)"', header.get("space units", ""))) - {"", "mm", "???"}
    if units:
        raise InputError(f"{path}: space units: {header['space units'][:80]}, mm expected")
    vectors = _vectors(_field(path, header, "space directions"))
    columns = [vectors[axis] for axis in axes if axis < len(vectors)]
    origin = _vectors(header.get("space origin", "(0,0,0)"))
    if any(v is None or len(v) != 3 for v in (*columns, *origin)) or len(columns) != 3:
        raise InputError(
            f"{path}: space directions: {header['space directions'][:80]} are not a vector of "
            "three numbers for each axis; correct them"
        )
    if len(origin) != 1:
        raise InputError(f"{path}: space origin: {header['space origin'][:80]}; correct it")
    affine = np.array([*columns, *origin], float).T * np.array(SPACES[space.lower()])[:, None]
    grid = straight_grid(path, "space directions", size, affine[::-1][:, [2, 1, 0, 3]])
    if "spacings" in header:
        try:
            given = [float(word) for word in header["spacings"].split()]
            spacing = np.array([given[axis] for axis in reversed(axes)])
        except (ValueError, IndexError):
            spacing = np.zeros(3)
        if not (np.isnan(spacing) | np.isclose(spacing, grid.spacing_mm, rtol=1e-3)).all():
            raise InputError(
                f"{path}: spacings: {header['spacings'][:80]} contradict space directions: "
                f"{header['space directions'][:80]}; remove the wrong one"
            )
    return grid


def _vectors(text: str) -> list[list[float] | None]:
    """The vectors of a field; none where it is not made of vectors alone."""
    found = VECTOR.findall(text)
    if VECTOR.sub("", text).strip():
        return []
    try:
        return [
            None if v == "none" else [float(number) for number in v[1:-1].split(",")] for v in found
        ]
    except ValueError:
        return []


def _place(
    path: pathlib.Path, header: dict[str, str], end: int, needed: int
) -> tuple[pathlib.Path, int]:
    """The file that holds the voxels, and where in it they begin."""
    name = header.get("data file")
    if name is None and path.name.lower().endswith(".nhdr"):
        raise InputError(f"{path}: has no field data file; copy it again")
    if name is not None and (name.upper().startswith("LIST") or re.search(r"%\d*d", name)):
        raise InputError(f"{path}: its voxels are in many files; save it again as one .nrrd")
    data = path if name is None else beside(path, "data file", name)
    skip = header.get("byte skip", "0")
    if header.get("line skip", "0") != "0" or not re.fullmatch(r"-1|\d{1,9}", skip):
        raise InputError(f"{path}: skips lines or {skip[:80]} bytes; save it again without")
    compressed = COMPRESSED.get(header.get("encoding", "").lower(), True)
    if skip != "0" and compressed:
        raise InputError(f"{path}: byte skip: {skip}, of compressed voxels; save it again without")
    start = end if data == path else 0
    if skip == "-1":  # they end with the file
        return data, max(start, data.stat().st_size - needed)
    return data, start + int(skip)
