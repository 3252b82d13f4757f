"""What other scanners would have made of one patch, float32 (D, H, W), in window units.

Slices across the body, the reconstruction kernel in-plane, correlated noise, and the HU scale: what
differs between hospitals while the patient stays the same. Each function is (key, its settings in
`config.augment`, image) → image. Lengths are in voxels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from lung_unet.train.intensity import Change, gaussian, uniform
from lung_unet.train.separable import separable

LEAST = 1e-3  # of a voxel, that a slice must cover
AIR = -1.0  # the window's lower end, where scanners agree


def slices(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image in slices of a `thickness`, one after another, with linear interpolation between.

    A slice is the mean of what it covers; the first may lie partly before the patch.
    """
    size, offset = jax.random.split(key)
    thickness = uniform(size, c.thickness)
    begin = -jax.random.uniform(offset, maxval=0.99) * thickness
    return jnp.einsum(
        "iz,zyx->iyx",
        _sliced(image.shape[0], thickness, begin),
        image,
        precision=lax.Precision.HIGHEST,
    )


def kernel(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image as a sharper or softer kernel shows it: unsharp masking, in-plane.

    What a Gaussian of width `sigma` takes away is added `amount` times: -1 leaves the blurred
    image, 0 the image, and above it is sharpened, its noise too.
    """
    width, strength = jax.random.split(key)
    sigma = uniform(width, c.sigma)
    depth, height, length = image.shape
    planes = [jnp.eye(depth), gaussian(height, sigma), gaussian(length, sigma)]
    return image + uniform(strength, c.amount) * (image - separable(image, planes))


def correlated_noise(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image with Gaussian noise of a standard deviation from `sigma`, as everywhere in it.

    It is correlated over a Gaussian of a width from `length` for each axis.
    """
    amount, width, field = jax.random.split(key, 3)
    lengths = uniform(width, c.length, (3,))
    smooth = [gaussian(n, s) for n, s in zip(image.shape, lengths, strict=True)]
    # Rows of unit length: white noise keeps its variance, at the ends too.
    rows = [m / jnp.linalg.norm(m, axis=1, keepdims=True) for m in smooth]
    white = jax.random.normal(field, image.shape)
    return image + uniform(amount, c.sigma) * separable(white, rows)


def calibration(key: jax.Array, c: ConfigDict, image: jax.Array) -> jax.Array:
    """The image with HU scaled about air by a number from `factor`, plus one from `shift`."""
    scale, offset = jax.random.split(key)
    return (image - AIR) * uniform(scale, c.factor) + AIR + uniform(offset, c.shift)


# As a scan comes to be: what the detector saw, how it was reconstructed, how it is scaled.
SCANNERS: dict[str, Change] = {
    "correlated_noise": correlated_noise,
    "slices": slices,
    "kernel": kernel,
    "calibration": calibration,
}


def _sliced(n: int, thickness: jax.Array, begin: jax.Array) -> jax.Array:
    """(n, n): means over slices that begin at `begin`, in voxels, interpolated back to n voxels."""
    voxel, number = jnp.arange(n), jnp.arange(n + 1)
    low = (begin + thickness * number)[:, None]
    covered = jnp.clip(jnp.minimum(low + thickness, voxel + 1) - jnp.maximum(low, voxel), 0, 1)
    share = covered.sum(1, keepdims=True)
    last = jnp.where(share[:, 0] > LEAST, number, 0).max()
    where = jnp.clip((voxel + 0.5 - begin) / thickness - 0.5, 0, last)
    before = jnp.floor(where)
    rest = (where - before)[:, None]
    weights = (before[:, None] == number) * (1 - rest)
    weights += (jnp.minimum(before + 1, last)[:, None] == number) * rest
    return weights @ (covered / jnp.maximum(share, LEAST))
