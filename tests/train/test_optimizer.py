"""Schedules and optimizers against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.train.optimizer import ema_decay, make_optimizer, make_schedule


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


def test_adamw_is_loshchilov_and_hutters_with_clipping_first(config):
    """Algorithm 2 of arXiv 1711.05101: decay beside the gradient's moments, not in them."""
    config.optimizer.update(name="adamw", schedule="constant", warmup_steps=0, learning_rate=0.1)
    config.optimizer.update(weight_decay=0.2, clip_norm=2.0)
    optimizer = make_optimizer(config)
    weight, first, second, params = 3.0, 0.0, 0.0, jnp.float32(3.0)
    state = optimizer.init(params)
    for step, gradient in enumerate((1.0, -1.5, 100.0, 0.5), 1):
        g = min(gradient, 2.0)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        moved = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
        weight -= 0.1 * (moved + 0.2 * weight)
        updates, state = optimizer.update(jnp.float32(gradient), state, params)
        params += updates
        assert params == pytest.approx(weight, rel=1e-4)


def test_sgd_is_nnunets(config):
    """Nesterov's momentum as torch.optim.SGD has it, decay within the gradient, clipping first."""
    config.optimizer.update(name="sgd", schedule="constant", warmup_steps=0, learning_rate=0.1)
    config.optimizer.update(momentum=0.99, weight_decay=0.01, clip_norm=12.0)
    optimizer = make_optimizer(config)
    weight, velocity, params = 3.0, 0.0, jnp.float32(3.0)
    state = optimizer.init(params)
    for gradient in (1.0, -2.0, 100.0, 0.5):
        g = min(gradient, 12.0) + 0.01 * weight
        velocity = 0.99 * velocity + g
        weight -= 0.1 * (g + 0.99 * velocity)
        updates, state = optimizer.update(jnp.float32(gradient), state, params)
        params += updates
        assert params == pytest.approx(weight, rel=1e-5)


def test_the_average_forgets_fast_at_first(config):
    config.optimizer.ema = 0.999
    decays = [float(ema_decay(config, jnp.int32(s))) for s in (0, 1, 90, 8990, 100_000)]
    assert decays == pytest.approx([0.1, 2 / 11, 0.91, 0.999, 0.999])


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_cannot_be_is_refused(config, decay):
    config.optimizer.ema = decay
    with pytest.raises(InputError, match=r"config\.optimizer\.ema"):
        make_optimizer(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip_norm", 0.0), ("clip_norm", -1.0), ("learning_rate", -0.1),
     ("learning_rate", float("nan")), ("weight_decay", -1e-5), ("momentum", 1.5)],
)  # fmt: skip
def test_a_number_that_trains_nothing_or_uphill_is_refused(config, field, value):
    config.optimizer[field] = value
    with pytest.raises(InputError, match=rf"config\.optimizer\.{field} = .*: choose"):
        make_optimizer(config)


@pytest.mark.parametrize("field", ["name", "schedule"])
def test_unknown_choice_is_named(config, field):
    config.optimizer[field] = "magic"
    with pytest.raises(InputError, match=rf"config\.optimizer\.{field}"):
        make_optimizer(config)
