"""Every convolution of the model: exact, through the fastest formulation of each backend.

Arrays are (batch, depth, height, width, channel), kernels (depth, height, width, in, out).
Accelerators take ``lax.conv_general_dilated``; the CPU takes `conv_cpu.py`.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array, lax

from lung_unet.model import conv_cpu
from lung_unet.model.conv_cpu import accumulator, depth_to_space, low_padding

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")
_EVERYWHERE = contextvars.ContextVar("_EVERYWHERE", default=False)


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


def conv3d_transpose(x: Array, kernel: Array) -> Array:
    """Returns the transposed convolution of x at a stride of the kernel's size.

    x is (B, D, H, W, Cin), kernel (kd, kh, kw, Cin, Cout) with 1 or 2 taps an axis. The result, (B,
    D kd, H kh, W kw, Cout), holds x[z, y, x] @ kernel[i, j, k] at (z kd + i, y kh + j, x kw + k).
    """
    return _conv3d_transpose(x, kernel.astype(x.dtype))


@jax.named_scope("pool")
def max_pool3d(x: Array, window: Sequence[int]) -> Array:
    """Returns the maxima of x over blocks of window, (B, D / wd, H / wh, W / ww, C).

    Window divides the axes of x (B, D, H, W, C). The gradient of a block goes to the voxels that
    attain its maximum. It is the gradient of pairwise maxima, which compares voxels with one
    another; that of `max` compares them with the result, and where XLA computes x once more and
    rounds it otherwise, none is equal and the gradient is 0 / 0.
    """
    for axis, n in enumerate(window, 1):
        blocks = x.reshape(*x.shape[:axis], x.shape[axis] // n, n, *x.shape[axis + 1 :])
        x = reduce(jnp.maximum, (lax.index_in_dim(blocks, i, axis + 1, False) for i in range(n)))
    return x


@jax.named_scope("pool")
def mean_pool3d(x: Array, window: Sequence[int]) -> Array:
    """Returns the means of x over blocks of window, as `max_pool3d` the maxima."""
    b, d, h, w, c = x.shape
    wd, wh, ww = window
    return x.reshape(b, d // wd, wd, h // wh, wh, w // ww, ww, c).mean((2, 4, 6))


@contextlib.contextmanager
def accelerator_convolutions() -> Iterator[None]:
    """What is traced within takes the accelerators' formulation on the CPU as well.

    To count their work there: XLA counts the loops of the CPU's formulation once.
    """
    token = _EVERYWHERE.set(True)
    try:
        yield
    finally:
        _EVERYWHERE.reset(token)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv3d(x, kernel, strides):
    default = partial(_lax_conv, strides=strides)
    cpu = default if _EVERYWHERE.get() else partial(conv_cpu.convolve, strides=strides)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _conv3d_forward(x, kernel, strides):
    return _conv3d(x, kernel, strides), (x, kernel)


def _conv3d_backward(strides, residuals, g):
    default = partial(_lax_gradients, strides=strides)
    cpu = default if _EVERYWHERE.get() else partial(conv_cpu.gradients, strides=strides)
    return lax.platform_dependent(*residuals, g, cpu=cpu, default=default)


_conv3d.defvjp(_conv3d_forward, _conv3d_backward)


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
    padding = [
        (0, 0) if size == step == 2 else (low_padding(size), size - 1 - low_padding(size))
        for size, step in zip(kernel.shape[:3], strides, strict=True)
    ]
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _lax_gradients(x, kernel, g, strides):
    return jax.vjp(partial(_lax_conv, strides=strides), x, kernel)[1](g)
