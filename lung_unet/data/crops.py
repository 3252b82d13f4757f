"""Crops of scans around candidates, and batches of them: what the second stage is trained on.

A crop is a cube of twice the patch an axis, since the network sees its middle as it is and all of
it at half the resolution. It is stored with a few voxels more on each side, by which training moves
it. Shards are by scan: FOLDER/<split>/<series UID>.{nodule,other}.arrayrecord.

A batch is {"hu": int16 (batch, depth, height, width), "nodule": uint8 (batch,), 255 where ignored,
"malignancy": float32 (batch,), the mean rating of 1 to 5, 0 where there is none}.
"""

import dataclasses
import pathlib

import grain
import numpy as np

from lung_unet.data.pipeline import mix, stream
from lung_unet.data.records import decode, encode, write_records
from lung_unet.data.scan import IGNORE
from lung_unet.data.shard_reader import Shards
from lung_unet.data.volume import AIR_HU, Volume
from lung_unet.errors import InputError

KINDS = ("nodule", "other")
SCALES = 2  # a crop is so many patches wide
NOT_RATED = 0.0
AGAIN = "delete all files of that scan beside it and run main again"

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Crop:
    """What lies around one candidate. `hu` is int16 (z, y, x), the candidate in its middle."""

    hu: np.ndarray
    nodule: bool
    malignancy: float  # the readers' mean rating, or NOT_RATED

    def encode(self) -> bytes:
        return encode({"nodule": self.nodule, "malignancy": self.malignancy}, {"hu": self.hu})

    @classmethod
    def decode(cls, record: bytes) -> "Crop":
        header, arrays = decode(record)
        return cls(arrays["hu"], header["nodule"], header["malignancy"])


def crop_size(patch: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels (z, y, x) that the network sees of the surroundings of a candidate."""
    return tuple(SCALES * n for n in patch)


def cut(volume: Volume, centre_mm: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """int16 of some size around a world position (z, y, x) mm; air where the volume ends."""
    low = np.rint(volume.grid.to_voxel(centre_mm) - (np.array(size) - 1) / 2).astype(int)
    first, last = (np.clip(edge, 0, volume.hu.shape) for edge in (low, low + size))
    hu = np.full(size, AIR_HU, np.int16)
    hu[tuple(map(slice, first - low, last - low))] = volume.hu[tuple(map(slice, first, last))]
    return hu


def shard_of(folder: pathlib.Path, series_uid: str, kind: str) -> pathlib.Path:
    return folder / f"{series_uid}.{kind}.arrayrecord"


def write_crops(folder: pathlib.Path, series_uid: str, crops: list[Crop]) -> None:
    """Writes the shards of one scan, none of a kind that it has no crops of."""
    for kind in KINDS:
        path = shard_of(folder, series_uid, kind)
        own = [crop for crop in crops if crop.nodule == (kind == "nodule")]
        path.unlink(missing_ok=True)
        if own:
            write_records(path, (crop.encode() for crop in own))


def _source(folder: pathlib.Path, split: str, kind: str, on_broken: str = "stop") -> Shards | None:
    paths = sorted(map(str, (folder / split).glob(f"*.{kind}.arrayrecord")))
    return Shards(paths, Crop.decode, on_broken, AGAIN) if paths else None


def _as_batched(crop: Crop, low: np.ndarray, size: tuple[int, ...]) -> Batch:
    box = tuple(slice(l, l + n) for l, n in zip(low, size, strict=True))
    return {
        "hu": crop.hu[box],
        "nodule": np.array(crop.nodule, np.uint8),
        "malignancy": np.array(crop.malignancy, np.float32),
    }


@dataclasses.dataclass(frozen=True)
class Jitter(grain.transforms.RandomMap):
    """Cuts a crop of the size that the network sees out of a stored one, at random."""

    size: tuple[int, ...]

    def random_map(self, element: Crop, rng: np.random.Generator) -> Batch:
        room = np.subtract(element.hu.shape, self.size)
        return _as_batched(element, rng.integers(0, room + 1), self.size)


def training_batches(
    folder: pathlib.Path,
    *,
    patch: tuple[int, int, int],
    batch_size: int,
    nodule_fraction: float,
    seed: int,
    threads: int,
    prefetch: int,
    on_broken: str = "stop",
    shard: int = 0,
    shards: int = 1,
) -> grain.IterDataset:
    """Endless batches of the training split, of each part `shard` of `shards` equal ones.

    Raises:
      InputError: no nodule, or nothing else, among the candidates, or fewer than a batch of them.
    """
    sources = [_source(folder, "train", kind, on_broken) for kind in KINDS]
    for kind, source in zip(("a nodule", "anything but nodules"), sources, strict=True):
        if source is None:
            raise InputError(
                f"{folder}: the train split has no candidate on {kind}; give "
                "config.candidates.workdir or config.candidates.csv of data that has"
            )
    found = sum(len(source) for source in sources if source is not None)
    if found < batch_size:
        raise InputError(
            f"{folder}: {found} candidates in the train split are fewer than a batch; set "
            f"config.train.batch_size, {batch_size} now, to {found} or less"
        )
    parts = [
        grain.MapDataset.source(source).seed(seed + number).shuffle().repeat()
        for number, source in enumerate(sources)
    ]
    mixed = mix(parts[0], parts[1], nodule_fraction)
    moved = mixed.seed(seed + len(parts)).random_map(Jitter(crop_size(patch)))
    return stream(moved, batch_size, threads, prefetch, shard, shards)


def validation_batches(
    folder: pathlib.Path,
    *,
    patch: tuple[int, int, int],
    batch_size: int,
    patches: int,
    shard: int = 0,
    shards: int = 1,
) -> list[Batch]:
    """The same candidates every time, not moved: `patches` at most, in full batches.

    Half are nodules, and half others, where there are so many; each kind is of all scans alike.
    The last batch is filled up with what is ignored.

    Raises:
      InputError: the validation split has no candidates.
    """
    sources = [_source(folder, "validation", kind) for kind in KINDS]
    found = [0 if source is None else len(source) for source in sources]
    if not any(found):
        raise InputError(
            f"{folder}: the validation split has no candidates; lower config.candidates.threshold, "
            "or give config.candidates.csv of these scans"
        )
    nodules = min(found[0], max(-(-patches // 2), patches - found[1]))
    size, rows = crop_size(patch), []
    for source, taken in zip(sources, (nodules, min(found[1], patches - nodules)), strict=True):
        for number in range(taken):
            assert source is not None
            crop = source[number * len(source) // taken]
            rows.append(_as_batched(crop, (np.array(crop.hu.shape) - size) // 2, size))
    ignored = rows[0] | {"nodule": np.array(IGNORE, np.uint8)}
    rows += [ignored] * (-len(rows) % batch_size)
    part = batch_size // shards
    return [
        {key: np.stack([row[key] for row in rows[first : first + part]]) for key in ignored}
        for first in range(shard * part, len(rows), batch_size)
    ]
