"""Losses of a binary segmentation: (logits, targets, weights) → float32 scalar.

All three are arrays of one shape, batch first; targets lie in 0..1 (soft targets are allowed),
weights are 0 where a voxel is ignored. Dice and Tversky are taken over the whole batch, since many
patches hold no nodule and have no Dice of their own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lung_unet.errors import InputError

Sums = Any  # a pytree of float32 scalars


@dataclasses.dataclass(frozen=True)
class Loss:
    """Callable: the loss of (logits, targets, weights), `of` some sums over their voxels.

    Sums of parts of a batch add up to those of the batch, so that a loss, and with its derivatives
    by the sums its gradient, is known of a batch that is seen in parts.
    """

    sums: Callable[[Any, jax.Array, jax.Array], Sums]
    of: Callable[[Sums], jax.Array]

    def __call__(self, logits: Any, targets: jax.Array, weights: jax.Array) -> jax.Array:
        return self.of(self.sums(logits, targets, weights))


def _negative_log_likelihood(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.nn.softplus(logits) - logits * targets


def _mean(value: Callable[[jax.Array, jax.Array], jax.Array]) -> Loss:
    """The mean of value(logits, targets) over the voxels."""
    return Loss(
        lambda l, t, w: (jnp.sum(value(l, t) * w), jnp.sum(w)),
        lambda sums: sums[0] / jnp.maximum(sums[1], 1.0),
    )


def cross_entropy() -> Loss:
    """Mean binary cross-entropy of a voxel."""
    return _mean(_negative_log_likelihood)


def focal(*, gamma: float) -> Loss:
    """Focal loss (Lin et al. 2017, arXiv 1708.02002), without its class weight."""

    def value(logits: jax.Array, targets: jax.Array) -> jax.Array:
        probability = jax.nn.sigmoid(logits)
        wrong = targets * (1 - probability) + (1 - targets) * probability
        return wrong**gamma * _negative_log_likelihood(logits, targets)

    return _mean(value)


def tversky(*, alpha: float, beta: float, smooth: float) -> Loss:
    """1 − Tversky index (Salehi et al. 2017, arXiv 1706.05721): alpha for false positives, beta for
    false negatives; at one half each it is the Dice loss. smooth, in voxels, keeps it defined where
    nothing is."""

    def sums(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
        probability = jax.nn.sigmoid(logits)
        hit = jnp.sum(weights * probability * targets)
        false_positive = jnp.sum(weights * probability * (1 - targets))
        false_negative = jnp.sum(weights * (1 - probability) * targets)
        return hit, false_positive, false_negative

    def of(sums: Sums) -> jax.Array:
        hit, false_positive, false_negative = sums
        half = smooth / 2
        return 1 - (hit + half) / (hit + alpha * false_positive + beta * false_negative + half)

    return Loss(sums, of)


def dice(*, smooth: float) -> Loss:
    """1 − soft Dice (Milletari et al. 2016, arXiv 1606.04797, with plain sums)."""
    return tversky(alpha=0.5, beta=0.5, smooth=smooth)


def nodule_dice(*, smooth: float) -> Loss:
    """1 − the mean soft Dice of the patches that hold a nodule, where a small one counts as much as
    a large one. What is found in other patches costs nothing: add another loss."""

    def sums(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
        voxels = tuple(range(1, logits.ndim))
        probability = jax.nn.sigmoid(logits)
        hit = jnp.sum(weights * probability * targets, voxels)
        total = jnp.sum(weights * (probability + targets), voxels)
        holds = jnp.any(weights * targets > 0, voxels).astype(jnp.float32)
        return jnp.sum(holds * (2 * hit + smooth) / (total + smooth)), jnp.sum(holds)

    return Loss(sums, lambda sums: 1 - sums[0] / jnp.maximum(sums[1], 1))


def both(a: Loss, b: Loss) -> Loss:
    """The sum of two losses."""
    return Loss(
        lambda *voxels: (a.sums(*voxels), b.sums(*voxels)),
        lambda sums: a.of(sums[0]) + b.of(sums[1]),
    )


def make_loss(config: ConfigDict) -> Loss:
    """The loss that `config.loss` names; dice_ce is nnU-Net's sum of the two, nodule_dice_ce that
    and the Dice of each nodule's patch.

    Raises:
      InputError: there is none of this name, or a number of one cannot be.
    """
    c = config.loss
    numbers = {
        "cross_entropy": (), "focal": ("focal_gamma",),
        "tversky": ("tversky_alpha", "tversky_beta", "smooth"),
    }  # fmt: skip
    for name in numbers.get(c.name, ("smooth",)):
        if c[name] < 0:
            raise InputError(f"config.loss.{name} = {c[name]:g}: choose 0 or more")
    if c.name == "focal" and 0 < c.focal_gamma < 1:  # infinite gradient where all is right
        raise InputError(f"config.loss.focal_gamma = {c.focal_gamma:g}: choose 0, or 1 or more")
    dice_ce = both(dice(smooth=c.smooth), cross_entropy())
    losses = {
        "cross_entropy": cross_entropy(),
        "dice": dice(smooth=c.smooth),
        "dice_ce": dice_ce,
        "nodule_dice_ce": both(nodule_dice(smooth=c.smooth), dice_ce),
        "focal": focal(gamma=c.focal_gamma),
        "tversky": tversky(alpha=c.tversky_alpha, beta=c.tversky_beta, smooth=c.smooth),
    }
    if c.name not in losses:
        raise InputError(f"config.loss.name = {c.name!r}: choose one of {', '.join(losses)}")
    return losses[c.name]


def at_all_levels(loss: Loss) -> Loss:
    """The loss of a list of logits at falling resolutions, finest first: the mean of `loss` with
    weights 1/2^level, whatever the strides.

    Deep supervision as in nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): targets of
    a level are those of the nearest voxel. So are weights: what is ignored there is ignored here.
    """

    def sums(levels: list[jax.Array], targets: jax.Array, weights: jax.Array) -> Sums:
        return [
            loss.sums(logits, _nearest(targets, logits.shape), _nearest(weights, logits.shape))
            for logits in levels
        ]

    def of(sums: Sums) -> jax.Array:
        total, whole = jnp.zeros(()), 0.0
        for level, of_level in enumerate(sums):
            share = 0.5**level
            total += share * loss.of(of_level)
            whole += share
        return total / whole

    return Loss(sums, of)


def _nearest(volume: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Of a volume (batch, D, H, W) as many voxels as shape has, each from the middle of its block
    (the upper of two)."""
    b, d, h, w = shape
    z, y, x = (n // m for n, m in zip(volume.shape[1:], shape[1:], strict=True))
    # A strided slice would gather a sharded depth; blocks stay where they are.
    blocks = volume.reshape(b, d, z, h, y, w, x)
    return blocks[:, :, z // 2, :, y // 2, :, x // 2]
