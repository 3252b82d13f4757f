"""Losses: known values, ignored voxels, and that each falls as the prediction improves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.model import losses

NAMES = ("cross_entropy", "dice", "dice_ce", "nodule_dice_ce", "focal", "tversky")


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 4, 4, 4)), jnp.float32)
    targets = jnp.asarray(rng.random((2, 4, 4, 4)) < 0.2, jnp.float32)
    return logits, targets, jnp.ones_like(logits)


def make(config, name):
    config.loss.name = name
    return losses.make_loss(config)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_prediction_costs_nothing_and_a_wrong_one_most(config, example, name):
    loss = make(config, name)
    logits, targets, weights = example
    right, wrong = (40 * targets - 20) * 1.0, -(40 * targets - 20) * 1.0
    assert loss(right, targets, weights) < 1e-3
    assert loss(right, targets, weights) < loss(logits, targets, weights)
    assert loss(logits, targets, weights) < loss(wrong, targets, weights)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_voxels_change_neither_loss_nor_gradient(config, example, name):
    loss = make(config, name)
    logits, targets, weights = example
    weights = weights.at[:, :2].set(0)
    other = logits.at[:, :2].add(7.0), targets.at[:, :2].set(1 - targets[:, :2]), weights
    value, gradient = jax.value_and_grad(loss)(logits, targets, weights)
    value2, gradient2 = jax.value_and_grad(loss)(*other)
    np.testing.assert_allclose(value, value2, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 2:], gradient2[:, 2:], rtol=1e-5, atol=1e-9)
    assert not gradient[:, :2].any() and gradient[:, 2:].all()


@pytest.mark.parametrize("name", NAMES)
def test_finite_where_everything_is_ignored_or_extreme(config, example, name):
    loss = make(config, name)
    logits, targets, weights = example
    for arguments in ((logits, targets, 0 * weights), (1e4 * logits, targets, weights)):
        value, gradient = jax.value_and_grad(loss)(*arguments)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_known_values(config, example):
    logits, targets, _ = example
    p = 1 / (1 + np.exp(-np.asarray(logits, float)))
    t = np.asarray(targets, float)
    entropy = -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))
    dice = 1 - (2 * np.sum(p * t) + 1) / (np.sum(p) + np.sum(t) + 1)
    assert make(config, "cross_entropy")(*example) == pytest.approx(entropy, rel=1e-5)
    assert make(config, "dice")(*example) == pytest.approx(dice, rel=1e-5)
    assert make(config, "dice_ce")(*example) == pytest.approx(entropy + dice, rel=1e-5)


def test_each_nodule_counts_as_much_as_another_for_its_own_dice():
    targets = np.zeros((3, 8, 8, 8), np.float32)
    targets[0, :6, :6, :6] = 1  # a large one, a small one, none
    targets[1, :2, :2, :2] = 1
    weights = jnp.ones_like(targets)

    def cost(*found):
        logits = 40 * targets * np.reshape(found, (3, 1, 1, 1)) - 20
        return float(losses.nodule_dice(smooth=0.01)(jnp.asarray(logits), targets, weights))

    assert cost(1, 1, 1) == pytest.approx(0, abs=1e-3)
    assert cost(1, 0, 1) == pytest.approx(cost(0, 1, 1), abs=1e-2) == pytest.approx(0.5, abs=1e-2)
    assert cost(0, 0, 1) == pytest.approx(1, abs=1e-2)
    noisy = jnp.asarray(40 * targets - 20).at[2].set(20.0)  # where there is none
    loss = losses.nodule_dice(smooth=0.01)
    assert float(loss(noisy, targets, weights)) == pytest.approx(0, abs=1e-3)
    assert float(loss(noisy, targets, weights.at[1].set(0))) == pytest.approx(0, abs=1e-3)


def test_focal_without_gamma_is_cross_entropy_and_tversky_at_half_is_dice(config, example):
    config.loss.update(focal_gamma=0.0, tversky_alpha=0.5, tversky_beta=0.5)
    for a, b in (("focal", "cross_entropy"), ("tversky", "dice")):
        assert make(config, a)(*example) == pytest.approx(float(make(config, b)(*example)))


def test_tversky_weighs_misses_by_beta(config, example):
    _, targets, weights = example
    nothing, everything = jnp.full_like(targets, -20.0), jnp.full_like(targets, 20.0)
    config.loss.update(tversky_alpha=0.0, tversky_beta=1.0)
    assert make(config, "tversky")(everything, targets, weights) < 1e-3
    assert make(config, "tversky")(nothing, targets, weights) > 0.9


def test_unknown_loss_is_named(config):
    with pytest.raises(InputError, match=r"config\.loss\.name"):
        make(config, "hinge")


def test_smooth_decides_what_an_empty_batch_costs(config, example):
    logits, targets, weights = example
    for smooth, cost in ((1e-5, 1.0), (1e5, 0.0)):
        config.loss.smooth = smooth
        assert make(config, "dice")(logits, 0 * targets, weights) == pytest.approx(cost, abs=0.01)


def test_levels_are_weighted_by_halves_and_read_the_nearest_voxel(config, example):
    logits, targets, weights = example
    loss = make(config, "cross_entropy")
    weights = weights.at[0, :2].set(0)
    assert losses.at_all_levels(loss)([logits], targets, weights) == loss(logits, targets, weights)
    levels = [logits, logits[:, :2, :2, :2], logits[:, :1, :1, :1]]
    expected = 4 / 7 * loss(logits, targets, weights)
    for share, logits, step in ((2 / 7, levels[1], 2), (1 / 7, levels[2], 4)):
        near = (slice(None), *[slice(step // 2, None, step)] * 3)
        expected += share * loss(logits, targets[near], weights[near])
    assert losses.at_all_levels(loss)(levels, targets, weights) == pytest.approx(float(expected))


def test_levels_of_any_stride_are_weighted_by_halves(config, example):
    logits, targets, weights = example
    loss = make(config, "dice_ce")
    weights = weights.at[0, :2].set(0)
    flat = logits[:, :, :2, :2]
    near = (slice(None), slice(None), slice(1, None, 2), slice(1, None, 2))
    expected = 2 / 3 * loss(logits, targets, weights)
    expected += 1 / 3 * loss(flat, targets[near], weights[near])
    found = losses.at_all_levels(loss)([logits, flat], targets, weights)
    assert found == pytest.approx(float(expected))


def test_what_is_ignored_is_ignored_at_every_level(config, example):
    logits, targets, weights = example
    loss = make(config, "dice_ce")
    weights = weights.at[:, :2].set(0)
    levels = [logits, logits[:, :2, :2, :2]]
    value = losses.at_all_levels(loss)(levels, targets, weights)
    gradient = jax.grad(lambda ls: losses.at_all_levels(loss)(ls, targets, weights))(levels)
    assert value == losses.at_all_levels(loss)(levels, targets.at[:, :2].set(1), weights)
    assert not gradient[0][:, :2].any() and not gradient[1][:, :1].any()
    assert gradient[0][:, 2:].all() and gradient[1][:, 1:].all()
