"""What a dataset is like, for planning: its scans' geometry, its nodules' sizes and their HU."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lung_unet.data.manifest import NAME, Dataset
from lung_unet.errors import InputError


@dataclasses.dataclass(frozen=True)
class Foreground:
    """HU of nodules, a scan counting as much as any other: means over the scans, with the deviation
    of all of them together; medians over the scans of their 0.5, 50 and 99.5 percentiles."""

    mean: float
    std: float
    percentiles: tuple[float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprint:
    """Of all scans of a dataset; arrays are (scans, 3) in z, y, x.

    `spacings_mm` and `shapes`, in voxels, are those of the whole scans as they came; `lungs_mm` the
    size of what is kept of them. `spacing_mm` and `block` are what the dataset was prepared with.
    """

    spacings_mm: np.ndarray
    shapes: np.ndarray
    lungs_mm: np.ndarray
    diameters_mm: np.ndarray  # (nodules,)
    foreground: Foreground
    spacing_mm: float
    block: tuple[int, ...]


def read_fingerprint(dataset: Dataset) -> Fingerprint:
    """The fingerprint of a prepared dataset, from its manifest alone.

    Raises:
      InputError: the manifest is broken, or names no nodule.
    """
    path = dataset.folder / NAME
    try:
        entries = dataset.manifest["scans"]
        nodules = [n["diameter_mm"] for e in entries for n in e["nodules"]]
        foregrounds = [e["foreground"] for e in entries if e["foreground"]["voxels"]]
        if not nodules or not foregrounds:
            raise InputError(f"{path}: names no nodule; plan for scans that have annotations")
        return Fingerprint(
            np.array([e["source_spacing_mm"] for e in entries], float),
            np.array([e["source_shape"] for e in entries], int),
            np.array([e["shape"] for e in entries]) * dataset.spacing_mm,
            np.array(nodules, float),
            _pooled(foregrounds),
            dataset.spacing_mm,
            dataset.block,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is broken ({error!r}); remove it and run prepare again"
        ) from error


def _pooled(scans: Sequence[dict]) -> Foreground:
    means = np.array([s["mean"] for s in scans])
    squares = np.array([s["std"] for s in scans]) ** 2 + means**2
    mean = float(means.mean())
    low, middle, high = np.median([s["percentiles"] for s in scans], 0).tolist()
    return Foreground(mean, float(squares.mean() - mean**2) ** 0.5, (low, middle, high))
