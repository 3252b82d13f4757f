"""Records of many shards as one sequence; a broken one stops, or is left out for the next."""

import bisect
import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from lung_unet.data.manifest import Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.errors import InputError

AGAIN = "delete the shard and run prepare again"
ON_BROKEN = ("stop", "skip")


class Broken(InputError):
    """A record that cannot be read."""


class Shards:
    """Random access to the records of many shards, each decoded by `decode`.

    ArrayRecord keeps each shard open that was read once, and LUNA16 has more than the 1,024 files
    that a process may have by default: so this one may from now on have as many as the system lets.

    `on_broken` says what reading a broken record does. ArrayRecord keeps a hash of every record and
    checks it. "skip" gives the next record, always the same, and says so the first time.

    Raises:
      InputError: a shard has no whole index, whatever `on_broken`; on reading a broken record if
        `on_broken` is "stop", or if all are broken. It names the shard and the record.
    """

    def __init__(
        self, paths: list[str], decode: Callable, on_broken: str = "stop", remedy: str = AGAIN
    ):
        check_on_broken(on_broken)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._on_broken = on_broken
        self._broken: dict[int, object] = {}  # as a set, with an atomic add: threads read
        self._paths = paths
        self._decode, self._remedy = decode, remedy
        self._ends = np.cumsum([_records_in(path, remedy) for path in paths]).tolist()
        with _opening(paths[0] if paths else ""):
            self._source = ArrayRecordDataSource(paths)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(index)
        for after in range(len(self)):
            number = (int(index) + after) % len(self)
            try:
                return self._read(number)
            except Broken as error:
                if self._on_broken == "stop":
                    raise
                self._report(number, error)
        raise InputError(
            f"{self._paths[0]} and those beside it: all records are broken; {self._remedy}"
        )

    def _read(self, index: int):
        try:
            with _opening(self._paths[0]):
                record = self._source[index]
            return self._decode(record)
        except (RuntimeError, ValueError, KeyError) as error:
            shard = bisect.bisect_right(self._ends, index)
            number = index - (self._ends[shard - 1] if shard else 0)
            raise Broken(
                f"{self._paths[shard]}: record {number} is broken ({str(error)[:120]}); "
                f"{self._remedy}"
            ) from error

    def _report(self, index: int, error: Broken) -> None:
        mine = object()
        if self._broken.setdefault(index, mine) is mine:
            print(f"skipped, {len(self._broken)} so far: {error}")


def check_on_broken(on_broken: str) -> None:
    """
    Raises:
      InputError: there is no such choice.
    """
    if on_broken not in ON_BROKEN:
        raise InputError(f"config.data.on_broken = {on_broken!r}: choose {' or '.join(ON_BROKEN)}")


@contextlib.contextmanager
def _opening(path: str) -> Iterator[None]:
    """Too many open files are nobody's broken shard."""
    try:
        yield
    except RuntimeError as error:
        if os.strerror(errno.EMFILE) not in str(error):
            raise
        raise InputError(
            f"{path} and those beside it: each shard that was read stays open, and this process "
            "may have no more files open; raise the system's limit (ulimit -Hn)"
        ) from error


def _records_in(path: str, remedy: str) -> int:
    try:
        with _opening(path):
            return len(ArrayRecordDataSource([path]))
    except RuntimeError as error:
        raise InputError(f"{path}: is broken ({str(error)[:120]}); {remedy}") from error


def scan_records(dataset: Dataset, split: str) -> Shards:
    """The whole scans of a split, in the manifest's order."""
    return Shards(dataset.shards(split, "scan"), ScanRecord.decode)
