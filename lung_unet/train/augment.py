"""Augmentation on the accelerator, inside the step: int16 HU and votes in, network input out.

One key a sample, folded from (seed, step, sample), so that a resumed run draws the same. Turns by
90° are of patches as high as wide alone.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from lung_unet.train.intensity import INTENSITY
from lung_unet.train.scanners import SCANNERS
from lung_unet.train.spatial import flip, transpose, warp

State = TypeVar("State")


def window(hu: jax.Array, window_hu: tuple[float, float]) -> jax.Array:
    """float32 HU mapped linearly from the window to -1 … 1, clipped."""
    low, high = window_hu
    return jnp.clip((hu.astype(jnp.float32) - low) * (2 / (high - low)) - 1, -1, 1)


def augment(
    hu: jax.Array, labels: jax.Array, keys: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Image float32 (batch, D, H, W, 1), in -1 … 1, and labels uint8 (batch, D, H, W) of a batch.

    hu is int16 and labels uint8, both (batch, D, H, W); keys one a sample. `config.augment` gives
    the probability and the range of each change.
    """
    c = config.augment
    square = hu.shape[2] == hu.shape[3]

    def one(sample):
        # A loop over samples, so that a rare change costs nothing where it is not drawn.
        hu, labels, key = sample
        warped, chances, changes = jax.random.split(key, 3)
        both = warp(warped, c, (window(hu, config.data.window_hu), labels))
        turns = jax.random.split(chances, 4)
        for axis in range(3):
            both = _sometimes(turns[axis], c.flip, partial(flip, axis=axis), both)
        if square:
            both = _sometimes(turns[3], c.rotate90, transpose, both)
        image, labels = both
        # A key of their own: what is drawn for the others stays what it was without them.
        scanners = jax.random.fold_in(key, 3)
        for draws, family in ((scanners, SCANNERS), (changes, INTENSITY)):
            for own, (name, change) in zip(
                jax.random.split(draws, len(family)), family.items(), strict=True
            ):
                chance, draw = jax.random.split(own)
                image = _sometimes(chance, c[name], partial(change, draw, c[name]), image)
        return jnp.clip(image, -1, 1), labels

    image, labels = lax.map(one, (hu, labels, keys))
    return image[..., None], labels


def _sometimes(
    key: jax.Array, c: ConfigDict, change: Callable[[State], State], state: State
) -> State:
    """The state, changed with `c.probability`."""
    if c.probability <= 0:
        return state
    return lax.cond(jax.random.uniform(key) < c.probability, change, lambda same: same, state)
