"""The classifier sees two scales, and refuses what it cannot be."""

import jax
import numpy as np
import pytest
from flax import nnx

from lung_unet.errors import InputError
from lung_unet.model.classifier import build


def test_near_and_far_are_both_seen(second_config):
    module = build(second_config, nnx.Rngs(0))
    image = jax.random.normal(jax.random.key(0), (2, 16, 16, 16, 1))
    sees = jax.grad(lambda x: module(x)[0].sum())(image)
    assert module(image).shape == (2, 2) and not sees[1].any()
    assert np.count_nonzero(sees[0]) > 0.99 * sees[0].size  # the corners through the far branch


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("model", {"norm": "batch"}, "config.model.norm"),
        ("model", {"activation": "elu"}, "config.model.activation"),
        ("model", {"channels": ()}, "channels"),
        ("model", {"norm": "group", "channels": (4, 12)}, "multiples of 8"),
        ("data", {"patch": (8, 8, 6)}, "config.data.patch"),
    ],
)
def test_what_cannot_be_is_named(second_config, section, change, named):
    second_config[section].update(change)
    with pytest.raises(InputError, match=named):
        build(second_config, nnx.Rngs(0))
