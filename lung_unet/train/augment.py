"""Augmentation on the accelerator, inside the step: int16 HU and votes in, network input out.

One key a sample, folded from (seed, step, sample), so that a resumed run draws the same.
"""

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from lung_unet.data.scan import IGNORE


def window(hu: jax.Array, window_hu: tuple[float, float]) -> jax.Array:
    """float32 HU mapped linearly from the window to -1 … 1, clipped."""
    low, high = window_hu
    return jnp.clip((hu.astype(jnp.float32) - low) * (2 / (high - low)) - 1, -1, 1)


def augment(
    hu: jax.Array, labels: jax.Array, keys: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Image float32 (batch, D, H, W, 1) and labels uint8 (batch, D, H, W) of a batch.

    hu is int16 and labels uint8, both (batch, D, H, W); keys one a sample. What turns in from
    beyond the patch is air to the network and ignored by the loss.
    """
    image = window(hu, config.data.window_hu)

    def one(sample):
        # A loop over samples, so that a rare transform costs nothing where it is not drawn.
        image, labels, key = sample
        keys = jax.random.split(key, 3)
        image, labels = _turn(image, labels, keys[0], config.augment)
        image, labels = _affine(image, labels, keys[1], config.augment)
        return _intensity(image, keys[2], config.augment), labels

    image, labels = lax.map(one, (image, labels, keys))
    return image[..., None], labels


def _maybe(key: jax.Array, probability: float, change, *args):
    return lax.cond(jax.random.uniform(key) < probability, change, lambda *same: same, *args)


def _turn(image, labels, key, c):
    """Flips along each axis and a transposition of the axial plane: together all 90° turns."""
    keys = jax.random.split(key, 4)
    both = (image, labels)
    if c.flip:
        for axis in range(3):
            both = _maybe(
                keys[axis], 0.5, lambda *b, a=axis: tuple(jnp.flip(v, a) for v in b), *both
            )
    if c.rotate90 and image.shape[1] == image.shape[2]:
        both = _maybe(keys[3], 0.5, lambda *b: tuple(v.swapaxes(1, 2) for v in b), *both)
    return both


def _affine(image, labels, key, c):
    """Rotation about each axis and isotropic scaling, of some samples."""
    if c.affine_probability <= 0:
        return image, labels
    chance, angle, size = jax.random.split(key, 3)
    limit = jnp.deg2rad(c.rotate_degrees)
    angles = jax.random.uniform(angle, (3,), minval=-limit, maxval=limit)
    scale = jax.random.uniform(size, minval=c.scale[0], maxval=c.scale[1])

    def change(image, labels):
        matrix = _rotation(angles) / scale
        centre = (jnp.array(image.shape) - 1) / 2
        grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, image.shape), indexing="ij"))
        turned = jnp.tensordot(matrix, grid - centre[:, None, None, None], 1)
        where = list(turned + centre[:, None, None, None])
        return (
            jax.scipy.ndimage.map_coordinates(image, where, 1, "constant", -1.0),
            jax.scipy.ndimage.map_coordinates(labels, where, 0, "constant", IGNORE),
        )

    return _maybe(chance, c.affine_probability, change, image, labels)


def _rotation(angles: jax.Array) -> jax.Array:
    """(3, 3) rotation about the z, then y, then x axis by angles (3,) in radians."""
    matrix = jnp.eye(3)
    for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
        cos, sin = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        turn = jnp.eye(3).at[a, a].set(cos).at[b, b].set(cos).at[a, b].set(-sin).at[b, a].set(sin)
        matrix = turn @ matrix
    return matrix


def _intensity(image, key, c):
    """Contrast, brightness, gamma and noise, each of some samples, clipped to the window."""
    p = c.intensity_probability
    if p <= 0:
        return image
    chances, draws = jax.random.split(key, (2, 4))

    def contrast(x):
        mean = x.mean()
        factor = jax.random.uniform(draws[0], minval=c.contrast[0], maxval=c.contrast[1])
        return ((x - mean) * factor + mean,)

    def brightness(x):
        return (x + c.brightness * jax.random.normal(draws[1]),)

    def gamma(x):
        power = jax.random.uniform(draws[2], minval=c.gamma[0], maxval=c.gamma[1])
        return (2 * jnp.clip((x + 1) / 2, 0, 1) ** power - 1,)

    def noise(x):
        amount, field = jax.random.split(draws[3])
        level = jax.random.uniform(amount, maxval=c.noise)
        return (x + level * jax.random.normal(field, x.shape),)

    for chance, change in zip(chances, (contrast, brightness, gamma, noise), strict=True):
        (image,) = _maybe(chance, p, change, image)
    return jnp.clip(image, -1, 1)
