"""Whole-scan inference: overlapping windows over the lungs, blended by a Gaussian, on the device.

Every program has the shape of a window, so that none is compiled again for a scan of another size:
the host cuts windows out of int16 HU, the network sees them, and their probabilities are summed on
the device in tiles as large as a window, which exist only where the lungs are. How often a voxel
was seen is known on the host.

Windows and mirrors alike are averaged as probabilities: each view has one vote of at most 1. A
logit has no bound, so that one view could outvote all others.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lung_unet.data.volume import AIR_HU, bounds
from lung_unet.errors import InputError
from lung_unet.model.levels import scales_of
from lung_unet.parallel.compiler import compiler_options
from lung_unet.parallel.mesh import REPLICATED
from lung_unet.train.augment import window
from lung_unet.train.step import Apply

SIGMA = 0.125  # of the window, as nnU-Net and MONAI blend
REACH = 1 / 16  # of the window, beyond the lungs: a mask may leave out what lies on the pleura
MIN_WEIGHT = 1e-3  # of the centre's, so that a voxel seen only at a corner is still seen


def gaussian(size: tuple[int, ...]) -> np.ndarray:
    """Blending weights (D, H, W) float32 of a window: 1 in the middle, never below MIN_WEIGHT."""
    weights = np.ones(1, np.float32)
    for axis, n in enumerate(size):
        position = (np.arange(n) - (n - 1) / 2) / (n * SIGMA)
        line = np.exp(-0.5 * position**2).astype(np.float32)
        weights = weights * line.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.maximum(weights / weights.max(), MIN_WEIGHT)


def window_starts(lungs: np.ndarray, size: tuple[int, ...], overlap: float) -> np.ndarray:
    """First voxels (n, 3) of evenly spaced windows that touch the lungs, a mask (z, y, x).

    They are as few as reach over the box that holds the lungs and REACH around it, with neighbours
    that overlap by at least the fraction `overlap` of a window, and as far apart as that allows, so
    that what they have to spare is seen around the lungs. They lie within the mask, except along an
    axis on which it is smaller than a window.
    """
    axes = []
    for n, m, first, last in zip(lungs.shape, size, *bounds(lungs), strict=True):
        reach = round(REACH * m)
        first, last = max(0, first - reach), min(n, last + reach)
        step = max(1, round(m * (1 - overlap)))
        steps = int(np.ceil(max(0, last - first - m) / step))
        room = min(max(0, n - m), steps * step)
        low = np.clip(first - (room + m - (last - first)) // 2, 0, max(0, n - m) - room)
        axes.append(np.rint(np.linspace(low, low + room, steps + 1)).astype(int))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    touches = [lungs[_box(low, size)].any() for low in grid]
    return grid[np.array(touches, bool)]


def _box(low: np.ndarray | tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(l, l + n) for l, n in zip(low, size, strict=True))


def _flip(x: jax.Array, mirror: jax.Array) -> jax.Array:
    """x (batch, D, H, W) turned around along the axes that `mirror` (3,) bool marks."""
    for axis in range(3):
        x = jnp.where(mirror[axis], jnp.flip(x, axis + 1), x)
    return x


def _mirrors(axes: tuple[int, ...]) -> np.ndarray:
    """bool (views, 3): every combination of mirrored axes, first none."""
    return np.array(list(product(*([False, True] if a in axes else [False] for a in range(3)))))


def check_windows(config: ConfigDict) -> None:
    """
    Raises:
      InputError: `config.evaluation` holds an impossible window, overlap or axis.
    """
    evaluation, multiples = config.evaluation, scales_of(config.model)[-1]
    size, axes = tuple(evaluation.window), tuple(evaluation.mirror_axes)
    if size and (
        len(size) != 3 or any(n < 1 or n % m for n, m in zip(size, multiples, strict=True))
    ):
        raise InputError(
            f"config.evaluation.window = {size}: give multiples of {multiples}, for "
            f"{len(config.model.channels)} levels, or none for the patch"
        )
    if not 0 <= evaluation.overlap < 1:
        raise InputError("config.evaluation.overlap must be at least 0 and below 1")
    if evaluation.batch_size < 1:
        raise InputError("config.evaluation.batch_size must be at least 1")
    if not set(axes) <= {0, 1, 2}:
        raise InputError(f"config.evaluation.mirror_axes = {axes}: choose from 0, 1, 2 (z, y, x)")


@partial(jax.jit, donate_argnums=0)
def _add(tile: jax.Array, windows: jax.Array, i: int, shift: np.ndarray) -> jax.Array:
    """The tile plus what lies in it of window i, which begins `shift` voxels after the tile.

    Tiles are (kinds, D, H, W), windows (kinds, batch, D, H, W).
    """
    kinds, *size = tile.shape
    beyond = jnp.pad(windows[:, i], [(0, 0), *((n, n) for n in size)])
    start = [0, *(n - s for n, s in zip(size, shift, strict=True))]
    return tile + lax.dynamic_slice(beyond, start, (kinds, *size))


def make_window_step(config: ConfigDict, apply: Apply, mesh: Mesh) -> jax.stages.Wrapped:
    """The compiled (params, hu, blend) → what a batch of windows adds to the sums.

    hu is int16 (batch, D, H, W), blend (D, H, W); the result is float32 (kinds, batch, D, H, W):
    the probability, and where there are mirrors its variance between them, times blend.
    """
    mirrors = jnp.array(_mirrors(config.evaluation.mirror_axes))
    views = len(mirrors)
    kinds = 1 if views == 1 else 2

    def forward(params: dict, hu: jax.Array, blend: jax.Array) -> jax.Array:
        image = window(hu, config.data.window_hu)

        def add_view(sums: jax.Array, mirror: jax.Array) -> tuple[jax.Array, None]:
            logits = apply(params, _flip(image, mirror)[..., None])[..., 0]
            probability = _flip(jax.nn.sigmoid(logits), mirror)
            return sums + jnp.stack([probability, probability**2][:kinds]), None

        sums, _ = lax.scan(add_view, jnp.zeros((kinds, *image.shape)), mirrors)
        mean, *squares = sums / views
        return jnp.stack([mean, *(s - mean**2 for s in squares)]) * blend

    return jax.jit(
        forward,
        out_shardings=NamedSharding(mesh, REPLICATED),
        compiler_options=compiler_options(mesh),
    )


class Predictor:
    """Callable: nodule probability float32 (z, y, x) of a volume; 0 where no window looked.

    The windows of a batch are spread over all devices of the mesh; sums are on each of them.

    Raises:
      InputError: as `check_windows`.
    """

    def __init__(self, config: ConfigDict, apply: Apply, params: dict, mesh: Mesh):
        check_windows(config)
        evaluation = config.evaluation
        self.params = params
        self._size = tuple(evaluation.window or config.data.patch)
        self._overlap = evaluation.overlap
        self._batch = -(-evaluation.batch_size // mesh.size) * mesh.size
        replicated = NamedSharding(mesh, REPLICATED)
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._kinds = 2 if evaluation.mirror_axes else 1  # probability, variance between mirrors
        self._gaussian = gaussian(self._size)
        self._blend = jax.device_put(self._gaussian, replicated)
        self._forward: Callable = make_window_step(config, apply, mesh)
        self._zeros = jax.jit(
            partial(jnp.zeros, (self._kinds, *self._size)), out_shardings=replicated
        )

    def with_params(self, params: dict) -> "Predictor":
        """The same program with other parameters of the network."""
        other = copy.copy(self)
        other.params = params
        return other

    def __call__(self, hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
        """hu int16 and lungs bool, (z, y, x) of one volume, which may be smaller than a window."""
        return self.with_variance(hu, lungs)[0]

    def with_variance(
        self, hu: np.ndarray, lungs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(probability, its variance between the mirrors), the latter None without mirrors."""
        starts = window_starts(lungs, self._size, self._overlap)
        weight = np.zeros(hu.shape, np.float32)
        tiles: dict[tuple[int, ...], jax.Array] = {}
        running = None
        for first in range(0, len(starts), self._batch):
            some = starts[first : first + self._batch]
            windows = np.full((self._batch, *self._size), AIR_HU, np.int16)
            for i, low in enumerate(some):
                box = _box(low, self._size)
                inside = _box((0, 0, 0), hu[box].shape)
                windows[i][inside] = hu[box]
                weight[box] += self._gaussian[inside]
            views = jax.device_put(windows, self._split)
            values = self._forward(self.params, views, self._blend)
            for i, low in enumerate(some):
                for corner in self._tiles(low):
                    tile = tiles[corner] if corner in tiles else self._zeros()
                    tiles[corner] = _add(tile, values, i, low - corner)
            if running is not None:  # the host runs one batch ahead, no more
                running.block_until_ready()
            running = values
        sums = np.zeros((self._kinds, *hu.shape), np.float32)
        for corner, tile in tiles.items():
            box = _box(corner, self._size)
            inside = _box((0, 0, 0), weight[box].shape)
            for total, part in zip(sums, np.asarray(tile), strict=True):
                total[box] = part[inside]
        np.divide(sums, weight, out=sums, where=weight > 0)
        return sums[0], sums[1] if self._kinds > 1 else None

    def _tiles(self, low: np.ndarray) -> Iterator[tuple[int, ...]]:
        """First voxels of the tiles that a window at `low` reaches into, eight at most."""
        return product(
            *(range(l // n * n, l + n, n) for l, n in zip(low.tolist(), self._size, strict=True))
        )
