"""Norm, activation and what follows them as one operation, for accelerators' memory bandwidth.

Outside of convolutions a training step is bound by the bytes it moves. Here each activation is read
once for its statistics and once to be normalised; backward, once for the sums and once for the
gradient. What follows a norm is computed anew from the convolution's result rather than stored: the
activation, the head's product, the gradient of pooling. Left to itself, XLA stores what both passes
of the gradient use. On the CPU the plain formulas and their derivatives are taken.

Arrays are (batch, depth, height, width, channel).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lung_unet.model.backend import by_backend
from lung_unet.model.conv import conv3d, max_pool3d, pool_choice, pool_gradient, pool_weighted

LEAK = 0.01
EPSILON = 1e-5
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, LEAK),
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}
# f(x) = x f'(x), and f' is the same for all x of one f(x).
HOMOGENEOUS = (None, "relu", "leaky_relu")
_VOXELS = (1, 2, 3)


def activate(name: str | None, x: Array) -> Array:
    """The activation of x; None is none."""
    return x if name is None else ACTIVATIONS[name](x)


class Follows(NamedTuple):
    """What follows the activation z: nothing, the head (`heads`), or also pooling by `pool`.

    (z, kernel, bias) → logits float32 (batch, D, H, W, 1), or z → (z, its maxima), or z → z.
    """

    heads: bool = False
    pool: tuple[int, int, int] | None = None


def normalise(
    x: Array,
    scale: Array,
    bias: Array,
    *head: Array,
    groups: int,
    activation: str | None,
    follows: Follows,
) -> Any:
    """What follows the activation of x, normalised in groups of its channels.

    Statistics are float32. scale and bias are (channels,); head are a kernel (1, 1, 1, channels, 1)
    and a bias (1,).
    """
    with jax.named_scope("norm"):
        return _normalise(groups, activation, follows, x, scale, bias, head)


def _plain(groups, activation, follows, x, scale, bias, head):
    wide = x.astype(jnp.float32)
    return _after(groups, activation, follows, x.dtype, wide, *_statistics(wide), scale, bias, head)


def _after(groups, activation, follows, dtype, wide, mean, square, scale, bias, head):
    """The result, once statistics are known."""
    a, b = _affine(groups, mean, square, scale, bias)
    z = activate(activation, _apply_affine(wide, a, b).astype(dtype))
    if follows.heads:
        kernel, offset = (p.astype(dtype) for p in head)
        return (conv3d(z, kernel) + offset).astype(jnp.float32)
    return z if follows.pool is None else (z, max_pool3d(z, follows.pool))


def _statistics(wide: Array) -> tuple[Array, Array]:
    return jnp.mean(wide, _VOXELS), jnp.mean(wide * wide, _VOXELS)


def _affine(groups: int, mean: Array, square: Array, scale: Array, bias: Array):
    """(factor, summand) (batch, channels) that normalise, of the means of x and x²."""
    channels = mean.shape[-1]
    if groups < channels:
        members = channels // groups
        mean, square = (
            jnp.repeat(v.reshape(-1, groups, members).mean(-1), members, 1) for v in (mean, square)
        )
    variance = jnp.maximum(square - mean * mean, 0.0)
    factor = scale * lax.rsqrt(variance + EPSILON)
    return factor, bias - mean * factor


def _apply_affine(wide: Array, a: Array, b: Array) -> Array:
    where = (slice(None), None, None, None)
    return wide * a[where] + b[where]


def _fused(groups, activation, follows, x, scale, bias, head):
    """(result, mean of x, of x², what is kept of the pooling)."""
    wide = x.astype(jnp.float32)
    mean, square = _statistics(wide)
    a, b = _affine(groups, mean, square, scale, bias)
    normalised = _apply_affine(wide, a, b).astype(x.dtype)
    z = activate(activation, normalised)
    if follows.heads:
        product = jnp.sum(z.astype(jnp.float32) * _weights(head, x.dtype), -1, keepdims=True)
        return product + head[1].astype(x.dtype), mean, square, None
    if follows.pool is None:
        return z, mean, square, None
    pooled, choice = pool_choice(z, follows.pool)
    slope = _slope(activation, normalised)
    moments = pool_weighted(choice, slope * wide, follows.pool).astype(x.dtype)
    if activation in HOMOGENEOUS:
        slopes = pooled  # which have the slopes of the voxels that attain them
    else:
        slopes = pool_weighted(choice, slope, follows.pool).astype(x.dtype)
    # Or XLA keeps float32.
    moments, slopes = lax.optimization_barrier((moments, slopes))
    return (z, pooled), mean, square, Pooled(choice, slopes, moments)


def _slope(activation: str | None, x: Array) -> Array:
    slope = jax.vjp(partial(activate, activation), x)[1](jnp.ones_like(x))[0]
    return slope.astype(jnp.float32)


class Pooled(NamedTuple):
    """What the gradient of pooling needs, in the shape of the maxima: which voxels attain them, and
    sums of those voxels' slopes of the activation, and of these times x. Instead of the slopes the
    maxima themselves, where these have them."""

    choice: Array
    slopes: Array
    moments: Array


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _normalise(groups, activation, follows, x, scale, bias, head):
    plain = partial(_plain, groups, activation, follows)
    fused = partial(_fused, groups, activation, follows)
    return by_backend(x, scale, bias, head, cpu=plain, default=lambda *args: fused(*args)[0])


def _forward(groups, activation, follows, x, scale, bias, head):
    def plain(x, scale, bias, head):
        wide = x.astype(jnp.float32)
        statistics = _statistics(wide)
        then = groups, activation, follows, x.dtype
        result = _after(*then, wide, *statistics, scale, bias, head)
        pooled = None
        if follows.pool is not None:
            nothing = jnp.zeros_like(result[1])
            pooled = Pooled(nothing.astype(jnp.uint8), nothing, nothing)
        return result, *statistics, pooled

    fused = partial(_fused, groups, activation, follows)
    result, *saved = by_backend(x, scale, bias, head, cpu=plain, default=fused)
    return result, (x, scale, bias, head, *saved)


def _backward(groups, activation, follows, residuals, g):
    def plain(x, scale, bias, head, mean, square, pooled, g):
        del pooled  # computed again: XLA sees that it is the same
        wide = x.astype(jnp.float32)
        after = partial(_after, groups, activation, follows, x.dtype)
        transpose = jax.vjp(after, wide, mean, square, scale, bias, head)[1]
        dwide, dmean, dsquare, *others = transpose(g)
        voxels, where = x.shape[1] * x.shape[2] * x.shape[3], (slice(None), None, None, None)
        of_square = wide * (dsquare / voxels)[where]
        # In the order in which the derivative of the plain formulas adds.
        dwide = dwide + of_square + of_square + (dmean / voxels)[where]
        return dwide.astype(x.dtype), *others

    two_passes = partial(_two_passes, groups, activation, follows)
    return by_backend(*residuals, g, cpu=plain, default=two_passes)


_normalise.defvjp(_forward, _backward)


def _two_passes(groups, activation, follows, x, scale, bias, head, mean, square, pooled, g):
    (a, b), transpose = jax.vjp(partial(_affine, groups), mean, square, scale, bias)

    def of_affine(x, a, b, dz):
        """The gradient of the normalised x, float32, by that of the activation."""
        normalised = _apply_affine(x.astype(jnp.float32), a, b).astype(x.dtype)
        of_activation = jax.vjp(partial(activate, activation), normalised)[1]
        return of_activation(dz)[0].astype(jnp.float32)

    # First pass: what is summed over voxels.
    wide = x.astype(jnp.float32)
    if follows.heads:
        dz = jnp.broadcast_to(g, x.shape).astype(x.dtype)
    else:
        dz = g if follows.pool is None else g[0]
    dn = of_affine(x, a, b, dz)
    da, db = jnp.sum(dn * wide, _VOXELS), jnp.sum(dn, _VOXELS)
    dhead: tuple[Array, ...] = ()
    if follows.heads:
        if activation in HOMOGENEOUS:  # z is the normalised x times the activation's slope
            dkernel = a * da + b * db
        else:
            z = activate(activation, _apply_affine(wide, a, b).astype(x.dtype))
            dkernel = jnp.sum(z.astype(jnp.float32) * g, _VOXELS)
        dhead = dkernel, jnp.sum(g, _VOXELS)
        weights = _weights(head, x.dtype)
        da, db = da * weights, db * weights
    if follows.pool is not None:  # its part is summed where it is small
        of_pooled = g[1].astype(jnp.float32)
        homogeneous = activation in HOMOGENEOUS
        slopes = _slope(activation, pooled.slopes) if homogeneous else pooled.slopes
        da += jnp.sum(of_pooled * pooled.moments.astype(jnp.float32), _VOXELS)
        db += jnp.sum(of_pooled * slopes.astype(jnp.float32), _VOXELS)
    # Or XLA makes one more reduction, over samples too, of each that is then summed over samples.
    da, db, dhead = lax.optimization_barrier((da, db, dhead))
    dmean, dsquare, dscale, dbias = transpose((da, db))
    dhead = tuple(
        d.sum(0).reshape(p.shape).astype(p.dtype) for d, p in zip(dhead, head, strict=True)
    )
    # Second pass. The barrier keeps XLA from storing what both use.
    x, a, b, pooled, g, dmean, dsquare = lax.optimization_barrier(
        (x, a, b, pooled, g, dmean, dsquare)
    )
    if follows.heads:
        dz = (g * _weights(head, x.dtype)).astype(x.dtype)
    elif follows.pool is None:
        dz = g
    else:
        dz = g[0] + pool_gradient(pooled.choice, g[1], follows.pool)
    voxels = x.shape[1] * x.shape[2] * x.shape[3]
    where = (slice(None), None, None, None)
    dx = of_affine(x, a, b, dz) * a[where] + (dmean / voxels)[where]
    dx += x.astype(jnp.float32) * (2 * dsquare / voxels)[where]
    return dx.astype(x.dtype), dscale, dbias, dhead


def _weights(head, dtype):
    """What the head multiplies channels with, float32, rounded as in the product."""
    return head[0].astype(dtype).astype(jnp.float32)[0, 0, 0, :, 0]
