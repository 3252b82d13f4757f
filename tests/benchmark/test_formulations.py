"""All formulations compute the same convolution, so that their times can be compared."""

import jax
import numpy as np
import pytest

from lung_unet.benchmark.conv import passes
from lung_unet.benchmark.formulations import CHANNEL_SECOND, FORMULATIONS


@pytest.mark.parametrize("name", [n for n in FORMULATIONS if n != "conv3d"])
@pytest.mark.parametrize(
    "size, stride, transposed",
    [
        (3, (1, 1, 1), False),
        (3, (1, 2, 2), False),
        (1, (1, 1, 1), False),
        ((2, 1, 2), (2, 1, 2), True),
    ],
)
def test_formulations_agree_forward_and_backward(name, size, stride, transposed):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 6, 8, 3), np.float32)
    kernel = rng.standard_normal((*np.broadcast_to(size, 3), 3, 5), np.float32)
    arguments = {"stride": stride, "transposed": transposed}
    expected_y = FORMULATIONS["conv3d"](x, kernel, **arguments)
    g = rng.standard_normal(expected_y.shape, np.float32)

    def last(values):
        return np.moveaxis(values, 1, -1) if name in CHANNEL_SECOND and values.ndim == 5 else values

    def second(values):
        return np.moveaxis(values, -1, 1) if name in CHANNEL_SECOND else values

    expected = passes(lambda x, k: FORMULATIONS["conv3d"](x, k, **arguments))
    found = passes(lambda x, k: FORMULATIONS[name](x, k, **arguments))
    for label in ("forward", "dx", "dw"):
        (a,) = jax.tree.leaves(jax.jit(expected[label])(x, kernel, g))
        (b,) = jax.tree.leaves(jax.jit(found[label])(second(x), kernel, second(g)))
        b = np.asarray(b) if label == "dw" else last(np.asarray(b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=label)
