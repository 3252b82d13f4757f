"""Schedules and optimizers against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.train.optimizer import make_optimizer, make_schedule


def rates(config):
    schedule = make_schedule(config)
    return np.array([float(schedule(s)) for s in range(config.train.steps + 1)])


@pytest.mark.parametrize("shape", ["cosine", "poly", "constant"])
def test_warm_up_rises_to_the_rate_and_the_shape_follows(config, shape):
    config.train.steps = 100
    config.optimizer.update(schedule=shape, warmup_steps=10, learning_rate=0.5)
    rate = rates(config)
    assert rate[0] > 0 and (np.diff(rate[:11]) > 0).all() and rate[10] == pytest.approx(0.5)
    if shape == "constant":
        assert (rate[10:] == 0.5).all()
    else:
        assert (np.diff(rate[10:]) < 0).all() and rate[-1] == pytest.approx(0, abs=1e-6)


def test_poly_is_nnunets(config):
    config.train.steps = 100
    config.optimizer.update(schedule="poly", warmup_steps=0, learning_rate=0.01)
    expected = 0.01 * (1 - np.arange(101) / 100) ** 0.9
    np.testing.assert_allclose(rates(config), expected, rtol=1e-4, atol=1e-9)


def test_a_short_run_still_warms_up_and_anneals(config):
    config.train.steps = 8
    config.optimizer.update(schedule="cosine", warmup_steps=1000, learning_rate=1.0)
    assert rates(config).argmax() == 4


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_descends_and_clips(config, name):
    config.train.steps = 50
    config.optimizer.update(name=name, schedule="constant", warmup_steps=0, clip_norm=1.0)
    config.optimizer.update(learning_rate=0.05, momentum=0.5)
    optimizer = make_optimizer(config)
    params = {"w": jnp.full(4, 3.0)}
    state = optimizer.init(params)
    for _ in range(50):
        huge = {"w": 1e6 * params["w"]}
        updates, state = optimizer.update(huge, state, params)
        assert np.linalg.norm(updates["w"]) < 0.25
        params = {"w": params["w"] + updates["w"]}
    assert np.abs(params["w"]).max() < 2.9


@pytest.mark.parametrize("field", ["name", "schedule"])
def test_unknown_choice_is_named(config, field):
    config.optimizer[field] = "magic"
    with pytest.raises(InputError, match=rf"config\.optimizer\.{field}"):
        make_optimizer(config)
