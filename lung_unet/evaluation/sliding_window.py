"""Whole-scan inference: overlapping windows over the lungs, blended by a Gaussian, on the device.

Cutting windows out and adding results in depend on the scan's size and compile in moments; the
network sees windows of one size and compiles once.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lung_unet.data.volume import AIR_HU
from lung_unet.errors import InputError
from lung_unet.parallel.mesh import BATCH, REPLICATED
from lung_unet.train.augment import window
from lung_unet.train.step import Apply

SIGMA = 0.125  # of the window, as nnU-Net and MONAI blend
MIN_WEIGHT = 1e-3  # of the centre's, so that a voxel seen only at a corner is still seen


def gaussian(size: tuple[int, ...]) -> np.ndarray:
    """Blending weights (D, H, W) float32 of a window: 1 in the middle, never below MIN_WEIGHT."""
    weights = np.ones(1, np.float32)
    for axis, n in enumerate(size):
        position = (np.arange(n) - (n - 1) / 2) / (n * SIGMA)
        line = np.exp(-0.5 * position**2).astype(np.float32)
        weights = weights * line.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.maximum(weights / weights.max(), MIN_WEIGHT)


def window_starts(
    shape: tuple[int, ...], size: tuple[int, ...], overlap: float, lungs: np.ndarray
) -> np.ndarray:
    """First voxels (n, 3) of evenly spaced windows that touch the lungs.

    `shape` is at least `size`; neighbours overlap by at least the fraction `overlap` of a window.
    """
    axes = []
    for n, m in zip(shape, size, strict=True):
        count = int(np.ceil((n - m) / max(1, round(m * (1 - overlap))))) + 1
        axes.append(np.rint(np.linspace(0, n - m, count)).astype(int))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    touches = [lungs[tuple(map(slice, low, low + size))].any() for low in grid]
    return grid[np.array(touches, bool)]


@partial(jax.jit, static_argnames="size")
def _cut(volume: jax.Array, starts: jax.Array, size: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda start: lax.dynamic_slice(volume, start, size))(starts)


@partial(jax.jit, donate_argnums=(0, 1))
def _add(total, weight, values, starts, used, blend):
    """Adds windows to the running sums; `used` is 0 for windows that only fill up a batch."""

    def one(i, sums):
        total, weight = sums
        where = (*starts[i], *values.shape[1:])
        return tuple(
            lax.dynamic_update_slice(
                whole,
                lax.dynamic_slice(whole, where[:3], where[3:]) + used[i] * part,
                where[:3],
            )
            for whole, part in ((total, values[i] * blend), (weight, blend))
        )

    return lax.fori_loop(0, starts.shape[0], one, (total, weight))


@partial(jax.jit, donate_argnums=0)
def _blend(total: jax.Array, weight: jax.Array) -> jax.Array:
    return total / jnp.maximum(weight, MIN_WEIGHT / 2)


class Predictor:
    """Callable: nodule probability float32 (z, y, x) of a volume; 0 where no window looked."""

    def __init__(self, config: ConfigDict, apply: Apply, params: dict, mesh: Mesh):
        if not 0 <= config.evaluation.overlap < 1:
            raise InputError("config.evaluation.overlap must be at least 0 and below 1")
        self.params = params
        self._size = tuple(config.data.patch)
        self._overlap = config.evaluation.overlap
        devices = mesh.shape["data"]
        self._batch = -(-config.evaluation.batch_size // devices) * devices
        self._gaussian = jnp.asarray(gaussian(self._size))
        replicated = NamedSharding(mesh, REPLICATED)
        split = NamedSharding(mesh, BATCH)

        def forward(params: dict, hu: jax.Array) -> jax.Array:
            image = window(lax.with_sharding_constraint(hu, split), config.data.window_hu)
            return jax.nn.sigmoid(apply(params, image[..., None])[..., 0])

        self._forward: Callable = jax.jit(forward, out_shardings=replicated)
        self._place = partial(jax.device_put, device=replicated)

    def __call__(self, hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
        """hu int16 and lungs bool, (z, y, x) of one volume, which may be smaller than a window."""
        shape = hu.shape
        missing = [(0, max(0, m - n)) for n, m in zip(shape, self._size, strict=True)]
        hu = np.pad(hu, missing, constant_values=AIR_HU)
        starts = window_starts(hu.shape, self._size, self._overlap, np.pad(lungs, missing))
        volume = self._place(hu)
        total, weight = (self._place(np.zeros(hu.shape, np.float32)) for _ in range(2))
        for first in range(0, len(starts), self._batch):
            some = starts[first : first + self._batch]
            used = np.arange(self._batch) < len(some)
            some = np.pad(some, ((0, self._batch - len(some)), (0, 0)), mode="edge")
            values = self._forward(self.params, _cut(volume, some, self._size))
            total, weight = _add(
                total, weight, values, some, used.astype(np.float32), self._gaussian
            )
        return np.array(_blend(total, weight)[tuple(map(slice, shape))])
