"""Intensity augmentation of one patch, float32 (D, H, W), in window units.

The formulas are those of nnU-Net v2 (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z). Each
function is (key, its settings in `config.augment`, image) → image.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lung_unet.train.separable import separable

TINY = 1e-7

Change = Callable[[jax.Array, ConfigDict, jax.Array], jax.Array]


def noise(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image with Gaussian noise of a standard deviation drawn from `sigma`."""
    amount, field = jax.random.split(key)
    return image + uniform(amount, c.sigma) * jax.random.normal(field, image.shape)


def blur(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image under a Gaussian of a width drawn from `sigma`, in voxels, for each axis."""
    widths = uniform(key, c.sigma, (3,))
    return separable(image, [gaussian(n, s) for n, s in zip(image.shape, widths, strict=True)])


def brightness(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image times a number from `factor`, plus one from `shift`."""
    factor, shift = jax.random.split(key)
    return image * _factor(factor, c.factor) + uniform(shift, c.shift)


def contrast(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image spread about its mean by a number from `factor`, clipped to the range it had."""
    mean = image.mean()
    spread = (image - mean) * _factor(key, c.factor) + mean
    return jnp.clip(spread, image.min(), image.max())


def low_resolution(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image sampled at a fraction from `zoom` of its voxels an axis, and interpolated back."""
    zoom = uniform(key, c.zoom)
    return separable(image, [_coarse(n, zoom) for n in image.shape])


def gamma(key: jax.Array, c: ConfigDict, image: jax.Array, *, sign: int = 1) -> jax.Array:
    """The image raised to a power over its range; its mean and standard deviation stay.

    With sign -1 it is the inverted image that is raised, which bends the other end of the range.
    """
    old = sign * image
    low, high = old.min(), old.max()
    unit = (old - low) / jnp.maximum(high - low, TINY)
    new = unit ** _factor(key, c.power)
    scale = old.std() / jnp.maximum(new.std(), TINY)
    return sign * ((new - new.mean()) * scale + old.mean())


# In nnU-Net's order.
INTENSITY: dict[str, Change] = {
    "noise": noise,
    "blur": blur,
    "brightness": brightness,
    "contrast": contrast,
    "low_resolution": low_resolution,
    "gamma_inverted": partial(gamma, sign=-1),
    "gamma": gamma,
}


def uniform(key: jax.Array, limits: tuple[float, float], shape: tuple[int, ...] = ()) -> jax.Array:
    """Numbers between two limits."""
    return jax.random.uniform(key, shape, minval=limits[0], maxval=limits[1])


def _factor(key: jax.Array, limits: tuple[float, float]) -> jax.Array:
    """A number below 1 as often as above it, uniform on both sides, as nnU-Net draws it."""
    low, high = limits
    if not low < 1 < high:
        return uniform(key, limits)
    side, value = jax.random.split(key)
    below = jax.random.uniform(side) < 0.5
    return jnp.where(below, uniform(value, (low, 1)), uniform(value, (1, high)))


def gaussian(n: int, sigma: jax.Array) -> jax.Array:
    """(n, n) smoothing; weights of what lies beyond the ends go to the voxels that are there."""
    distance = jnp.arange(n)[:, None] - jnp.arange(n)
    weights = jnp.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum(1, keepdims=True)


def _coarse(n: int, zoom: jax.Array) -> jax.Array:
    """(n, n): the nearest of round(n zoom) voxels is kept, and linear interpolation goes back."""
    size = jnp.maximum(jnp.round(n * zoom), 1)
    where = jnp.clip((jnp.arange(n) + 0.5) * size / n - 0.5, 0, size - 1)
    low = jnp.floor(where)

    def kept(voxel: jax.Array) -> jax.Array:
        source = jnp.floor((jnp.minimum(voxel, size - 1) + 0.5) * n / size)
        return source[:, None] == jnp.arange(n)

    rest = (where - low)[:, None]
    return kept(low) * (1 - rest) + kept(low + 1) * rest
