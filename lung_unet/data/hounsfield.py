"""Whether voxels are plausible CT numbers: judged by where air and soft tissue lie.

The minimum alone says little, since padding may be anything. What is judged is a sample of the
voxels without padding, which is a value that many voxels have exactly and few have nearly.
"""

import dataclasses

import numpy as np

from lung_unet.errors import InputError

SAMPLE = 100_000  # voxels of a scan
SLICE_SAMPLE = 4_000  # voxels of a slice
FEW = 500  # voxels: too few to be judged
AIR = (-1100, -600)  # HU, of air and of inflated lung
TISSUE = (-200, 200)  # HU, of fat and muscle
BETWEEN = (-600, -200)  # HU, of few voxels of a chest
CT = (-1200, 4000)  # HU, of all but noise and metal
FAT, MUSCLE = (-150, -30), (0, 120)  # HU
CUT = -850  # HU: a display window from above it shows no lung
LIKELY = 0.05  # of the voxels are air, and as many tissue, where a whole chest is seen
SHIFTS = np.r_[np.arange(-33000, -399, 16), np.arange(400, 70001, 16)]  # HU
OFFSET = 1024  # what scanners add to store HU as unsigned integers


def hounsfield(array: np.ndarray, path: object) -> np.ndarray:
    """int16 HU of a CT's voxels (z, y, x); values outside int16 are clipped.

    Raises:
      InputError: NaN or infinite values, or values that are not HU; it names `path`.
    """
    values = as_int16(array, path)
    check_hounsfield(array, path)
    return values


def as_int16(array: np.ndarray, path: object) -> np.ndarray:
    """An image's values, rounded and clipped to int16.

    Raises:
      InputError: NaN or infinite values; it names `path`, or whatever the image is of.
    """
    if not np.issubdtype(array.dtype, np.integer):
        if not np.isfinite(array).all():
            raise InputError(f"{path}: holds NaN or infinite values; export it again as int16 HU")
        array = np.rint(array)
    if not np.can_cast(array.dtype, np.int16):
        array = np.clip(array, -32768, 32767)
    return array.astype(np.int16, copy=False)


def check_hounsfield(array: np.ndarray, path: object) -> None:
    """Refuses finite values (z, y, x) that are not the HU of a chest CT or of a part of one.

    Too little evidence is none: a few voxels, or air alone, are accepted.

    Raises:
      InputError: it says what was seen and what to do.
    """
    every = _sample(array, SAMPLE)
    values = _Values.of(every)
    if len(values.sorted) < FEW:
        return
    seen = f"{path}: most values lie between {values.at(0.01):g} and {values.at(0.99):g}"
    remedy = "give a chest CT in HU, in which air is near -1000 and soft tissue near 40"
    shift, likely = values.best_shift()
    if likely > max(LIKELY, 4 * float(values.chest(0))):
        raise InputError(_shifted(path, shift))
    _check_slices(array, path)
    if values.share(*CT) < 0.75:
        raise InputError(f"{seen}, which no HU do: they are scaled or shifted; {remedy}")
    lowest = values.sorted[0]
    cut_off = np.mean((every > CUT) & (every <= lowest))
    if cut_off > 0.02:
        raise InputError(
            f"{path}: {cut_off:.0%} of its voxels have the lowest value but for padding, some "
            f"{lowest:g}: air is cut off, as by a display window; {remedy}"
        )
    air, between = values.share(*AIR), values.share(*BETWEEN)
    fat, muscle = values.share(*FAT), values.share(*MUSCLE)
    tissue = min(fat, muscle) >= 0.01 and values.at(0.95) - values.at(0.05) > 130
    if air < 0.001 and (between > 0.2 or not tissue):
        raise InputError(
            f"{seen}, and none is as dark as air: they are scaled for display or normalised; "
            f"{remedy}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Values:
    """Sorted values of voxels, without padding."""

    sorted: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "_Values":
        """Of sorted values. Where hardly any other is left, as of a phantom without noise, padding
        is only what no CT has."""
        found, counts = np.unique(values, return_counts=True)
        often = np.flatnonzero(counts > 0.01 * len(values))
        keep = np.ones(len(values), bool)
        for value, count in zip(found[often], counts[often], strict=True):
            low, high = np.searchsorted(values, (value - 16, value + 16))
            if count > 0.8 * (high - low):
                keep &= values != value
        if keep.sum() < FEW:
            keep = (values >= CT[0]) & (values < CT[1])
        return cls(values[keep] if keep.sum() >= FEW else values)

    def at(self, fraction: float) -> float:
        return float(self.sorted[int(fraction * (len(self.sorted) - 1))])

    def share(self, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """The share of the values in [low, high)."""
        first, last = (np.searchsorted(self.sorted, np.asarray(side)) for side in (low, high))
        return (last - first) / len(self.sorted)

    def chest(self, shift: np.ndarray | float) -> np.ndarray:
        """How much of it is both air and tissue, with little between, if the values are HU + shift.

        Of a whole chest 0.2 to 0.45.
        """
        air, tissue, between = (
            self.share(shift + low, shift + high) for low, high in (AIR, TISSUE, BETWEEN)
        )
        return np.minimum(air, tissue) - between

    def best_shift(self, shifts: np.ndarray = SHIFTS) -> tuple[float, float]:
        """The shift under which it is most like a chest, and how much."""
        likely = self.chest(shifts)
        near = shifts[likely >= likely.max() - 0.01]  # a plateau
        return float(near[len(near) // 2]), float(likely.max())


def _check_slices(array: np.ndarray, path: object) -> None:
    """Refuses a volume of which some slices are shifted, as where each has its own rescaling."""
    shifts = np.array([-OFFSET, -1000, 1000, OFFSET])
    wrong = []
    for number, plane in enumerate(array):
        values = _Values.of(_sample(plane, SLICE_SAMPLE))
        if len(values.sorted) >= FEW:
            shift, likely = values.best_shift(shifts)
            if likely > max(2 * LIKELY, 10 * float(values.chest(0))):
                wrong.append((number, shift))
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} of its {len(array)} slices, from number {wrong[0][0]} on, are "
            f"about {wrong[0][1]:+g} HU off the others; rescale each slice by its own intercept"
        )


def _shifted(path: object, shift: float) -> str:
    air, tissue = f"air is near {shift - 1000:g}", f"soft tissue near {shift + 40:g}"
    if abs(shift - OFFSET) <= 150:
        told = "these look like stored values; subtract the scanner's offset, mostly 1024"
    elif abs(shift + OFFSET) <= 150:
        told = "the offset was subtracted twice; add it, mostly 1024"
    else:
        told = f"like HU {shift:+g}, or inverted; apply the rescaling, and MONOCHROME1's inversion"
    return f"{path}: {air} and {tissue}: {told}"


def _sample(array: np.ndarray, count: int) -> np.ndarray:
    """Sorted values, at most so many or twice that, spread over the array."""
    step = max(1, array.size // count) | 1
    return np.sort(array.ravel()[::step].astype(np.float64))
