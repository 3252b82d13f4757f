"""Batches of patches from shards: Grain reads, shuffles, mixes, crops and batches; resumes exactly.

A batch is {"hu": int16, "labels": uint8}, both (batch, depth, height, width), and {"block": int32}
(batch,). Labels are votes, 255 where ignored; "block" is the number of the background block that a
patch is of, -1 at a nodule. Everything else happens on the accelerator.
"""

import bisect
import contextlib
import dataclasses
import errno
import fractions
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from lung_unet.data.manifest import Dataset
from lung_unet.data.mining import Mining
from lung_unet.data.records import Block, ScanRecord
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


@dataclasses.dataclass(frozen=True)
class CropPatch(grain.transforms.RandomMap):
    """Crops a patch at random; one of a nodule block contains the nodule's centre."""

    patch: tuple[int, int, int]

    def random_map(
        self, element: tuple[int, Block], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        number, block = element
        size = np.array(self.patch)
        first, last = np.zeros(3, int), np.array(block.hu.shape) - size
        if block.centre is not None:
            inset = size // 8  # the centre stays clear of the patch's faces
            first = np.clip(np.array(block.centre) - size + 1 + inset, 0, last)
            last = np.clip(np.array(block.centre) - inset, first, last)
        hu, labels = block.crop(rng.integers(first, last + 1), self.patch)
        kept = number if block.centre is None else -1
        return {"hu": hu, "labels": labels, "block": np.array(kept, np.int32)}


class Interleaved(grain.transforms.DatasetSelectionMap):
    """Which of two datasets each element of their mix is of: the first has `share` of them.

    As evenly as can be: a batch of n has exactly share × n of them where that is a whole number,
    and else one more or less. (Grain's own mix rounds 0.7 to 699 in 1,000.)
    """

    def __init__(self, share: float):
        self._share = fractions.Fraction(share).limit_denominator(10_000)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after = (math.floor(i * self._share) for i in (index, index + 1))
        return (0, before) if after > before else (1, index - before)


def training_batches(
    dataset: Dataset,
    *,
    patch: tuple[int, int, int],
    batch_size: int,
    nodule_fraction: float,
    seed: int,
    threads: int,
    prefetch: int,
    on_broken: str = "stop",
    mining: Mining | None = None,
    shard: int = 0,
    shards: int = 1,
) -> grain.IterDataset:
    """Endless batches of the training split; of each batch of `batch_size`, part `shard` of
    `shards` equal ones.

    There is one global order, so that the data do not depend on how many processes read them; of
    the background, `mining` draws its share.

    Raises:
      InputError: the split has no blocks or no nodule, or its blocks are smaller than a patch.
    """
    _check_patch(dataset, patch)
    nodules = _blocks(dataset, "train", "nodule", seed, on_broken)
    background = _blocks(dataset, "train", "background", seed + 1, on_broken, mining)
    mixed = mix(nodules, background, nodule_fraction)
    if mixed is None:
        raise InputError(f"{dataset.folder}: the train split has no blocks")
    if nodules is None and nodule_fraction:
        raise InputError(
            f"{dataset.folder}: the train split has no nodule; prepare scans that have some, or "
            "train on background alone with config.data.nodule_fraction=0"
        )
    cropped = mixed.seed(seed + 2).random_map(CropPatch(patch))
    return stream(cropped, batch_size, threads, prefetch, shard, shards)


def stream(
    samples: grain.MapDataset, batch_size: int, threads: int, prefetch: int, shard: int, shards: int
) -> grain.IterDataset:
    """Batches, read ahead, of samples in their order: of each, part `shard` of `shards`."""
    batches = samples.batch(batch_size // shards, drop_remainder=True)[shard::shards]
    return batches.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
    )


def validation_batches(
    dataset: Dataset,
    *,
    patch: tuple[int, int, int],
    batch_size: int,
    patches: int,
    seed: int,
    shard: int = 0,
    shards: int = 1,
) -> list[dict[str, np.ndarray]]:
    """The same patches every time: half around nodules, half not, of the validation split.

    Of each batch, part `shard` of `shards`, as `training_batches`.
    """
    _check_patch(dataset, patch)
    nodules, background = (
        _blocks(dataset, "validation", k, seed) for k in ("nodule", "background")
    )
    mixed = mix(nodules, background, 0.5)
    if mixed is None:
        raise InputError(f"{dataset.folder}: the validation split has no blocks")
    cropped = mixed.seed(seed).random_map(CropPatch(patch)).batch(batch_size // shards)
    return [cropped[i * shards + shard] for i in range(-(-patches // batch_size))]


def _blocks(
    dataset: Dataset,
    split: str,
    kind: str,
    seed: int,
    on_broken: str = "stop",
    mining: Mining | None = None,
) -> grain.MapDataset | None:
    """Endless (number, block) of a split and kind, shuffled each epoch; None if there are none."""
    paths = dataset.shards(split, kind)
    if not paths:
        return None
    shards = Shards(paths, Block.decode, on_broken)
    numbers = grain.MapDataset.range(len(shards)).seed(seed).shuffle().repeat()
    if mining:
        drawn = grain.MapDataset.range(1).repeat().random_map(mining.draw, seed=seed)
        numbers = mix(drawn, numbers, mining.fraction)
    return numbers.map(lambda number: (number, shards[number]))


def mix(first: Any, second: Any, share: float) -> Any:
    """A mix of two datasets; one that has no share or is None is left out."""
    if share == 1 or second is None:
        return first
    if share == 0 or first is None:
        return second
    return grain.MapDataset.select_from_datasets([first, second], Interleaved(share))


def _check_patch(dataset: Dataset, patch: tuple[int, int, int]) -> None:
    if len(patch) != 3 or min(patch) < 1:
        raise InputError(f"config.data.patch = {tuple(patch)}: give three sizes (z, y, x)")
    if any(p > b for p, b in zip(patch, dataset.block, strict=True)):
        raise InputError(
            f"config.data.patch = {tuple(patch)} is larger than the dataset's blocks "
            f"{dataset.block}; choose a smaller patch, or prepare again with a larger "
            "config.data.block"
        )
