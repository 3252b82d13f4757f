"""nnU-Net's own planning: patch, batch and depth of its 3d_fullres U-Net, as arithmetic.

What nnU-Net v2.8.1 computes in experiment_planners/default_experiment_planner.py
(`ExperimentPlanner`) and network_topology.py (`get_pool_and_conv_props`), for CT with one channel
and two classes; Isensee et al. 2021, doi 10.1038/s41592-020-01008-z. Its memory is in
proportion to a count of the network's activations, fitted to one GPU of 8 GB; beside it stands
XLA's account of the step, which is compiled once for that.

Left out is the kernel's size, which is below 3 only along an axis more than twice as coarse as the
finest; here volumes are isotropic.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lung_unet.data.fingerprint import Fingerprint
from lung_unet.errors import InputError
from lung_unet.planning.proposal import GB, Proposal, StepBytes, times

ANISOTROPIC = 3  # times as coarse as the other axes
SMALLEST = 4  # voxels an axis of the lowest level
FEATURES, MOST_FEATURES = 32, 320
CONVS = 2  # a level, on both sides
CLASSES = 2
REFERENCE = 560_000_000  # activations at REFERENCE_BATCH that take REFERENCE_GB
REFERENCE_GB = 8.0
REFERENCE_BATCH = MIN_BATCH = 2
LARGEST_PART = 0.05  # of the dataset's voxels in a batch
START = 256  # voxels an axis of the cube whose volume the first patch has


@dataclasses.dataclass(frozen=True)
class NnunetPlan:
    """What nnU-Net would train. Sizes are (z, y, x); `strides` are those of each step down."""

    spacing_mm: tuple[float, ...]
    patch: tuple[int, ...]
    batch: int
    strides: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    activations: int  # by its estimate, of one patch
    limit: float  # of activations, for the memory


def propose(
    fingerprint: Fingerprint, memory_gb: float, devices: int, step_bytes: StepBytes
) -> tuple[Proposal, list[str]]:
    """(the proposal, why): nnU-Net's plan for the whole scans at the spacing of the dataset, whose
    volumes are isotropic and cropped to the lungs; nnU-Net would crop nothing of a CT.

    `step_bytes` is asked once, to set XLA's account beside nnU-Net's estimate.

    Raises:
      InputError: nothing fits by nnU-Net's estimate, or the devices do not divide the batch.
    """
    spacing = fingerprint.spacing_mm
    found = plan(fingerprint.spacings_mm, fingerprint.shapes, memory_gb, (spacing,) * 3)
    if found.batch % devices:
        raise InputError(
            f"--devices={devices}: nnU-Net's batch of {found.batch} does not divide over them; "
            f"give a divisor of {found.batch}"
        )
    low, _, high = fingerprint.foreground.percentiles
    high = max(high, low + 1)
    proposal = Proposal(
        spacing, (low, high), found.patch, found.features, found.strides, found.batch // devices,
        devices, variant="nnunet",
    )  # fmt: skip
    target = target_spacing(fingerprint.spacings_mm, fingerprint.shapes)
    taken = step_bytes(proposal) / GB
    more = "" if taken <= memory_gb else ", more than there is; --rules=ours keeps within it"
    return proposal, [
        f"spacing {spacing:g} mm, the dataset's; nnU-Net would choose {times(target.round(3))} mm",
        f"window {low:g} to {high:g} HU: the nodules' 0.5 and 99.5 percentiles",
        f"patch {times(found.patch)}, batch {found.batch}: {found.activations / 1e6:.0f} million "
        f"activations a patch by nnU-Net's estimate, {found.limit / 1e6:.0f} are its limit for "
        f"{memory_gb:g} GB",
        f"{len(found.features)} levels, features {', '.join(map(str, found.features))}",
        f"the step holds {taken:.3g} GB of a device{more}",
    ]


def target_spacing(spacings_mm: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """The spacing (z, y, x) mm that nnU-Net resamples to, of scans' spacings and shapes (scans, 3).

    The median; along a strongly anisotropic axis the 10th percentile, but no finer than the others.
    """
    target, size = np.median(spacings_mm, 0), np.median(shapes, 0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    widest = max(target[others])
    if target[coarse] > ANISOTROPIC * widest and size[coarse] * ANISOTROPIC < min(size[others]):
        fine = np.percentile(spacings_mm[:, coarse], 10)
        target[coarse] = fine if fine >= widest else widest + 1e-5
    return target


def plan(
    spacings_mm: np.ndarray,
    shapes: np.ndarray,
    memory_gb: float = REFERENCE_GB,
    spacing_mm: Sequence[float] | None = None,
) -> NnunetPlan:
    """The 3d_fullres plan for scans of these spacings and shapes, both (scans, 3) in z, y, x.

    `spacing_mm` takes the place of the target spacing, as nnU-Net's `-overwrite_target_spacing`.

    Raises:
      InputError: not even a network of two levels fits, below which nnU-Net would go on.
    """
    shapes = np.asarray(shapes)
    target = np.asarray(spacing_mm or target_spacing(spacings_mm, shapes), float)
    median = np.median(np.rint(shapes * spacings_mm / target), 0)
    # The coarsest axis goes first, as nnU-Net turns arrays; it decides between equals below.
    coarse = int(np.argmax(target))
    order = [coarse, *(axis for axis in range(3) if axis != coarse)]
    patch, strides, count, limit = _patch(target[order], median[order], memory_gb)
    batch = round(limit / count * REFERENCE_BATCH)
    most = round(len(shapes) * np.prod(median) * LARGEST_PART / np.prod(patch))
    back = np.argsort(order)
    return NnunetPlan(
        tuple(map(float, target)),
        tuple(int(patch[axis]) for axis in back),
        max(min(batch, most), MIN_BATCH),
        tuple(tuple(step[axis] for axis in back) for step in strides),
        features_of(len(strides) + 1),
        count,
        limit,
    )


def _patch(
    spacing: np.ndarray, median: np.ndarray, memory_gb: float
) -> tuple[np.ndarray, list[tuple[int, ...]], int, float]:
    """(patch, strides, activations, their limit): what is largest beside the median is shortened
    until the activations are within the limit."""
    limit = REFERENCE * memory_gb / REFERENCE_GB
    aspect = 1 / spacing
    start = np.rint(aspect * (START**3 / np.prod(aspect)) ** (1 / 3))
    strides, patch = topology(spacing, np.minimum(start, median))
    while (count := activations(patch, strides)) / REFERENCE_BATCH * MIN_BATCH > limit:
        axis = np.argsort(patch / median, kind="stable")[-1]
        shorter = patch.copy()
        shorter[axis] -= _multiple(strides)[axis]
        before = times(patch)
        patch[axis] -= _multiple(topology(spacing, shorter)[0])[axis]
        strides, patch = topology(spacing, patch)
        if not strides:
            raise InputError(
                f"--memory_gb={memory_gb:g}: nothing fits by nnU-Net's estimate; its smallest "
                f"network, on {REFERENCE_BATCH} × ({before}), needs "
                f"--memory_gb={count / REFERENCE * REFERENCE_GB + 5e-5:.4f}"
            )
    return patch, strides, count, limit


def topology(
    spacing: Sequence[float] | np.ndarray, patch: Sequence[int] | np.ndarray
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """(strides of each step down, the patch padded to their product).

    An axis is halved while 8 voxels of it are left and it is less than twice as coarse as the
    finest of those; one axis alone while 12 are left.
    """
    now, size = np.array(spacing, float), np.array(patch, float)
    strides: list[tuple[int, ...]] = []
    while (long := size >= 2 * SMALLEST).any():
        halved = long & (now < 2 * now[long].min())
        if halved.sum() == 1 and size[halved][0] < 3 * SMALLEST:
            break
        now[halved] *= 2
        size[halved] = np.ceil(size[halved] / 2)
        strides.append(tuple(np.where(halved, 2, 1).tolist()))
    multiple = _multiple(strides)
    return strides, (np.ceil(np.array(patch) / multiple) * multiple).astype(int)


def _multiple(strides: Sequence[tuple[int, ...]]) -> np.ndarray:
    return np.prod(np.array([(1, 1, 1), *strides]), axis=0)


def features_of(levels: int) -> tuple[int, ...]:
    """The features of each level, from the finest."""
    return tuple(min(MOST_FEATURES, FEATURES * 2**level) for level in range(levels))


def activations(patch: np.ndarray, strides: Sequence[tuple[int, ...]]) -> int:
    """nnU-Net's estimate: the values that the U-Net's convolutions write for one patch.

    Two convolutions a level on both sides, a transposed one a level of the decoder, and the head.
    """
    size, voxels = np.array(patch), [int(np.prod(patch))]
    for step in strides:
        size = size // step
        voxels.append(int(np.prod(size)))
    written = [n * f for n, f in zip(voxels, features_of(len(voxels)), strict=True)]
    decoder = (CONVS + 1) * sum(written[:-1]) + CLASSES * voxels[0]
    return CONVS * sum(written) + decoder
