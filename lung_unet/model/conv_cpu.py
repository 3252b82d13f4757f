"""The convolution on XLA's CPU backend: matrix products, since its own convolutions run far slower.

A convolution is a scan over blocks of rows, each a few products:

- Width taps (and height taps, where Winograd does not take them) are unfolded into the inner
  dimension of the product. Depth taps are columns of its result, shifted and summed afterwards, so
  that 16 channels still give products of 48 x 48 and depth, which nothing scans, may be sharded.
- 3 height taps at stride 1 go through Winograd's F(2, 3) (Lavin & Gray 2016): 4 products for 2
  rows instead of 6, as exact in float32 as the plain sum.
- The gradient of x is a convolution again; the gradient of the kernel transposes each step.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

BLOCK = 8192  # voxels a product: few enough for its operands to stay in the second-level cache


def convolve(x, kernel, strides):
    """The convolution of x with kernel, as `conv.conv3d`."""
    wide, plan = accumulator(x), _Plan.same(x.shape, kernel.shape[:3], strides)
    return _correlate(plan, x.astype(wide), kernel.astype(wide)).astype(x.dtype)


def gradients(x, kernel, g, strides):
    """(dx, dw) of `convolve` for the cotangent g."""
    plan = _Plan.same(x.shape, kernel.shape[:3], strides)
    wide = accumulator(x)
    g = g.astype(wide)
    dx = _correlate_dx(plan, g, kernel.astype(wide), x.shape[1:4])
    return dx.astype(x.dtype), _correlate_dw(plan, x.astype(wide), g).astype(kernel.dtype)


def low_padding(size):
    """Voxels of padding before an axis."""
    return (size - 1) // 2


def accumulator(x):
    return jnp.promote_types(x.dtype, jnp.float32)


class _Plan(NamedTuple):
    """How a convolution is cut into products."""

    sizes: Sequence[int]  # taps an axis
    strides: Sequence[int]
    low: Sequence[int]  # voxels of padding before each axis
    out: Sequence[int]  # spatial shape of the result
    tile: int  # rows a tile: 2 with Winograd, else 1
    tiles: int  # tiles a step of the scan
    steps: int

    @classmethod
    def of(cls, batch, sizes, strides, low, out):
        tile = 2 if sizes[1] == 3 and strides[1] == 1 else 1
        total = -(-out[1] // tile)
        most = total if prod(sizes) == 1 else max(1, BLOCK // (batch * out[0] * out[2]))
        tiles = max(n for n in range(1, total + 1) if total % n == 0 and n <= most)
        return cls(sizes, strides, low, out, tile, tiles, total // tiles)

    @classmethod
    def same(cls, shape, sizes, strides):
        out = [
            n // 2 if size == step == 2 else -(-n // step)
            for n, size, step in zip(shape[1:4], sizes, strides, strict=True)
        ]
        return cls.of(shape[0], sizes, strides, [low_padding(size) for size in sizes], out)

    def offsets(self, axis):
        """(block, phase) of each tap: its distance from the output's voxel in strides, and rest."""
        return [divmod(i - self.low[axis], self.strides[axis]) for i in range(self.sizes[axis])]

    def depth_phases(self):
        """(phase, taps, their blocks) for each phase of depth that has taps."""
        offsets = self.offsets(0)
        phases = {p: [i for i, (_, q) in enumerate(offsets) if p == q] for _, p in offsets}
        return [(p, taps, [offsets[i][0] for i in taps]) for p, taps in phases.items()]

    def blocks(self, x):
        """``_row_blocks`` of x (b, d, h, w, c), padded to whole strides in depth and width."""
        n, (sd, sh, sw) = self.tile * self.tiles, self.strides
        (first, _), (last, _) = self.offsets(2)[0], self.offsets(2)[-1]
        before, width = -first * sw, (self.out[2] + last - first) * sw
        widths = {1: (0, -x.shape[1] % sd), 3: (before, width - before - x.shape[3])}
        return _row_blocks(x, self.low[1], (n - 1) * sh + self.sizes[1], n * sh, self.steps, widths)

    def factors(self, x):
        """Left factors of the products of a block: for each phase of depth 4 (Winograd) or 1."""
        n, (sd, sh, sw) = self.tiles, self.strides
        b, d, h, w, c = x.shape
        x = x.reshape(b, d // sd, sd, h, w // sw, sw, c)
        taps = [(block - self.offsets(2)[0][0], p) for block, p in self.offsets(2)]

        def unfold(*rows):
            return _side_by_side([v[..., i : i + self.out[2], p, :] for v in rows for i, p in taps])

        for phase, _, _ in self.depth_phases():
            v = x[:, :, phase]
            if self.tile == 2:
                r = [v[:, :, i : i + 2 * n - 1 : 2] for i in range(4)]
                yield [unfold(m) for m in (r[0] - r[2], r[1] + r[2], r[2] - r[1], r[1] - r[3])]
            else:
                rows = [v[:, :, i : i + (n - 1) * sh + 1 : sh] for i in range(self.sizes[1])]
                yield [unfold(*rows)]


def _correlate(plan, x, kernel):
    """Sum over taps of x[stride z + tap - low] kernel[tap], (b, *plan.out, cout)."""
    (d, h, w), cout, phases = plan.out, kernel.shape[-1], plan.depth_phases()
    kernels = []
    for _, taps, _ in phases:
        k = jnp.stack([kernel[i] for i in taps], 3)
        k = k.reshape(3 if plan.tile == 2 else 1, -1, len(taps) * cout)
        if plan.tile == 2:
            mean, half = (k[0] + k[2]) / 2, k[1] / 2
            k = jnp.stack([k[0], mean + half, mean - half, k[2]])
        kernels.append(k)

    def step(y, i, x):
        out = [0.0] * plan.tile
        for us, ks, (_, _, blocks) in zip(plan.factors(x), kernels, phases, strict=True):
            m = [u @ k for u, k in zip(us, ks, strict=True)]
            for j, row in enumerate((m[0] + m[1] + m[2], m[1] - m[2] - m[3]) if m[1:] else m):
                for v, n in zip(jnp.split(row, len(blocks), -1), blocks, strict=True):
                    out[j] += _pad(v, {1: (-n, n + d - v.shape[1])})
        rows = jnp.stack(out, 3).reshape(*y.shape[:2], -1, *y.shape[3:])
        return lax.dynamic_update_slice_in_dim(y, rows, rows.shape[2] * i, 2)

    y = lax.empty((x.shape[0], d, plan.tile * plan.tiles * plan.steps, w, cout), x.dtype)
    return _scan(step, y, plan.steps, plan.blocks(x))[:, :, :h]


def _correlate_dw(plan, x, g):
    """Gradient of the kernel of ``_correlate``, (*plan.sizes, cin, cout): its steps transposed."""
    n, cin, cout, phases = plan.tile * plan.tiles, x.shape[-1], g.shape[-1], plan.depth_phases()

    def step(dks, _, x, g):
        even, odd = g[:, :, :: plan.tile], g[:, :, plan.tile - 1 :: plan.tile]
        rows = (even, even + odd, even - odd, -odd) if plan.tile == 2 else (even,)
        total = []
        for dk, us, (_, _, blocks) in zip(dks, plan.factors(x), phases, strict=True):
            ends = [(m, x.shape[1] // plan.strides[0] - m - g.shape[1]) for m in blocks]
            vs = [_side_by_side([_pad(row, {1: end}) for end in ends]) for row in rows]
            total.append([a + _inner(u, v) for a, u, v in zip(dk, us, vs, strict=True)])
        return total

    inner = cin * prod(plan.sizes[plan.tile :])
    count = 2 * plan.tile if plan.tile == 2 else 1
    zeros = [[jnp.zeros((inner, len(taps) * cout), x.dtype)] * count for _, taps, _ in phases]
    dks = _scan(step, zeros, plan.steps, plan.blocks(x), _row_blocks(g, 0, n, n, plan.steps, {}))
    dw = {}
    for k, (_, taps, _) in zip(dks, phases, strict=True):
        if plan.tile == 2:
            mean, half = (k[1] + k[2]) / 2, (k[1] - k[2]) / 2
            k = [k[0] + mean, half, mean + k[3]]
        k = jnp.stack(k).reshape(*plan.sizes[1:], cin, len(taps), cout)
        for j, i in enumerate(taps):
            dw[i] = k[..., j, :]
    return jnp.stack([dw[i] for i in range(plan.sizes[0])])


def _correlate_dx(plan, g, kernel, shape):
    """Gradient of x (b, *shape, cin) of ``_correlate``.

    x[s t + p] receives g[t + e] kernel[p + low - s e] for each e: a convolution of g at stride 1
    whose channels are the phases p, then depth to space.
    """
    sizes, before, cout = [], [], kernel.shape[-1]
    for axis, (size, step, low) in enumerate(zip(plan.sizes, plan.strides, plan.low, strict=True)):
        first, last = -((size - 1 - low) // step), (step - 1 + low) // step
        taps = [[p + low - step * e for p in range(step)] for e in range(first, last + 1)]
        index = jnp.array([[i if 0 <= i < size else size for i in row] for row in taps])
        kernel = jnp.take(kernel, index, axis=2 * axis, mode="fill", fill_value=0)
        sizes.append(last + 1 - first)
        before.append(-first)
    # (ed, pd, eh, ph, ew, pw, cin, cout) to (ed, eh, ew, cout, (pd, ph, pw, cin))
    kernel = kernel.transpose(0, 2, 4, 7, 1, 3, 5, 6).reshape(*sizes, cout, -1)
    out = [-(-n // step) for n, step in zip(shape, plan.strides, strict=True)]
    dx = _correlate(_Plan.of(g.shape[0], sizes, (1, 1, 1), before, out), g, kernel)
    d, h, w = shape
    return depth_to_space(dx, plan.strides)[:, :d, :h, :w]


def _row_blocks(x, low, length, hop, steps, widths):
    """Block 0 of x and the function i -> block i + 1, of rows hop i - low .. + length.

    The outer blocks are padded by themselves, which saves a padded copy of x.
    """
    h = x.shape[2]

    def edge(i):
        start, stop = hop * i - low, hop * i - low + length
        rows = lax.slice_in_dim(x, max(start, 0), min(stop, h), axis=2)
        return _pad(rows, {**widths, 2: (max(-start, 0), max(stop - h, 0))})

    def following(i):
        if steps == 2:
            return edge(1)
        rows = lax.dynamic_slice_in_dim(x, hop * (i + 1) - low, length, 2)
        return jnp.where(i + 2 < steps, _pad(rows, widths), edge(steps - 1))

    return edge(0), following


def _scan(step, carry, steps, *streams):
    """Folds carry = step(carry, i, *blocks) over the blocks i of streams from ``_row_blocks``.

    Each block is read a step ahead: a slice at a variable offset is slow where XLA fuses it into
    the arithmetic that follows, and passing through the loop's carry keeps the two apart.
    """

    def body(state, i):
        carry, blocks = state
        return (step(carry, i, *blocks), [following(i) for _, following in streams]), None

    first = [block for block, _ in streams]
    if steps == 1:
        return step(carry, 0, *first)
    return lax.scan(body, (carry, first), jnp.arange(steps))[0][0]


def _pad(x, widths):
    """x with (before, after) zeros on each axis of widths; negative widths crop."""
    config = [(*widths.get(axis, (0, 0)), 0) for axis in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _side_by_side(pieces):
    """Concatenation of pieces of one shape along the last dimension.

    A sum of zero-padded pieces, since XLA's CPU backend vectorises it and not a concatenation.
    """
    c, n, axis = pieces[0].shape[-1], len(pieces), pieces[0].ndim - 1
    return sum(_pad(v, {axis: (i * c, (n - 1 - i) * c)}) for i, v in enumerate(pieces))


def _inner(u, v):
    """Sum of u[..., i] v[..., j] over all voxels, batch apart: one contracted dimension is fast."""
    u, v = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (u, v))
    return lax.dot_general(u, v, (((1,), (1,)), ((0,), (0,)))).sum(0)


def depth_to_space(x, size):
    """(B, D, H, W, kd kh kw C) to (B, D kd, H kh, W kw, C)."""
    b, d, h, w, _ = x.shape
    kd, kh, kw = size
    x = x.reshape(b, d, h, w, kd, kh, kw, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, d * kd, h * kh, w * kw, -1)
