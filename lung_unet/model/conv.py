"""Every convolution of the model: exact, through the fastest formulation of each backend.

Arrays are (batch, depth, height, width, channel), kernels (depth, height, width, in, out).
Accelerators take ``lax.conv_general_dilated``; the CPU takes `conv_cpu.py`.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lung_unet.model import conv_cpu
from lung_unet.model.backend import by_backend
from lung_unet.model.conv_cpu import accumulator, depth_to_space, low_padding

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")
FULL = 8  # channels


def conv3d(x: Array, kernel: Array, stride: int | Sequence[int] = 1) -> Array:
    """Returns the convolution of x with kernel, (B, D', H', W', Cout) in the type of x.

    x is (B, D, H, W, Cin), kernel (kd, kh, kw, Cin, Cout) with 1, 2 or 3 taps an axis, stride 1 or
    2, one for all axes or one each. 3 taps are padded by one voxel on both sides, at stride 2 as
    well, as PyTorch and nnU-Net do (``lax``'s "SAME" pads an even axis only at its end). 2 taps
    are padded by one voxel at the end at stride 1 and not at all at stride 2. An axis of n voxels
    becomes ceil(n / stride), with 2 taps at stride 2 floor(n / 2).
    """
    strides = (stride,) * 3 if isinstance(stride, int) else tuple(stride)
    return _conv3d(x, kernel.astype(x.dtype), strides)


def conv3d_of_parts(parts: Sequence[Array], kernel: Array) -> Array:
    """Returns `conv3d` of arrays (B, D, H, W, C_i) joined along their channels.

    Elsewhere than on the CPU each part's gradient is a convolution of its own: slices of one array
    would be copied before they are used.
    """
    return _conv3d_of_parts(tuple(parts), kernel.astype(parts[0].dtype))


def conv3d_transpose(x: Array, kernel: Array) -> Array:
    """Returns the transposed convolution of x at a stride of the kernel's size.

    x is (B, D, H, W, Cin), kernel (kd, kh, kw, Cin, Cout) with 1 or 2 taps an axis. The result, (B,
    D kd, H kh, W kw, Cout), holds x[z, y, x] @ kernel[i, j, k] at (z kd + i, y kh + j, x kw + k).
    """
    return _conv3d_transpose(x, kernel.astype(x.dtype))


@jax.named_scope("pool")
def max_pool3d(x: Array, window: Sequence[int]) -> Array:
    """Returns the maxima of x over blocks of window, (B, D / wd, H / wh, W / ww, C).

    Window, 1 or 2 an axis, divides the axes of x (B, D, H, W, C). The gradient of a block goes to
    the voxels that attain its maximum. It is the gradient of pairwise maxima, which compares voxels
    with one another; that of `max` compares them with the result, and where XLA computes x once
    more and rounds it otherwise, none is equal and the gradient is 0 / 0.
    """
    return _max_pool3d(x, tuple(window))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool3d(x, window):
    return _pairwise_maxima(x, window)


def _max_pool3d_forward(x, window):
    def cpu(x):
        y = _pairwise_maxima(x, window)
        return y, jnp.zeros(y.shape, jnp.uint8)

    y, choice = by_backend(x, cpu=cpu, default=partial(pool_choice, window=window))
    return y, (x, choice)


def _max_pool3d_backward(window, residuals, g):
    def cpu(x, choice, g):
        del choice  # computed again: XLA sees that it is the same
        return jax.vjp(lambda x: _pairwise_maxima(x, window), x)[1](g)[0]

    def default(x, choice, g):
        return pool_gradient(choice, g, window)

    return (by_backend(*residuals, g, cpu=cpu, default=default),)


_max_pool3d.defvjp(_max_pool3d_forward, _max_pool3d_backward)


def _pairwise_maxima(x, window):
    for axis, n in enumerate(window, 1):
        blocks = x.reshape(*x.shape[:axis], x.shape[axis] // n, n, *x.shape[axis + 1 :])
        x = reduce(jnp.maximum, (lax.index_in_dim(blocks, i, axis + 1, False) for i in range(n)))
    return x


@jax.named_scope("pool")
def pool_choice(x: Array, window: Sequence[int]) -> tuple[Array, Array]:
    """(maxima of x as `max_pool3d`, uint8 of their shape whose bits say which voxels attain them).

    The bits are in the order of `itertools.product` over the window.
    """
    voxels = _voxels_of_blocks(x, window)
    most = reduce(jnp.maximum, voxels)
    bits = [(v == most).astype(jnp.uint8) << i for i, v in enumerate(voxels)]
    return most, reduce(jnp.bitwise_or, bits)


@jax.named_scope("pool")
def pool_gradient(choice: Array, g: Array, window: Sequence[int]) -> Array:
    """The gradient of what was pooled, by the choice of `pool_choice` and the gradient of maxima.

    Of several that attain the maximum each has the share that pairwise maxima give it: halves along
    each axis, last first, where both halves attain it.
    """
    own, others = _places(tuple(window))
    blocks = (slice(None), slice(None), None, slice(None), None, slice(None), None)
    chosen = choice[blocks]
    share = _share(chosen, own, others).astype(g.dtype)
    b, *size, c = g.shape
    size = [n * step for n, step in zip(size, window, strict=True)]
    return (share * g[blocks]).reshape(b, *size, c)


@jax.named_scope("pool")
def pool_weighted(choice: Array, x: Array, window: Sequence[int]) -> Array:
    """Sums over each block of x times the share of `pool_gradient`, in the shape of choice."""
    own, others = _places(tuple(window))
    voxels = _voxels_of_blocks(x, window)
    total = jnp.zeros(choice.shape, x.dtype)
    for i, voxel in enumerate(voxels):
        bits = own.flat[i], [other.flat[i] for other in others]
        total += voxel * _share(choice, *bits).astype(x.dtype)
    return total


def _share(chosen, own, others):
    share = jnp.where(chosen & own != 0, 1.0, 0.0)
    for other in others:
        share *= jnp.where(chosen & other != 0, 0.5, 1.0)
    return share


def _voxels_of_blocks(x: Array, window: Sequence[int]) -> list[Array]:
    """The voxels of each block of window, in the order of `itertools.product`."""
    b, d, h, w, c = x.shape
    wd, wh, ww = window
    blocks = x.reshape(b, d // wd, wd, h // wh, wh, w // ww, ww, c)
    return [blocks[:, :, i, :, j, :, k] for i, j, k in product(range(wd), range(wh), range(ww))]


@cache
def _places(window: tuple[int, int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Bits of a choice, uint8 (1, 1, wd, 1, wh, 1, ww, 1) by a voxel's place in its block: its own,
    and for each axis those of the other half in the comparison of pairs along it.

    Pairs are compared along the depth first, so halves are of one place in all later axes.
    """
    places = list(product(*map(range, window)))
    shape = (1, 1, window[0], 1, window[1], 1, window[2], 1)

    def bits(wanted: Callable[[tuple[int, ...], tuple[int, ...]], bool]) -> np.ndarray:
        sums = [sum(1 << i for i, other in enumerate(places) if wanted(p, other)) for p in places]
        return np.array(sums, np.uint8).reshape(shape)

    def halves(axis: int) -> np.ndarray:
        return bits(lambda p, q: p[axis] != q[axis] and p[axis + 1 :] == q[axis + 1 :])

    return bits(lambda p, q: p == q), [halves(axis) for axis in range(3)]


@jax.named_scope("pool")
def mean_pool3d(x: Array, window: Sequence[int]) -> Array:
    """Returns the means of x over blocks of window, as `max_pool3d` the maxima."""
    b, d, h, w, c = x.shape
    wd, wh, ww = window
    return x.reshape(b, d // wd, wd, h // wh, wh, w // ww, ww, c).mean((2, 4, 6))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv3d(x, kernel, strides):
    default = partial(_lax_conv, strides=strides)
    return by_backend(x, kernel, cpu=partial(conv_cpu.convolve, strides=strides), default=default)


def _conv3d_forward(x, kernel, strides):
    return _conv3d(x, kernel, strides), (x, kernel)


def _conv3d_backward(strides, residuals, g):
    cpu = partial(conv_cpu.gradients, strides=strides)
    return by_backend(*residuals, g, cpu=cpu, default=partial(_lax_gradients, strides=strides))


_conv3d.defvjp(_conv3d_forward, _conv3d_backward)


@jax.custom_vjp
def _conv3d_of_parts(parts, kernel):
    return _conv3d(jnp.concatenate(parts, -1), kernel, (1, 1, 1))


def _conv3d_of_parts_forward(parts, kernel):
    joined = jnp.concatenate(parts, -1)
    like = tuple(jnp.zeros((0, part.shape[-1])) for part in parts)  # their channels
    return _conv3d(joined, kernel, (1, 1, 1)), (joined, kernel, like)


def _conv3d_of_parts_backward(residuals, g):
    joined, kernel, like = residuals
    ends = np.cumsum([part.shape[-1] for part in like])[:-1].tolist()

    def cpu(joined, kernel, g):
        dx, dw = conv_cpu.gradients(joined, kernel, g, (1, 1, 1))
        return tuple(jnp.split(dx, ends, -1)), dw

    def default(joined, kernel, g):
        _, dw = _lax_gradients(joined, kernel, g, (1, 1, 1))
        parts = zip(jnp.split(kernel, ends, 3), jnp.split(joined, ends, -1), strict=True)
        return tuple(_lax_gradients(part, k, g, (1, 1, 1))[0] for k, part in parts), dw

    return by_backend(joined, kernel, g, cpu=cpu, default=default)


_conv3d_of_parts.defvjp(_conv3d_of_parts_forward, _conv3d_of_parts_backward)


@jax.custom_vjp
def _conv3d_transpose(x, kernel):
    *size, cin, _ = kernel.shape
    columns = kernel.transpose(3, 0, 1, 2, 4).reshape(cin, -1)
    y = jnp.matmul(x, columns, preferred_element_type=accumulator(x)).astype(x.dtype)
    return depth_to_space(y, size)


def _conv3d_transpose_forward(x, kernel):
    return _conv3d_transpose(x, kernel), (x, kernel)


def _conv3d_transpose_backward(residuals, g):
    x, kernel = residuals
    dx, transpose = jax.vjp(lambda k: _conv3d(g, k, kernel.shape[:3]), kernel.swapaxes(3, 4))
    return dx, transpose(x)[0].swapaxes(3, 4)


_conv3d_transpose.defvjp(_conv3d_transpose_forward, _conv3d_transpose_backward)


def _lax_conv(x, kernel, strides):
    *taps, cin, cout = kernel.shape
    if cout == 1 and taps == [1, 1, 1] and strides == (1, 1, 1):  # no convolution for one product
        wide = accumulator(x)
        product = x.astype(wide) * kernel[0, 0, 0, :, 0].astype(wide)
        return jnp.sum(product, -1, keepdims=True).astype(x.dtype)
    if cin == 1 and taps[2] == 3 and strides[2] == 1:
        x, kernel = _neighbours_as_channels(x, kernel)
    padding = [
        (0, 0) if size == step == 2 else (low_padding(size), size - 1 - low_padding(size))
        for size, step in zip(kernel.shape[:3], strides, strict=True)
    ]
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _neighbours_as_channels(x, kernel):
    """One channel as those of three neighbours along the width, and zeros up to FULL channels.

    Matrix units take at least so many channels: one costs as much.
    """
    padded = jnp.pad(x, [(0, 0)] * 3 + [(1, 1), (0, 0)])
    width = x.shape[3]
    near = [lax.slice_in_dim(padded, i, i + width, axis=3) for i in range(3)]
    zeros = jnp.zeros((*x.shape[:-1], FULL - 3), x.dtype)
    kernel = jnp.pad(kernel.transpose(0, 1, 3, 2, 4), [(0, 0)] * 3 + [(0, FULL - 3), (0, 0)])
    return jnp.concatenate([*near, zeros], -1), kernel


def _lax_gradients(x, kernel, g, strides):
    if x.shape[-1] == 1:  # so that what is made of one channel is not kept from the way forward
        x, g = lax.optimization_barrier((x, g))
    return jax.vjp(partial(_lax_conv, strides=strides), x, kernel)[1](g)
