from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, seed, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lung_unet.model import conv, conv_cpu
from lung_unet.model.conv import conv3d, conv3d_transpose, max_pool3d


def triple(*values):
    return st.tuples(*[st.sampled_from(values)] * 3)


def normal(key, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(key), shape, dtype)


def reference(x, kernel, strides):
    """lax.conv with the padding that the docstring of conv3d promises."""
    padding = [
        {(1, 1): (0, 0), (1, 2): (0, 0), (2, 1): (0, 1), (2, 2): (0, 0)}.get(pair, (1, 1))
        for pair in zip(kernel.shape[:3], strides, strict=True)
    ]
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def value_and_gradients(f, *inputs):
    def run(*inputs):
        y, transpose = jax.vjp(f, *inputs)
        return y, *transpose(normal(9, y.shape, y.dtype))

    return jax.jit(run)(*inputs)


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@seed(0)
@settings(max_examples=3, deadline=None, database=None)
@given(
    triple(1, 2, 3), triple(1, 2), triple(2, 3, 4, 5, 6, 7), st.integers(1, 5), st.integers(1, 5)
)
@example((3, 3, 3), (1, 1, 1), (4, 7, 5), 2, 3)
@example((3, 3, 3), (2, 2, 2), (4, 6, 4), 3, 2)
@example((3, 3, 3), (2, 2, 2), (5, 7, 3), 1, 2)
@example((2, 2, 2), (2, 2, 2), (5, 4, 7), 2, 2)
@example((3, 3, 3), (1, 2, 2), (3, 6, 4), 2, 3)
@example((3, 3, 3), (2, 1, 2), (4, 5, 6), 2, 1)
@example((1, 3, 3), (1, 2, 2), (2, 5, 4), 1, 1)
def test_value_and_gradients_are_those_of_lax(sizes, strides, shape, cin, cout):
    with jax.enable_x64(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_cpu, "BLOCK", 2 * shape[0] * shape[2])  # two tiles a step: several steps
        x, kernel = normal(0, (2, *shape, cin), "f8"), normal(1, (*sizes, cin, cout), "f8")
        ours, theirs = (
            value_and_gradients(lambda x, k, f=f: f(x, k, strides), x, kernel)
            for f in (conv3d, reference)
        )
        assert_close(ours, theirs, 1e-12)


def test_float32_is_as_exact_as_the_plain_sum():
    x, kernel = normal(0, (1, 6, 8, 8, 32)), normal(1, (3, 3, 3, 32, 32))
    ours = value_and_gradients(conv3d, x, kernel)
    with jax.enable_x64():
        g = jnp.asarray(normal(9, ours[0].shape), "f8")
        y, transpose = jax.vjp(
            partial(reference, strides=(1, 1, 1)), *map(jnp.float64, (x, kernel))
        )
        assert_close(ours, (y, *transpose(g)), 1e-6)


def test_bfloat16_is_summed_in_float32_and_agrees_with_lax():
    x, kernel = normal(0, (2, 5, 4, 6, 8), "bfloat16"), normal(1, (3, 3, 3, 8, 4), "bfloat16")
    narrow = x, kernel, normal(2, (2, 3, 2, 3, 4), "bfloat16")
    wide = [a.astype(jnp.float32) for a in narrow]

    def both(conv, gradients):
        return jax.jit(lambda x, k, g: (conv(x, k, (2, 2, 2)), *gradients(x, k, g, (2, 2, 2))))

    cpu = both(conv_cpu.convolve, conv_cpu.gradients)
    ours, theirs = cpu(*narrow), both(conv._lax_conv, conv._lax_gradients)(*narrow)
    assert {a.dtype.name for a in (*ours, *theirs, conv3d(x, kernel, 2))} == {"bfloat16"}
    assert_close(ours, [a.astype("bfloat16") for a in cpu(*wide)], 0)
    assert_close(ours, theirs, 0.01)


@seed(0)
@settings(max_examples=2, deadline=None, database=None)
@given(triple(1, 2), triple(1, 2, 3, 5), st.integers(1, 5), st.integers(1, 5))
@example((2, 2, 2), (3, 2, 5), 3, 2)
@example((1, 2, 2), (2, 3, 4), 1, 5)
def test_transposed_value_and_gradients_are_those_of_lax(size, shape, cin, cout):
    def transposed(x, kernel):
        return lax.conv_general_dilated(
            x, kernel[::-1, ::-1, ::-1], (1, 1, 1), [(k - 1, k - 1) for k in size],
            lhs_dilation=size, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )  # fmt: skip

    with jax.enable_x64():
        x, kernel = normal(0, (2, *shape, cin), "f8"), normal(1, (*size, cin, cout), "f8")
        ours, theirs = (value_and_gradients(f, x, kernel) for f in (conv3d_transpose, transposed))
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("window", [(2, 2, 2), (1, 2, 2)])
def test_pooling_takes_maxima_and_shares_out_the_whole_gradient(window):
    x = jnp.round(normal(0, (2, 4, 6, 2, 3)))  # rounded, so that there are ties
    y, transpose = jax.vjp(partial(max_pool3d, window=window), x)
    full = (1, *window, 1)
    np.testing.assert_array_equal(y, lax.reduce_window(x, -jnp.inf, lax.max, full, full, "VALID"))
    g = normal(1, y.shape)
    dx = transpose(g)[0]
    np.testing.assert_allclose(
        lax.reduce_window(dx, 0.0, lax.add, full, full, "VALID"), g, rtol=1e-6
    )
    spread = y
    for axis, n in enumerate(full):
        spread = jnp.repeat(spread, n, axis)
    assert not jnp.any(dx * (x < spread))


def test_batch_and_depth_stay_sharded(monkeypatch):
    monkeypatch.setattr(conv_cpu, "BLOCK", 64)  # several steps a scan

    def loss(x, kernels):
        y = conv3d(conv3d(x, kernels[0]), kernels[1], 2)
        y = jnp.concatenate([conv3d_transpose(y, kernels[2]), x], -1)
        return jnp.square(conv3d(max_pool3d(y, (2, 2, 2)), kernels[3])).mean()

    shapes = [(3, 3, 3, 2, 4), (3, 3, 3, 4, 4), (2, 2, 2, 4, 2), (1, 1, 1, 4, 1)]
    kernels = [normal(i, shape) for i, shape in enumerate(shapes)]
    x = normal(0, (2, 8, 6, 4, 2))
    expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernels)
    mesh = jax.make_mesh((2, 2), ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    x = jax.device_put(x, NamedSharding(mesh, P("data", "space")))
    kernels = jax.device_put(kernels, NamedSharding(mesh, P()))
    step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, kernels).compile()
    for a, b in zip(jax.tree.leaves(step(x, kernels)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))
    for program in (jax.jit(loss).lower(x, kernels).compile().as_text(), step.as_text()):
        assert "collective-permute" in program
        assert "all-gather" not in program and "all-to-all" not in program
