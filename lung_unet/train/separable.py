"""Linear operators that act along each axis alone, as matrix products: fast on every backend."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def separable(volume: jax.Array, matrices: Sequence[jax.Array]) -> jax.Array:
    """A volume (D, H, W) with a matrix, (n, D), (n, H), (n, W), applied along each axis."""
    for matrix, axes in zip(matrices, ("iz,zyx->iyx", "iy,zyx->zix", "ix,zyx->zyi"), strict=True):
        volume = jnp.einsum(axes, matrix, volume, precision=lax.Precision.HIGHEST)
    return volume
