"""Our rules: the largest patch whose compiled train step fits in memory, and what follows."""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from lung_unet.data.fingerprint import Fingerprint
from lung_unet.errors import InputError
from lung_unet.planning.nnunet import LARGEST_PART
from lung_unet.planning.proposal import GB, Proposal, StepBytes, times

HEADROOM = 0.1  # of the memory is for what is no step: batches ahead, the copy that is saved
SMALL, ACROSS = 10, 4  # the 10th percentile of diameters is four voxels
NEAR = 0.75  # a dataset whose spacing is within this ratio of the planned one will do
WINDOW_HU, STEP_HU = (-1000.0, 400.0), 50
MIN_BATCH = 2
# Edges of a patch. Each is 4 to 7 voxels times a power of two, so that it ends in those.
BOTTOM = 4
EDGES = sorted(bottom << steps for bottom in range(BOTTOM, 2 * BOTTOM) for steps in range(2, 9))
SMALLEST = 64  # edge; or the lungs' box
FEATURES, MOST_FEATURES = (32, 16, 8), 320  # of the finest level, the most that fit; of any level
SPACE = (1, 2, 4, 8)  # devices that share a patch: those of one host


def propose(
    fingerprint: Fingerprint,
    memory_gb: float,
    devices: int,
    step_bytes: StepBytes,
    space: int = max(SPACE),
) -> tuple[Proposal, list[str]]:
    """(the proposal, why) for devices of so much memory, of which at most `space` share a patch.

    First the patch grows, with as few patches a device as make a batch of two, up to the box that
    holds the lungs of half the scans; then the batch, up to 5% of the dataset's voxels. Only where
    not even 64³ fits are patches split over devices, and where that does not help features halved.

    Raises:
      InputError: nothing fits.
    """
    limit = memory_gb * GB * (1 - HEADROOM)
    spacing, why = spacing_of(fingerprint)
    box = np.median(fingerprint.lungs_mm, 0) / spacing
    sizes = patches(box)
    start = _first_that_fits(
        _starts(spacing, window_of(fingerprint), sizes[0], devices, space), memory_gb, step_bytes
    )
    steps = [_with_patch(start, size) for size in sizes]
    costs = [math.prod(size) for size in sizes]
    at = largest(costs, lambda i: step_bytes(steps[i]), limit)
    if at == len(sizes) - 1:
        voxels = len(fingerprint.shapes) * math.prod(box)
        most = int(voxels * LARGEST_PART / costs[at] / start.data)
        batches = range(start.batch, max(start.batch, most) + 1)
        steps = [dataclasses.replace(steps[at], batch=batch) for batch in batches]
        at = largest(batches, lambda i: step_bytes(steps[i]), limit)
    chosen = steps[at]
    end = "a larger batch would hold over 5% of the dataset's voxels"
    for larger in steps[at + 1 : at + 2]:
        end = f"the next larger, {larger}, would hold {step_bytes(larger) / GB:.3g} GB"
    return chosen, [
        why,
        *_reasons(chosen, fingerprint, box),
        f"the step holds {step_bytes(chosen) / GB:.3g} GB of a device's {memory_gb:g}, a tenth of "
        f"which is left free; {end}",
    ]


def _reasons(chosen: Proposal, fingerprint: Fingerprint, box: np.ndarray) -> list[str]:
    bottom = np.array(chosen.patch) // np.prod([(1, 1, 1), *chosen.strides], 0)
    low, middle, high = fingerprint.foreground.percentiles
    fewer = "" if chosen.channels[0] == FEATURES[0] else "; more do not fit"
    split = "" if chosen.space == 1 else ", as a patch does not fit on fewer devices"
    return [
        f"window {chosen.window_hu[0]:g} to {chosen.window_hu[1]:g} HU: air to soft tissue, and "
        f"the nodules' {low:g}, {middle:g}, {high:g} HU (0.5, 50, 99.5%)",
        f"patch {times(chosen.patch)}: as large as fits, up to the lungs' median box of "
        f"{times(np.rint(box))} voxels",
        f"features {', '.join(map(str, chosen.channels))}: {len(chosen.channels)} levels, of which "
        f"the lowest has {times(bottom)} voxels{fewer}",
        f"batch {chosen.data * chosen.batch} on a mesh of {chosen.data} × {chosen.space} (data × "
        f"space){split}",
    ]


def spacing_of(fingerprint: Fingerprint) -> tuple[float, str]:
    """(isotropic spacing mm, why): a small nodule is four voxels across, nothing is finer or
    coarser than the scans themselves; that of the dataset as it is, if near."""
    small = float(np.percentile(fingerprint.diameters_mm, SMALL))
    own = np.median(fingerprint.spacings_mm, 0)
    wanted = float(np.clip(small / ACROSS, own.min(), own.max()))
    wanted = max(1, math.floor(wanted * 10 + 1e-6)) / 10
    ratio = wanted / fingerprint.spacing_mm
    spacing = fingerprint.spacing_mm if min(ratio, 1 / ratio) >= NEAR else wanted
    why = (
        f"spacing {spacing:g} mm: a tenth of {len(fingerprint.diameters_mm)} nodules are under "
        f"{small:.1f} mm and should be {ACROSS} voxels across, the scans' median is "
        f"{times(own.round(2))} mm, so {wanted:g} mm"
    )
    return spacing, why + ("" if spacing == wanted else "; the dataset's own is near enough")


def window_of(fingerprint: Fingerprint) -> tuple[float, float]:
    """HU from air to soft tissue, wider where nodules need it."""
    low, _, high = fingerprint.foreground.percentiles
    return (
        min(WINDOW_HU[0], math.floor(low / STEP_HU) * float(STEP_HU)),
        max(WINDOW_HU[1], math.ceil(high / STEP_HU) * float(STEP_HU)),
    )


def patches(box: Sequence[float] | np.ndarray) -> list[tuple[int, ...]]:
    """Patches from 64³ to one that holds a box (voxels), each a step deeper, or wider, than the one
    before; height and width are equal where the box allows, as turns by 90° need."""
    ends = [next((edge for edge in EDGES if edge >= size), EDGES[-1]) for size in box]
    edges = [edge for edge in EDGES if edge >= SMALLEST]
    cubes = [[(deep, wide, wide) for deep in (wide, longer)] for wide, longer in pairwise(edges)]
    sizes = [tuple(map(min, size, ends)) for pair in cubes for size in pair]
    return list(dict.fromkeys([*sizes, tuple(ends)]))


def strides_of(patch: Sequence[int], space: int) -> tuple[tuple[int, ...], ...]:
    """The strides that leave 4 to 7 voxels of each axis, of the depth on each device that shares
    it; an axis that gets there first is not halved again."""
    depth, *rest = patch
    halved = [_halvings(depth // space), *map(_halvings, rest)]
    return tuple(tuple(2 if step < n else 1 for n in halved) for step in range(max(halved)))


def largest(costs: Sequence[float], bytes_of: Callable[[int], int], limit: float) -> int:
    """The index of the last candidate within a limit, given that the first is.

    Both rise with the index. Each guess takes bytes to be in proportion to the costs, so that few
    are asked for; the answer and the one after it always are.
    """
    low, high, guess = 0, len(costs), 0
    while high - low > 1:
        taken = bytes_of(guess)
        low, high = (guess, high) if taken <= limit else (low, guess)
        guess = bisect.bisect_right(costs, costs[guess] * limit / taken) - 1
        guess = min(max(guess, low + 1), high - 1)
    return low


def _halvings(edge: int) -> int:
    """How often an edge is halved until 4 to 7 voxels are left."""
    return (edge // BOTTOM).bit_length() - 1


def _starts(
    spacing: float, window: tuple[float, float], patch: tuple[int, ...], devices: int, most: int
) -> list[Proposal]:
    """The smallest patch with the most features on the fewest devices first."""
    starts = []
    for features in FEATURES:
        for space in filter(most.__ge__, SPACE):
            if devices % space == 0 and patch[0] // space >= BOTTOM:
                data = devices // space
                batch = math.ceil(MIN_BATCH / data)
                blank = Proposal(spacing, window, patch, (features,), (), batch, data, space)
                starts.append(_with_patch(blank, patch))
    return starts


def _with_patch(step: Proposal, patch: tuple[int, ...]) -> Proposal:
    strides = strides_of(patch, step.space)
    features = [step.channels[0] << level for level in range(len(strides) + 1)]
    channels = tuple(min(MOST_FEATURES, n) for n in features)
    return dataclasses.replace(step, patch=patch, channels=channels, strides=strides)


def _first_that_fits(
    steps: Sequence[Proposal], memory_gb: float, step_bytes: StepBytes
) -> Proposal:
    for step in steps:
        if step_bytes(step) <= memory_gb * GB * (1 - HEADROOM):
            return step
    least = min(steps, key=step_bytes)
    needed = step_bytes(least) / GB / (1 - HEADROOM)
    raise InputError(
        f"--memory_gb={memory_gb:g}: nothing fits; the smallest step, {least}, needs "
        f"--memory_gb={math.ceil(needed * 100) / 100:g}"
    )
