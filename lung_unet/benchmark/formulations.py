"""The same convolution in several formulations, to find the fastest of a device by shape.

Each is a function (x, kernel, stride, transposed) → y. Kernels are (z, y, x, in, out). Arrays are
(batch, z, y, x, channel), or channel second for the formulations named in `CHANNEL_SECOND`: a
network would hold them so, hence no transposition is timed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lung_unet.model.conv import conv3d, conv3d_transpose
from lung_unet.model.levels import Axes

Formulation = Callable[..., jax.Array]
CHANNEL_SECOND = ("lax NCDHW",)


def ours(x: jax.Array, kernel: jax.Array, stride: Axes, transposed: bool) -> jax.Array:
    """What the network runs."""
    return conv3d_transpose(x, kernel) if transposed else conv3d(x, kernel, stride)


def plain(x: jax.Array, kernel: jax.Array, stride: Axes, transposed: bool) -> jax.Array:
    """``lax``'s convolution."""
    return _lax(x, kernel, stride, transposed, ("NDHWC", "DHWIO", "NDHWC"))


def channel_second(x: jax.Array, kernel: jax.Array, stride: Axes, transposed: bool) -> jax.Array:
    """``lax``'s convolution of an array whose channels come second."""
    kernel = kernel.transpose(4, 3, 0, 1, 2)
    return _lax(x, kernel, stride, transposed, ("NCDHW", "OIDHW", "NCDHW"))


def depth_taps(x: jax.Array, kernel: jax.Array, stride: Axes, transposed: bool) -> jax.Array:
    """A sum over depth taps of 2D convolutions of all slices; transposed, a product a tap."""
    b, depth = x.shape[:2]
    taps = kernel.shape[0]
    if transposed:
        planes = [_plane(x, tap, stride[1:], transposed=True) for tap in kernel]
        y = jnp.stack(planes, 2)
        return y.reshape(b, depth * taps, *y.shape[3:])
    low = (taps - 1) // 2
    x = jnp.pad(x, ((0, 0), (low, taps - 1 - low), (0, 0), (0, 0), (0, 0)))
    slices = [x[:, tap : tap + depth : stride[0]] for tap in range(taps)]
    return sum(_plane(v, tap, stride[1:]) for v, tap in zip(slices, kernel, strict=True))


FORMULATIONS: dict[str, Formulation] = {
    "conv3d": ours,
    "lax NDHWC": plain,
    "lax NCDHW": channel_second,
    "2D a depth tap": depth_taps,
}


def _lax(x, kernel, stride, transposed, layout):
    spatial = tuple(layout[1].index(axis) for axis in "DHW")
    if transposed:
        # A transposed convolution is one with the kernel turned around, of x with zeros between.
        return lax.conv_general_dilated(
            x, jnp.flip(kernel, spatial), (1,) * 3, [(n - 1,) * 2 for n in stride], stride,
            dimension_numbers=layout,
        )  # fmt: skip
    size = kernel.shape[spatial[0]]
    low = (size - 1) // 2
    padding = [(low, size - 1 - low)] * 3
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=layout)


def _plane(x, kernel, stride, transposed=False):
    """A 2D convolution, kernel (y, x, in, out), of all slices of x (batch, z, y, x, channel)."""
    b, depth, h, w, c = x.shape
    layout = ("NHWC", "HWIO", "NHWC")
    flat, size = x.reshape(-1, h, w, c), kernel.shape[0]
    if transposed:
        y = jnp.einsum("nhwi,yxio->nhywxo", flat, kernel)
        return y.reshape(b, depth, h * stride[0], w * stride[1], -1)
    low = (size - 1) // 2
    padding = [(low, size - 1 - low)] * 2
    y = lax.conv_general_dilated(flat, kernel, stride, padding, dimension_numbers=layout)
    return y.reshape(b, depth, *y.shape[1:])
