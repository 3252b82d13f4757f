"""What one DICOM file says of itself: where its slice lies, and how its pixels are stored.

Of the patient only a pseudonym leaves this file: no name, date or number.
"""

import dataclasses
import io
import logging
import mmap
import pathlib
import re
import struct

import pydicom

from lung_unet.data.dicom_elements import (
    LONG,
    PIXELS,
    SHORT,
    Element,
    Encoding,
    outermost,
    read_encoding,
)
from lung_unet.data.dicom_pixels import Pixels, unreadable
from lung_unet.data.patients import patient_key
from lung_unet.errors import InputError

MEDIA_CLASS, CLASS, INSTANCE, IMAGE_TYPE, MODALITY, PATIENT, STUDY, SERIES = (
    0x00020002, 0x00080016, 0x00080018, 0x00080008, 0x00080060, 0x00100020, 0x0020000D, 0x0020000E,
)  # fmt: skip
POSITION, ORIENTATION, SPACING = 0x00200032, 0x00200037, 0x00280030
SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS = (
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011,
)  # fmt: skip
ALLOCATED, STORED, HIGH, SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
PADDING, INTERCEPT, SLOPE, UNITS, TABLE = (
    0x00280120, 0x00281052, 0x00281053, 0x00281054, 0x00283000,
)  # fmt: skip
# What may tell apart scans that share a series UID, the surest first.
KINDS = {
    "acquisition": 0x00200012, "temporal position": 0x00200100, "cardiac phase": 0x00209241,
    "image type": IMAGE_TYPE, "kernel": 0x00181210, "energy": 0x00180060, "echo": 0x00180086,
    "trigger time": 0x00181060, "acquisition time": 0x00080032, "content time": 0x00080033,
}  # fmt: skip
KEPT = {
    CLASS, INSTANCE, MODALITY, PATIENT, STUDY, SERIES, POSITION, ORIENTATION, SPACING, SAMPLES,
    PHOTOMETRIC, FRAMES, ROWS, COLUMNS, ALLOCATED, STORED, HIGH, SIGNED, PADDING, INTERCEPT, SLOPE,
    UNITS, TABLE, *KINDS.values(),
}  # fmt: skip
DIRECTORY, CT_IMAGE = "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.2"
SCREENS = "1.2.840.10008.5.1.4.1.1.7."  # the storage classes of secondary captures begin so
LARGEST_NUMBER = 1e5  # a position in mm
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote a patient's values
UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")


@dataclasses.dataclass(frozen=True)
class Rescale:
    """What makes a slice's stored values HU; None where the file has none, NaN where it has no
    number. `table`: a modality lookup table takes its place."""

    slope: float | None
    intercept: float | None
    units: str  # empty where the file does not say
    table: bool


@dataclasses.dataclass(frozen=True)
class Header:
    """What is needed of a slice. Vectors are x, y, z, as DICOM gives them; None where not sound.

    `patient` is a pseudonym, of the study where the patient has no ID. `single`: one frame of one
    value per pixel. `aside`: not a slice of a volume, but a
    localizer (PS3.3, C.8.2.1.1.1) or the capture of a screen that lies nowhere, as of a table of
    doses. `kinds` has a value for each of KINDS, None where the file has none.
    """

    path: pathlib.Path
    series_uid: str
    instance_uid: str
    modality: str
    patient: str
    shape: tuple[int, int]  # rows, columns
    spacing_mm: tuple[float, ...] | None  # between rows, between columns
    position: tuple[float, ...] | None  # mm, of the first pixel
    orientation: tuple[float, ...] | None  # the direction along a row, then along a column
    frames: int
    single: bool
    aside: bool
    kinds: tuple[bytes | None, ...]
    pixels: Pixels | None
    rescale: Rescale

    @property
    def plain(self) -> bool:
        """Whether its pixels can be read: one whole frame of grey values."""
        count = self.shape[0] * self.shape[1]
        return self.single and self.pixels is not None and not unreadable(self.pixels, count)


class DamagedFile(InputError):
    """A DICOM file that cannot be read; `series_uid` is empty where it does not say so much."""

    def __init__(self, path: pathlib.Path, reason: str, series_uid: str = ""):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.series_uid = path, reason, series_uid

    def __reduce__(self) -> tuple:  # so that it leaves a worker
        return DamagedFile, (self.path, self.reason, self.series_uid)


def read_header(path: pathlib.Path) -> Header | None:
    """The header of a file; None for a DICOMDIR, which is a list of files.

    Raises:
      DamagedFile: not a DICOM file, damaged or cut short, or with a SeriesInstanceUID that is none.
    """
    values: dict[int, bytes] = {}
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            encoding = read_encoding(data)
            element, overlays = _collect(encoding, values)
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror}); copy it again") from error
    except (ValueError, struct.error) as error:
        reason = "it is cut short" if isinstance(error, struct.error) else error
        raise DamagedFile(
            path,
            f"is no sound DICOM file ({reason}); copy it again, or export it again",
            uid if UID.fullmatch(uid := _text(values, SERIES)) else "",
        ) from error
    kind = _text(values, CLASS) or _text(encoding.meta, MEDIA_CLASS)
    if DIRECTORY in (kind, _text(encoding.meta, MEDIA_CLASS)):
        return None
    uid = _text(values, SERIES)
    if not UID.fullmatch(uid):
        raise DamagedFile(path, "its SeriesInstanceUID is no UID; export it again")
    modality = _text(values, MODALITY).upper() or ("CT" if kind == CT_IMAGE else "")
    rows, columns = (_integer(values, tag, encoding.order) or 0 for tag in (ROWS, COLUMNS))
    (frames,) = _numbers(values, FRAMES, 1) or (1.0,)
    return Header(
        path=path,
        series_uid=uid,
        instance_uid=_text(values, INSTANCE),
        modality=modality if re.fullmatch("[A-Z]{2,16}", modality) else "unknown",
        patient=patient_key(_text(values, PATIENT) or _text(values, STUDY) or uid),
        shape=(rows, columns),
        spacing_mm=_numbers(values, SPACING, 2),
        position=_numbers(values, POSITION, 3),
        orientation=_numbers(values, ORIENTATION, 6),
        frames=int(frames),
        single=frames == 1 == _integer(values, SAMPLES, encoding.order),
        aside="LOCALIZER" in _text(values, IMAGE_TYPE).split("\\")
        or (f"{kind}.".startswith(SCREENS) and POSITION not in values),
        kinds=tuple(values.get(tag, b"").strip(b" \0") or None for tag in KINDS.values()),
        pixels=_pixels(values, element, overlays, encoding) if element else None,
        rescale=Rescale(
            slope=_scale(values, SLOPE),
            intercept=_scale(values, INTERCEPT),
            units=_text(values, UNITS).upper(),
            table=TABLE in values,
        ),
    )


def read_attributes(path: pathlib.Path, keywords: tuple[str, ...]) -> pydicom.Dataset:
    """The attributes of these names that a file has; it is walked as by `read_header`.

    Raises:
      ValueError, struct.error: the file is damaged. OSError: it cannot be read.
    """
    tags = {pydicom.datadict.tag_for_keyword(keyword) for keyword in keywords}
    found = io.BytesIO()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        encoding = read_encoding(data)
        for tag, vr, start, value, end, _ in outermost(encoding):
            if tag not in tags:
                continue
            if vr and vr not in SHORT | LONG:  # pydicom would take its length for another
                head = struct.pack(encoding.order + "HH", tag >> 16, tag & 0xFFFF)
                found.write(head + b"UN\0\0" + struct.pack(encoding.order + "I", end - value))
                start = value
            found.write(encoding.data[start:end])
    found.seek(0)
    return pydicom.filereader.read_dataset(found, encoding.implicit, encoding.order == "<")


def _collect(encoding: Encoding, values: dict[int, bytes]) -> tuple[Element | None, bool]:
    """Puts the elements that are KEPT into `values`; returns that of the pixels, if there is one,
    and whether overlays lie in the bits beside them."""
    overlays = False
    for element in outermost(encoding):
        if element.tag in KEPT:
            values.setdefault(element.tag, encoding.data[element.value : element.end])
        elif element.tag == PIXELS:
            return element, overlays
        elif element.tag & 0xFF01FFFF == 0x60000102:  # OverlayBitPosition, of any overlay
            overlays |= bool(encoding.data[element.value : element.end].strip(b"\0"))
    return None, overlays


def _pixels(
    values: dict[int, bytes], element: Element, overlays: bool, encoding: Encoding
) -> Pixels:
    allocated, stored, high, signed, padding = (
        _integer(values, tag, encoding.order) for tag in (ALLOCATED, STORED, HIGH, SIGNED, PADDING)
    )
    stored = allocated if stored is None else stored
    return Pixels(
        syntax=encoding.syntax,
        encapsulated=element.encapsulated,
        order=encoding.order,
        start=element.value,
        end=element.end,
        allocated=allocated or 0,
        stored=stored or 0,
        high=(stored or 0) - 1 if high is None else high,
        signed=None if signed not in (0, 1) else signed == 1,
        photometric=_text(values, PHOTOMETRIC),
        padding=padding,
        overlays=overlays,
    )


def _text(values: dict[int, bytes], tag: int) -> str:
    return values.get(tag, b"").decode("latin-1").strip(" \0")


def _integer(values: dict[int, bytes], tag: int, order: str) -> int | None:
    value = values.get(tag, b"")[:2]
    return int.from_bytes(value, "little" if order == "<" else "big") if value else None


def _numbers(values: dict[int, bytes], tag: int, count: int) -> tuple[float, ...] | None:
    text = _text(values, tag)
    try:
        numbers = tuple(map(float, text.split("\\")))
    except ValueError:
        return None
    sound = len(numbers) == count and all(abs(n) < LARGEST_NUMBER for n in numbers)
    return numbers if sound and "_" not in text else None


def _scale(values: dict[int, bytes], tag: int) -> float | None:
    if not _text(values, tag):
        return None
    return (_numbers(values, tag, 1) or (float("nan"),))[0]
