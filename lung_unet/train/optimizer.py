"""The optimizer, its learning-rate schedule and the decay of the weights' average."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lung_unet.errors import InputError

POLY_POWER = 0.9  # nnU-Net's


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """The learning rate at a step: linear warm-up, then cosine, polynomial or constant."""
    c, steps = config.optimizer, config.train.steps
    warmup = min(c.warmup_steps, steps // 2)
    rest = max(1, steps - warmup)
    shapes = {
        "cosine": lambda: optax.cosine_decay_schedule(c.learning_rate, rest),
        "poly": lambda: optax.polynomial_schedule(c.learning_rate, 0.0, POLY_POWER, rest),
        "constant": lambda: optax.constant_schedule(c.learning_rate),
    }
    if c.schedule not in shapes:
        raise InputError(
            f"config.optimizer.schedule = {c.schedule!r}: choose one of {', '.join(shapes)}"
        )
    if not warmup:
        return shapes[c.schedule]()
    rise = optax.linear_schedule(c.learning_rate / warmup, c.learning_rate, warmup)
    return optax.join_schedules([rise, shapes[c.schedule]()], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW, or SGD with Nesterov momentum and L2 decay (nnU-Net's)."""
    c = config.optimizer
    for field, possible, words in (
        ("ema", 0 <= c.ema < 1, "0 (no average) to below 1"),
        ("momentum", 0 <= c.momentum < 1, "0 to below 1"),
        ("clip_norm", c.clip_norm > 0, "above 0, inf for no clipping"),
        ("learning_rate", c.learning_rate >= 0, "0 or more"),
        ("weight_decay", c.weight_decay >= 0, "0 or more"),
    ):
        if not possible:
            raise InputError(f"config.optimizer.{field} = {c[field]}: choose {words}")
    schedule = make_schedule(config)
    clip = optax.clip_by_global_norm(c.clip_norm)
    if c.name == "adamw":
        return optax.chain(clip, optax.adamw(schedule, weight_decay=c.weight_decay))
    if c.name == "sgd":
        decay = optax.add_decayed_weights(c.weight_decay)
        return optax.chain(clip, decay, optax.sgd(schedule, c.momentum, nesterov=True))
    raise InputError(f"config.optimizer.name = {c.name!r}: choose one of adamw, sgd")


def ema_decay(config: ConfigDict, step: jax.Array) -> jax.Array:
    """What an exponential moving average of the weights keeps of itself at a step.

    Short at first, so that it forgets where training began: min(decay, (1 + step) / (10 + step)),
    as TensorFlow's tf.train.ExponentialMovingAverage has it. Averaging: Polyak & Juditsky 1992, doi
    10.1137/0330046.
    """
    return jnp.minimum(config.optimizer.ema, (1 + step) / (10 + step))
