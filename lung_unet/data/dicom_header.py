"""What one DICOM file says of itself, read strictly: whole, or an error.

GDCM believes every length in a file, asks for that much memory, and takes a file that is cut short
for whole. So the elements are walked here first, and GDCM only decodes the pixels of what is sound.
DICOM PS3.5, sections 7.1 (elements), 7.5 (sequences), A.4 (encapsulated pixels); PS3.10, 7.1.

Of the patient only a pseudonym leaves this file: no name, date or number.
"""

import dataclasses
import mmap
import pathlib
import re
import struct

from lung_unet.data.patients import patient_key
from lung_unet.errors import InputError

CLASS, SYNTAX, IMAGE_TYPE, MODALITY, PATIENT, STUDY, SERIES = (
    0x00020002, 0x00020010, 0x00080008, 0x00080060, 0x00100020, 0x0020000D, 0x0020000E,
)  # fmt: skip
POSITION, ORIENTATION, SPACING = 0x00200032, 0x00200037, 0x00280030
SAMPLES, FRAMES, ROWS, COLUMNS, BITS = (
    0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100,
)  # fmt: skip
KEPT = {
    CLASS, SYNTAX, IMAGE_TYPE, MODALITY, PATIENT, STUDY, SERIES, POSITION, ORIENTATION, SPACING,
    SAMPLES, FRAMES, ROWS, COLUMNS, BITS,
}  # fmt: skip
PIXELS, ITEM_END, SEQUENCE_END = 0x7FE00010, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF  # a length: a delimiter says where the value ends
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
SHORT = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN",
    b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
NOT_READ = {
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "big-endian",
}
DIRECTORY = "1.2.840.10008.1.3.10"
SCREENS = "1.2.840.10008.5.1.4.1.1.7."  # the storage classes of secondary captures begin so
LARGEST_NUMBER = 1e5  # a position in mm


@dataclasses.dataclass(frozen=True)
class Header:
    """What is needed of a slice. Vectors are x, y, z, as DICOM gives them; None where not sound.

    `patient` is a pseudonym, of the study where the patient has no ID. `plain`: one frame of one
    value a pixel, with as many bytes as it needs. `aside`: no slice of a volume, but a localizer
    (PS3.3, C.8.2.1.1.1) or the capture of a screen that lies nowhere, as of a table of doses.
    """

    path: pathlib.Path
    series_uid: str
    modality: str
    patient: str
    shape: tuple[int, int]  # rows, columns
    spacing_mm: tuple[float, ...] | None  # between rows, between columns
    position: tuple[float, ...] | None  # mm, of the first pixel
    orientation: tuple[float, ...] | None  # the direction along a row, then along a column
    frames: int
    plain: bool
    aside: bool


class _NotRead(ValueError):
    """Sound, but in a syntax that is not read."""


def read_header(path: pathlib.Path) -> Header | None:
    """The header of a file; None for a DICOMDIR, which is a list of files.

    Raises:
      InputError: no DICOM file, damaged or cut short, or a UID that is none.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            values, pixels = _walk(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    except _NotRead as error:
        raise InputError(f"{path}: {error}; convert it, as with gdcmconv --raw") from error
    except (ValueError, struct.error) as error:
        reason = "it is cut short" if isinstance(error, struct.error) else error
        raise InputError(f"{path}: is no sound DICOM file ({reason}); copy it again") from error
    uid, modality, patient, study, kind, image_type = (
        values.get(tag, b"").decode("latin-1").strip(" \0")
        for tag in (SERIES, MODALITY, PATIENT, STUDY, CLASS, IMAGE_TYPE)
    )
    if kind == DIRECTORY:
        return None
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", uid) or len(uid) > 64:
        raise InputError(f"{path}: its SeriesInstanceUID is no UID; copy it again")
    rows, columns, samples, bits = (
        int.from_bytes(values.get(tag, b""), "little") for tag in (ROWS, COLUMNS, SAMPLES, BITS)
    )
    (frames,) = _numbers(values, FRAMES, 1) or (1.0,)
    return Header(
        path=path,
        series_uid=uid,
        modality=modality if re.fullmatch("[A-Z]{2,16}", modality) else "unknown",
        patient=patient_key(patient or study or uid),
        shape=(rows, columns),
        spacing_mm=_numbers(values, SPACING, 2),
        position=_numbers(values, POSITION, 3),
        orientation=_numbers(values, ORIENTATION, 6),
        frames=int(frames),
        plain=samples == frames == 1 and pixels >= rows * columns * bits // 8 > 0,
        aside="LOCALIZER" in image_type.split("\\")
        or (f"{kind}.".startswith(SCREENS) and POSITION not in values),
    )


def _walk(data: mmap.mmap) -> tuple[dict[int, bytes], float]:
    """Values of the elements that are KEPT, and the bytes of the pixels: inf where compressed."""
    if data[128:132] != b"DICM":
        raise ValueError("it does not begin as one")
    values: dict[int, bytes] = {}
    pixels = 0.0
    at, implicit = 132, False  # file meta information is explicit
    syntax = None  # until the file meta information ends
    nested: list[bool] = []  # what `implicit` was outside each open sequence or item
    while at < len(data):
        if syntax is None and struct.unpack_from("<H", data, at) != (2,):
            syntax = values.get(SYNTAX, b"").rstrip(b" \0").decode("latin-1")
            if not syntax:
                raise ValueError("its transfer syntax is missing")
            if syntax in NOT_READ:
                raise _NotRead(f"its transfer syntax is {NOT_READ[syntax]}, which is not read")
            implicit = syntax == IMPLICIT
        tag, vr, length, at = _element(data, at, implicit)
        outermost = not nested
        if tag in (ITEM_END, SEQUENCE_END):
            if outermost:
                raise ValueError("an item ends that has not begun")
            implicit = nested.pop()
        elif length == UNDEFINED:
            nested.append(implicit)
            implicit = implicit or vr == b"UN"  # PS3.5, 6.2.2: whatever the file's syntax is
        elif at + length > len(data):
            raise ValueError("it is cut short")
        else:
            if tag in KEPT and outermost:
                values.setdefault(tag, data[at : at + length])
            at += length
        if tag == PIXELS and outermost:
            if (length != UNDEFINED) != (syntax in (IMPLICIT, EXPLICIT)):
                raise ValueError("its pixels are not of its transfer syntax")
            pixels = length if length != UNDEFINED else float("inf")
        if pixels and not nested:
            break  # what follows the pixels is padding, or nothing that is needed
    if nested:
        raise ValueError("it is cut short")
    return values, pixels


def _element(data: mmap.mmap, at: int, implicit: bool) -> tuple[int, bytes, int, int]:
    """Tag, value representation, length, and where the value begins."""
    group, number = struct.unpack_from("<HH", data, at)
    vr = data[at + 4 : at + 6]
    if implicit or group == 0xFFFE:
        vr, (length,), at = b"", struct.unpack_from("<I", data, at + 4), at + 8
    elif vr in LONG:
        (length,), at = struct.unpack_from("<I", data, at + 8), at + 12
    elif vr in SHORT:
        (length,), at = struct.unpack_from("<H", data, at + 6), at + 8
    else:
        raise ValueError(f"an unknown value representation at byte {at + 4}")
    return group << 16 | number, vr, length, at


def _numbers(values: dict[int, bytes], tag: int, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(map(float, values[tag].decode("latin-1").strip(" \0").split("\\")))
    except (KeyError, ValueError):
        return None
    sound = len(numbers) == count and all(abs(n) < LARGEST_NUMBER for n in numbers)
    return numbers if sound else None
