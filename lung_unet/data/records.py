"""What a record holds and how it is written: a JSON header, then raw arrays, read in place.

    "LUR3" | uint32 header length | header | padding to 64 | array | padding | array …

An int16 array is all its low bytes, then all its high ones. A CT's high bytes hardly vary, so this
is a sixth smaller than zstd alone makes it, and three times as fast to compress.

Two kinds of record: a *block* of a scan, of which training crops patches, and a whole *scan* for
evaluation. Label volumes are nearly all zero, so a block keeps only the box that is not.
"""

import dataclasses
import errno
import json
import math
import os
import pathlib
from collections.abc import Iterable

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from lung_unet.data.scan import Finding, Grid, ignore_mask
from lung_unet.data.volume import Volume, bounds
from lung_unet.files import atomic_path

MAGIC = b"LUR3"
ALIGN = 64


def encode(header: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """One record of a JSON-able header and named arrays."""
    specs = {name: [a.dtype.str, list(a.shape)] for name, a in arrays.items()}
    text = json.dumps({**header, "arrays": specs}, separators=(",", ":")).encode()
    parts = [MAGIC, len(text).to_bytes(4, "little"), text]
    used = len(text) + 8
    for array in arrays.values():
        padding = -used % ALIGN
        parts += [bytes(padding), *_stored(array)]
        used += padding + array.nbytes
    return b"".join(parts)


def decode(record: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays of a record; arrays other than int16 are read-only views of it.

    Raises:
      ValueError: not such a record, or cut short.
    """
    if record[:4] != MAGIC:
        raise ValueError("not a lung_unet record")
    used = 8 + int.from_bytes(record[4:8], "little")
    arrays = {}
    try:
        header = json.loads(record[8:used])
        for name, (dtype, shape) in header.pop("arrays").items():
            used += -used % ALIGN
            count = math.prod(shape)
            if np.dtype(dtype) == np.int16:
                low, high = np.frombuffer(record, np.uint8, 2 * count, used).reshape(2, count)
                arrays[name] = (high.astype(np.int16) << 8 | low).reshape(shape)
            else:
                arrays[name] = np.frombuffer(record, dtype, count, used).reshape(shape)
            used += arrays[name].nbytes
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"the record's header is broken ({error})") from error
    return header, arrays


def write_records(path: pathlib.Path, records: Iterable[bytes]) -> int:
    """Writes a shard, whole or not at all; returns how many records it has.

    Raises:
      OSError: it cannot be written; ArrayRecord itself has RuntimeError for that.
    """
    with atomic_path(path) as temporary:
        try:
            writer, count = ArrayRecordWriter(str(temporary), "group_size:1,zstd:1"), 0
            for record in records:
                writer.write(record)
                count += 1
            writer.close()
        except RuntimeError as error:
            known = (code for code in errno.errorcode if os.strerror(code) in str(error))
            code = next(known, errno.EIO)
            raise OSError(code, os.strerror(code), str(path)) from error
        with open(temporary, "rb") as file:
            os.fsync(file)  # a size that a power cut leaves without its contents would pass
    return count


def _stored(array: np.ndarray) -> list[bytes]:
    if array.dtype != np.int16:
        return [array.tobytes()]
    return [array.astype(np.uint8).tobytes(), (array >> 8).astype(np.uint8).tobytes()]


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A piece of a scan. `hu` int16 (z, y, x); `labels` uint8: votes, 255 ignored, of a box in it.

    `centre` (z, y, x) is the voxel that a crop must contain: a nodule's centre, or None.
    """

    hu: np.ndarray
    labels: np.ndarray
    labels_low: tuple[int, ...]
    centre: tuple[int, ...] | None

    def encode(self) -> bytes:
        header = {"labels_low": self.labels_low, "centre": self.centre}
        return encode(header, {"hu": self.hu, "labels": self.labels})

    @classmethod
    def decode(cls, record: bytes) -> "Block":
        header, arrays = decode(record)
        return cls(arrays["hu"], arrays["labels"], header["labels_low"], header["centre"])

    def crop(self, low: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(hu, labels) of the patch that starts at `low`; hu is a view."""
        hu = self.hu[tuple(slice(l, l + n) for l, n in zip(low, size, strict=True))]
        labels = np.zeros(size, np.uint8)
        offset = np.asarray(self.labels_low) - low
        first = np.maximum(0, offset)
        last = np.minimum(size, offset + self.labels.shape)
        if (last > first).all():
            labels[tuple(map(slice, first, last))] = self.labels[
                tuple(map(slice, first - offset, last - offset))
            ]
        return hu, labels


def block_of(hu: np.ndarray, labels: np.ndarray, centre: np.ndarray | None) -> Block:
    """A block that keeps only the box of `labels` that is not zero."""
    low, high = bounds(labels)
    box = labels[tuple(map(slice, low, high))]
    where = None if centre is None else tuple(map(int, centre))
    return Block(hu, box, tuple(map(int, low)), where)


@dataclasses.dataclass(frozen=True, eq=False)
class ScanRecord:
    """A whole scan for evaluation: the volume, and its findings on the scan's own grid.

    `warnings` are those of `Scan`.
    """

    series_uid: str
    volume: Volume
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...] = ()

    def ignored(self) -> np.ndarray:
        """bool (z, y, x) on the scan's own grid: what no metric counts."""
        return ignore_mask(self.volume.source.shape, self.findings)

    def encode(self) -> bytes:
        arrays = {"hu": self.volume.hu, "lungs": np.packbits(self.volume.lungs)}
        findings = []
        for i, f in enumerate(self.findings):
            arrays[f"readers{i}"] = f.reader_bits
            entry = dataclasses.asdict(f) | {
                "centre_mm": [float(v) for v in f.centre_mm],
                "low": [int(v) for v in f.low],
            }
            findings.append({k: v for k, v in entry.items() if k != "reader_bits"})
        header = {
            "series_uid": self.series_uid,
            "grid": self.volume.grid.to_json(),
            "source": self.volume.source.to_json(),
            "findings": findings,
            "whole_body": self.volume.whole_body,
            "warnings": self.warnings,
        }
        return encode(header, arrays)

    @classmethod
    def decode(cls, record: bytes) -> "ScanRecord":
        header, arrays = decode(record)
        grid = Grid.from_json(header["grid"])
        lungs = np.unpackbits(arrays["lungs"], count=int(np.prod(grid.shape))).reshape(grid.shape)
        findings = tuple(
            Finding(**f | {"centre_mm": np.array(f["centre_mm"]), "low": np.array(f["low"], int)},
                    reader_bits=arrays[f"readers{i}"])
            for i, f in enumerate(header["findings"])
        )  # fmt: skip
        source = Grid.from_json(header["source"])
        volume = Volume(arrays["hu"], lungs.view(bool), grid, source, header["whole_body"])
        return cls(header["series_uid"], volume, findings, tuple(header["warnings"]))
