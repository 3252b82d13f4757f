"""Losses of a binary segmentation: (logits, targets, weights) → float32 scalar.

All three are arrays of one shape, batch first; targets lie in 0..1 (soft targets are allowed),
weights are 0 where a voxel is ignored. Dice and Tversky are taken over the whole batch, since most
patches hold no nodule and have no Dice of their own.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lung_unet.errors import InputError

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _negative_log_likelihood(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.nn.softplus(logits) - logits * targets


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of a voxel."""
    return _mean(_negative_log_likelihood(logits, targets), weights)


def focal(logits: jax.Array, targets: jax.Array, weights: jax.Array, *, gamma: float) -> jax.Array:
    """Focal loss (Lin et al. 2017, arXiv 1708.02002), without its class weight."""
    probability = jax.nn.sigmoid(logits)
    wrong = targets * (1 - probability) + (1 - targets) * probability
    return _mean(wrong**gamma * _negative_log_likelihood(logits, targets), weights)


def tversky(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    alpha: float,
    beta: float,
    smooth: float,
) -> jax.Array:
    """1 − Tversky index (Salehi et al. 2017, arXiv 1706.05721): alpha for false positives, beta for
    false negatives; at one half each it is the Dice loss. smooth, in voxels, keeps it defined where
    nothing is."""
    probability = jax.nn.sigmoid(logits)
    hit = jnp.sum(weights * probability * targets)
    false_positive = jnp.sum(weights * probability * (1 - targets))
    false_negative = jnp.sum(weights * (1 - probability) * targets)
    half = smooth / 2
    return 1 - (hit + half) / (hit + alpha * false_positive + beta * false_negative + half)


def dice(logits: jax.Array, targets: jax.Array, weights: jax.Array, *, smooth: float) -> jax.Array:
    """1 − soft Dice (Milletari et al. 2016, arXiv 1606.04797, with plain sums)."""
    return tversky(logits, targets, weights, alpha=0.5, beta=0.5, smooth=smooth)


def make_loss(config: ConfigDict) -> Loss:
    """The loss that `config.loss` names; dice_ce is nnU-Net's sum of the two."""
    c = config.loss
    losses: dict[str, Loss] = {
        "cross_entropy": cross_entropy,
        "dice": lambda l, t, w: dice(l, t, w, smooth=c.smooth),
        "dice_ce": lambda l, t, w: dice(l, t, w, smooth=c.smooth) + cross_entropy(l, t, w),
        "focal": lambda l, t, w: focal(l, t, w, gamma=c.focal_gamma),
        "tversky": lambda l, t, w: tversky(
            l, t, w, alpha=c.tversky_alpha, beta=c.tversky_beta, smooth=c.smooth
        ),
    }
    if c.name not in losses:
        raise InputError(f"config.loss.name = {c.name!r}: choose one of {', '.join(losses)}")
    return losses[c.name]


def at_all_levels(
    loss: Loss, levels: Sequence[jax.Array], targets: jax.Array, weights: jax.Array
) -> jax.Array:
    """The loss of logits at halving resolutions, finest first: the mean with weights 1/2^level.

    Deep supervision as in nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): targets of
    a level are those of the nearest voxel. So are weights: what is ignored there is ignored here.
    """
    total, whole = jnp.zeros(()), 0.0
    for level, logits in enumerate(levels):
        share, step = 0.5**level, 2**level
        total += share * loss(logits, _nearest(targets, step), _nearest(weights, step))
        whole += share
    return total / whole


def _nearest(volume: jax.Array, step: int) -> jax.Array:
    """Every step-th voxel of (batch, D, H, W), from the middle of its block (the upper of two)."""
    b, *size = volume.shape
    d, h, w = (n // step for n in size)
    # A strided slice would gather a sharded depth; blocks stay where they are.
    blocks = volume.reshape(b, d, step, h, step, w, step)
    return blocks[:, :, step // 2, :, step // 2, :, step // 2]
