"""Batches of patches from shards: Grain reads, shuffles, mixes, crops and batches; resumes exactly.

A batch is {"hu": int16, "labels": uint8}, both (batch, depth, height, width), and {"block": int32}
(batch,). Labels are votes, 255 where ignored; "block" is the number of the background block that a
patch is of, -1 at a nodule. Everything else happens on the accelerator.
"""

import dataclasses
import fractions
import math
import sys
from typing import Any

import grain
import numpy as np

from lung_unet.data.manifest import Dataset
from lung_unet.data.mining import Mining
from lung_unet.data.records import Block
from lung_unet.data.shard_reader import Shards
from lung_unet.errors import InputError


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
