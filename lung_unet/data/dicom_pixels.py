"""The pixels of a DICOM slice: how they are stored, and their values.

Uncompressed pixels are read here. Compressed ones are decoded by SimpleITK's GDCM, from a file made
of nothing else: so GDCM walks no hostile header, and neither inverts MONOCHROME1 nor rescales. The
photometric interpretation is about display and comes after the rescale to HU (PS3.4, N.2).
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable

import numpy as np
import pydicom
import SimpleITK as sitk

from lung_unet.data.dicom_elements import DEFLATED, NATIVE, read_encoding
from lung_unet.errors import InputError

COMPRESSED = {  # the transfer syntaxes that GDCM decodes: JPEG, JPEG-LS, JPEG 2000, run lengths
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.5",
}  # fmt: skip
GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Bytes `start` to `end` of a file (inflated, where it is deflated) as pixels; 0 is missing.

    DICOM PS3.3, C.7.6.3, and PS3.5, 8.1: of the `allocated` bits of a pixel, the `stored` ones up
    to bit `high` are its value. Other bits may hold overlays.
    """

    syntax: str
    encapsulated: bool
    order: str  # of bytes, "<" or ">"
    start: int
    end: int
    allocated: int
    stored: int
    high: int
    signed: bool | None  # None where the file does not say
    photometric: str
    padding: int | None  # the bits of a pixel beyond the field of view
    overlays: bool

    @property
    def aligned(self) -> bool:
        """Whether the stored bits are the lowest ones, as PS3.5 has demanded since 2008."""
        return self.high == self.stored - 1

    @property
    def layout(self) -> tuple[int, int, int, bool]:
        """What slices must share for the same bits to be their values."""
        return self.allocated, self.stored, self.high, bool(self.signed)


def unreadable(pixels: Pixels, count: int) -> tuple[str, str] | None:
    """Why `count` pixels cannot be read, and the remedy; None if they can."""
    again = "export the series again"
    if pixels.encapsulated and pixels.syntax not in COMPRESSED:
        name = pixels.syntax or "that it does not name"
        return (
            f"its pixels are in a transfer syntax ({name}) which is not read",
            "convert it, as with gdcmconv --raw",
        )
    if not pixels.encapsulated and pixels.syntax and pixels.syntax not in NATIVE:
        return "its pixels are not of its transfer syntax", again
    if pixels.photometric not in GREY:
        return f"its pixels are {pixels.photometric or 'of no kind'}, not grey values", again
    if pixels.signed is None:
        return "a slice does not say whether its pixels are signed (PixelRepresentation)", again
    if pixels.allocated not in (8, 16, 32) or not 0 < pixels.stored <= pixels.high + 1 <= (
        pixels.allocated
    ):
        return (
            f"{pixels.stored} bits up to bit {pixels.high}, of {pixels.allocated}, are no layout "
            "of a pixel (BitsStored, HighBit, BitsAllocated)",
            again,
        )
    if not pixels.encapsulated and (pixels.end - pixels.start) * 8 < count * pixels.allocated:
        return (
            "a slice is not one whole frame: it has fewer pixels than rows × columns",
            "copy the series again, or export it again",
        )
    return None


def read_bits(path: pathlib.Path, pixels: Pixels, shape: tuple[int, int]) -> np.ndarray:
    """The pixels (rows, columns) of a file as they lie there: unsigned, of the allocated bits.

    Raises:
      InputError: they cannot be read or decoded.
    """
    dtype = np.dtype(f"{pixels.order}u{pixels.allocated // 8}")
    try:
        with open(path, "rb") as file:
            if pixels.syntax == DEFLATED:
                data = read_encoding(file.read()).data[pixels.start : pixels.end]
            else:
                file.seek(pixels.start)
                data = file.read(pixels.end - pixels.start)
        if not pixels.encapsulated:
            if pixels.order == ">" and pixels.allocated == 8 and len(data) % 2 == 0:
                data = np.frombuffer(data, "<u2").byteswap().tobytes()  # of words: PS3.5, A.3
            return np.frombuffer(data, dtype, shape[0] * shape[1]).reshape(shape)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    except ValueError as error:
        raise InputError(f"{path}: has changed meanwhile; run again") from error
    try:
        array = _decode(data, pixels, shape)
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: its pixels cannot be decoded; copy it again") from error
    if array.shape != shape or array.dtype.kind not in "iu":
        raise InputError(
            f"{path}: its pixels decode to another image than it says; export it again"
        )
    return array.astype(dtype)  # of a negative number, the same bits


def values_of(bits: np.ndarray, pixels: Pixels, lowest: int) -> np.ndarray:
    """int32 or int64: the stored values of what `read_bits` gives, `lowest` being their first bit.

    A pixel that is padding and needs other bits than the stored ones gets the lowest value.
    """
    values: np.ndarray = bits.astype(np.int64 if pixels.allocated == 32 else np.int32)
    values = values >> lowest & (1 << pixels.stored) - 1
    if pixels.signed:
        sign = 1 << (pixels.stored - 1)
        values = (values ^ sign) - sign
    if pixels.padding is not None and pixels.padding >> lowest >= 1 << pixels.stored:
        floor = -(1 << (pixels.stored - 1)) if pixels.signed else 0
        negative = pixels.signed and _is_extended(np.array(pixels.padding), pixels, lowest)
        if not negative:
            values[bits == pixels.padding] = floor
    return values


def beyond(bits: np.ndarray, pixels: Pixels, lowest: int) -> bool:
    """Whether bits above the stored ones are set that neither extend a sign nor mean padding."""
    if pixels.stored + lowest == pixels.allocated:
        return False
    other = bits >> (pixels.stored + lowest) > 0
    if pixels.signed:
        other &= ~_is_extended(bits, pixels, lowest)
    if pixels.padding is not None:
        other &= bits != pixels.padding
    return bool(other.any())


def lowest_bit(slices: Iterable[np.ndarray], pixels: Pixels) -> int | None:
    """Where the stored bits begin of slices whose HighBit says that it is not at the lowest bit.

    HighBit is wrong in many files: it is 0 where all values fit into the lowest bits, and what
    HighBit says where all bits below are empty; None where neither is so, or both.
    """
    says = pixels.high + 1 - pixels.stored
    fits = empty = True
    for bits in slices:
        fits &= not beyond(bits, pixels, 0)
        empty &= not (bits & ((1 << says) - 1)).any()
    return None if fits == empty else 0 if fits else says


def _is_extended(bits: np.ndarray, pixels: Pixels, lowest: int) -> np.ndarray:
    """bool: where the bits from the sign of a stored value on are all set."""
    sign = lowest + pixels.stored - 1
    return bits >> sign == (1 << (pixels.allocated - sign)) - 1


def _decode(data: bytes, pixels: Pixels, shape: tuple[int, int]) -> np.ndarray:
    """Decodes encapsulated pixels.

    Raises:
      RuntimeError, MemoryError: they are damaged.
    """
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("2.25.1")
    meta.TransferSyntaxUID = pydicom.uid.UID(pixels.syntax)
    image = pydicom.Dataset()
    image.file_meta = meta
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.Modality, image.SamplesPerPixel, image.PhotometricInterpretation = "CT", 1, "MONOCHROME2"
    image.Rows, image.Columns = shape
    image.BitsAllocated, image.BitsStored = pixels.allocated, pixels.stored
    image.HighBit, image.PixelRepresentation = pixels.high, int(bool(pixels.signed))
    image.RescaleIntercept, image.RescaleSlope = 0, 1
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "slice.dcm"
        head = pathlib.Path(folder) / "head.dcm"
        image.save_as(head, enforce_file_format=True)
        element = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff"
        path.write_bytes(head.read_bytes() + element + data)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        array = sitk.GetArrayFromImage(reader.Execute())
    return array[0] if array.ndim == 3 and len(array) == 1 else array
