"""The bytes of an image's voxels: exactly as many as its header promises, or an error."""

import pathlib
import zlib

import numpy as np

from lung_unet.errors import InputError

MAX_RATIO = 1032  # deflate compresses no better
CHUNK = 65536
GZIP = b"\x1f\x8b"


def read_bytes(
    path: pathlib.Path,
    data: pathlib.Path,
    offset: int,
    needed: int,
    compressed: bool,
    spare: int | None = None,
) -> np.ndarray:
    """uint8 (needed,): what lies in `data` from `offset` on, uncompressed if it is zlib or gzip.

    At most `spare` bytes may follow, if given. Errors name the image, `path`.

    Raises:
      InputError: the file cannot be read, is cut short, damaged or too long.
    """
    holder = str(path) if data == path else f"{path}: its data file {data.name}"
    try:
        stored = data.stat().st_size - offset
        if stored * (MAX_RATIO if compressed else 1) < needed:  # before memory is asked for
            raise InputError(
                f"{holder} has {max(stored, 0)} bytes, too few for {needed} bytes of voxels; "
                "it is truncated, copy it again"
            )
        if not compressed:
            _check_rest(holder, stored - needed, spare)
            return np.fromfile(data, np.uint8, needed, offset=offset)
        return _uncompressed(holder, data, offset, needed, spare)
    except OSError as error:
        raise InputError(f"{data}: cannot be read ({error.strerror}); copy it again") from error


def beside(path: pathlib.Path, key: str, name: str) -> pathlib.Path:
    """The data file that the header `path` names. Links of the file system are followed.

    Raises:
      InputError: it is missing, or `name`, the header's value of `key`, leads out of the folder.
    """
    if pathlib.PurePath(name).name != name or name == "..":
        raise InputError(
            f"{path}: {key} = {name[:200]!r} is not a file of its folder; "
            "put the data file beside the header"
        )
    try:
        for folder in (path.parent, path.resolve().parent):  # the header may be a link itself
            if (folder / name).is_file():
                return folder / name
        linked = (path.parent / name).is_symlink()
    except (OSError, ValueError):  # too long a name, or one with a null byte
        linked = False
    kind = "is a broken link" if linked else "is missing"
    raise InputError(f"{path}: its data file {name[:200]} {kind}; copy it beside the header")


def _uncompressed(
    holder: str, data: pathlib.Path, offset: int, needed: int, spare: int | None
) -> np.ndarray:
    voxels = np.empty(needed, np.uint8)
    stream = zlib.decompressobj(wbits=47)  # zlib or gzip, with its checksum
    used, limit = 0, needed + (spare or 0)
    with open(data, "rb") as file:
        file.seek(offset)
        try:
            while used <= limit and (chunk := stream.unused_data or file.read(CHUNK)):
                if stream.eof:
                    if not chunk.startswith(GZIP):
                        break
                    stream = zlib.decompressobj(wbits=47)  # the next member of a gzip file
                part = np.frombuffer(stream.decompress(chunk), np.uint8)
                place = voxels[used : used + len(part)]
                place[:] = part[: len(place)]
                used += len(part)
        except zlib.error as error:
            raise InputError(f"{holder} is damaged ({error}); copy it again") from error
    if used < needed or (not stream.eof and used <= limit):
        found = f"{used} bytes, {needed} expected" if used < needed else "no checksum at its end"
        raise InputError(f"{holder} holds {found}; it is truncated, copy it again")
    _check_rest(holder, used - needed, spare)
    return voxels


def _check_rest(holder: str, rest: int, spare: int | None) -> None:
    if spare is not None and rest > spare:
        raise InputError(
            f"{holder} holds at least {rest} bytes more than the voxels that the header tells of; "
            "correct the header, or copy it again"
        )
