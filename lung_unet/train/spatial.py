"""Geometric augmentation of one patch: image and labels move together.

Volumes are (D, H, W). Labels take the nearest voxel; what turns in from beyond the patch is the
patch mirrored at its faces, image and labels, as air there would be edges that no scan has.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.ndimage import map_coordinates
from ml_collections import ConfigDict

from lung_unet.train.separable import separable

Pair = tuple[jax.Array, jax.Array]  # image and labels


def flip(both: Pair, axis: int) -> Pair:
    """Both volumes mirrored along an axis."""
    image, labels = both
    return jnp.flip(image, axis), jnp.flip(labels, axis)


def transpose(both: Pair) -> Pair:
    """Both volumes with height and width exchanged: with flips, all turns by 90° of a slice."""
    image, labels = both
    return image.swapaxes(1, 2), labels.swapaxes(1, 2)


def warp(key: jax.Array, c: ConfigDict, both: Pair) -> Pair:
    """Rotation, scaling and elastic deformation in one interpolation, where any of them is drawn.

    `c` is `config.augment`. The image is interpolated linearly.
    """
    kinds = (c.rotate, c.scale, c.elastic)
    if not any(kind.probability > 0 for kind in kinds):
        return both
    chance, *draws = jax.random.split(key, 4)
    drawn = jax.random.uniform(chance, (3,)) < jnp.array([kind.probability for kind in kinds])

    def change(both: Pair) -> Pair:
        image, labels = both
        centre = (jnp.array(image.shape) - 1) / 2
        matrix = rotation(jnp.where(drawn[0], _angles(draws[0], c.rotate), 0.0))
        matrix = matrix / jnp.where(drawn[1], _factors(draws[1], c.scale), 1.0)
        grid = jnp.indices(image.shape) - centre[:, None, None, None]
        if c.elastic.probability > 0:
            grid += jnp.where(drawn[2], displacement(draws[2], c.elastic, image.shape), 0.0)
        place = jnp.tensordot(matrix, grid, 1) + centre[:, None, None, None]
        where = [mirrored(at, size) for at, size in zip(place, image.shape, strict=True)]
        return (
            map_coordinates(image, where, 1, "nearest"),
            map_coordinates(labels, where, 0, "nearest"),
        )

    return lax.cond(drawn.any(), change, lambda both: both, both)


def mirrored(place: jax.Array, size: int) -> jax.Array:
    """Positions along an axis of so many voxels, those beyond its faces mirrored to within.

    Once for both volumes: map_coordinates' own "reflect" mirrors each neighbour's index, and takes
    more than twice as long.
    """
    within = jnp.mod(place + 0.5, 2 * size)
    return jnp.minimum(within, 2 * size - within) - 0.5


def _angles(key: jax.Array, c: ConfigDict) -> jax.Array:
    low, high = c.degrees
    return jnp.deg2rad(jax.random.uniform(key, (3,), minval=low, maxval=high))


def _factors(key: jax.Array, c: ConfigDict) -> jax.Array:
    low, high = c.factor
    return jax.random.uniform(key, (1 if c.isotropic else 3,), minval=low, maxval=high)


def rotation(angles: jax.Array) -> jax.Array:
    """(3, 3) rotation about the z, then y, then x axis by angles (3,) in radians."""
    matrix = jnp.eye(3)
    for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
        cos, sin = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        turn = jnp.eye(3).at[a, a].set(cos).at[b, b].set(cos).at[a, b].set(-sin).at[b, a].set(sin)
        matrix = turn @ matrix
    return matrix


def displacement(key: jax.Array, c: ConfigDict, shape: Sequence[int]) -> jax.Array:
    """(3, D, H, W) voxels: a cubic B-spline whose control points move at random.

    They lie `spacing` voxels apart and move up to a magnitude drawn from a range. While it is below
    0.4 of the spacing nothing folds (Choi & Lee 2000, doi 10.1016/S1524-0703(00)90006-1).
    """
    size, field = jax.random.split(key)
    low, high = c.magnitude
    splines = [_spline(n, c.spacing) for n in shape]
    points = jax.random.uniform(field, (3, *(m.shape[1] for m in splines)), minval=-1)
    points *= jax.random.uniform(size, minval=low, maxval=high)
    return jnp.stack([separable(one, splines) for one in points])


def _spline(n: int, spacing: int) -> jax.Array:
    """(n, control points) weights of a uniform cubic B-spline."""
    block, u = np.divmod(np.arange(n) / spacing, 1)
    weights = np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, 0 * u, u**3]) / 6
    weights[2] = 1 - weights.sum(0)
    matrix = np.zeros((n, int(block[-1]) + 4), np.float32)
    for tap, weight in enumerate(weights):
        matrix[np.arange(n), block.astype(int) + tap] = weight
    return jnp.asarray(matrix)
