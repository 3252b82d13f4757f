"""The accelerators' formulations compute the CPU's functions and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.model.backend import accelerator_formulations
from lung_unet.model.conv import conv3d, conv3d_of_parts, max_pool3d
from lung_unet.model.fused import ACTIVATIONS, Follows, normalise


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same(function, *inputs, rtol=2e-5):
    """Values and gradients of all inputs, by both formulations."""

    def run(*inputs):
        def scalar(*inputs):
            leaves = jax.tree.leaves(function(*inputs))
            return sum(jnp.sum(jnp.sin(3 * v + i)) for i, v in enumerate(leaves))

        return function(*inputs), jax.grad(scalar, tuple(range(len(inputs))))(*inputs)

    cpu = jax.jit(run)(*inputs)
    with accelerator_formulations():
        other = jax.jit(lambda *inputs: run(*inputs))(*inputs)
    for a, b in zip(jax.tree.leaves(cpu), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=rtol * float(jnp.abs(a).max() + 1e-6))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("groups", [8, 4])
@pytest.mark.parametrize(
    "follows", [Follows(), Follows(heads=True), Follows(pool=(2, 2, 2)), Follows(pool=(1, 2, 2))]
)
def test_norm_and_what_follows_it(activation, groups, follows):
    head = (normal(3, 1, 1, 1, 8, 1), jnp.array([0.3])) if follows.heads else ()
    inputs = normal(0, 2, 4, 6, 4, 8), 1 + 0.1 * normal(1, 8), 0.3 * normal(2, 8), *head
    assert_same(
        lambda *i: normalise(*i, groups=groups, activation=activation, follows=follows), *inputs
    )


@pytest.mark.parametrize("window", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 1)])
def test_pooling_shares_ties_out_in_the_same_way(window):
    x = jnp.round(normal(0, 2, 4, 6, 2, 16))
    assert len(np.unique(x)) < 10  # most blocks have ties
    assert_same(lambda x: max_pool3d(x, window), x)


@pytest.mark.parametrize(
    ("cin", "cout", "taps", "stride"),
    [(1, 4, 3, 1), (1, 4, 3, (2, 2, 1)), (1, 4, 3, 2), (6, 1, 1, 1), (1, 1, 1, 1)],
)
def test_one_channel_in_or_out(cin, cout, taps, stride):
    x, kernel = normal(0, 2, 4, 6, 5, cin), normal(1, taps, taps, taps, cin, cout)
    assert_same(lambda x, k: conv3d(x, k, stride), x, kernel)


def test_parts_are_joined_along_their_channels():
    parts = normal(0, 1, 4, 4, 4, 3), normal(1, 1, 4, 4, 4, 5)
    kernel = normal(2, 3, 3, 3, 8, 4)
    assert_same(lambda a, b, k: conv3d_of_parts((a, b), k), *parts, kernel)
    joined = conv3d(jnp.concatenate(parts, -1), kernel)
    np.testing.assert_array_equal(conv3d_of_parts(parts, kernel), joined)
