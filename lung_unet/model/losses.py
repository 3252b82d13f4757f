"""Losses of a binary segmentation: (logits, targets, weights) → float32 scalar.

All three are arrays of one shape, batch first; targets lie in 0..1 (soft targets are allowed),
weights are 0 where a voxel is ignored. Dice and Tversky are taken over the whole batch, since most
patches hold no nodule and have no Dice of their own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lung_unet.errors import InputError

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
SMOOTH = 1.0  # voxel; keeps the overlap losses defined where nothing is


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
    logits: jax.Array, targets: jax.Array, weights: jax.Array, *, alpha: float, beta: float
) -> jax.Array:
    """1 − Tversky index (Salehi et al. 2017, arXiv 1706.05721): alpha for false positives, beta for
    false negatives; at one half each it is the Dice loss."""
    probability = jax.nn.sigmoid(logits)
    hit = jnp.sum(weights * probability * targets)
    false_positive = jnp.sum(weights * probability * (1 - targets))
    false_negative = jnp.sum(weights * (1 - probability) * targets)
    half = SMOOTH / 2
    return 1 - (hit + half) / (hit + alpha * false_positive + beta * false_negative + half)


def dice(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """1 − soft Dice (Milletari et al. 2016, arXiv 1606.04797, with plain sums)."""
    return tversky(logits, targets, weights, alpha=0.5, beta=0.5)


def dice_ce(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Dice loss plus cross-entropy, as nnU-Net trains."""
    return dice(logits, targets, weights) + cross_entropy(logits, targets, weights)


def make_loss(config: ConfigDict) -> Loss:
    """The loss that `config.loss` names."""
    c = config.loss
    losses: dict[str, Loss] = {
        "cross_entropy": cross_entropy,
        "dice": dice,
        "dice_ce": dice_ce,
        "focal": lambda l, t, w: focal(l, t, w, gamma=c.focal_gamma),
        "tversky": lambda l, t, w: tversky(l, t, w, alpha=c.tversky_alpha, beta=c.tversky_beta),
    }
    if c.name not in losses:
        raise InputError(f"config.loss.name = {c.name!r}: choose one of {', '.join(losses)}")
    return losses[c.name]
