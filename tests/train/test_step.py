"""The step: it learns, and its result does not depend on how the mesh splits it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.data.scan import IGNORE
from lung_unet.parallel.mesh import make_mesh, put_batch
from lung_unet.train.optimizer import make_optimizer
from lung_unet.train.step import (
    init_state,
    make_apply,
    make_train_step,
    make_validation_step,
    targets_of,
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 16, 16, 16), np.uint8)
    labels[:, 5:11, 6:12, 4:10] = 3
    labels[:, :2] = IGNORE
    hu = np.where(labels == 3, 40, -800) + rng.normal(0, 30, labels.shape)
    return {"hu": hu.astype(np.int16), "labels": labels}


def build(config):
    mesh = make_mesh(config)
    apply, init = make_apply(config)
    optimizer = make_optimizer(config)
    state = init_state(init, optimizer, mesh)
    return mesh, apply, state, make_train_step(config, apply, optimizer, mesh)


def test_loss_falls_and_validation_dice_rises(config, batch):
    config.train.steps = 60
    config.optimizer.learning_rate = 0.05
    mesh, apply, state, step = build(config)
    validate = make_validation_step(config, apply, mesh)
    put = put_batch(batch, mesh)
    before = validate(state.params, put)
    for _ in range(60):
        state, metrics = step(state, put)
    after = validate(state.params, put)
    assert int(state.step) == 60 and np.isfinite(float(metrics["grad_norm"]))
    assert after["loss"] < 0.6 * before["loss"]
    dice = 2 * after["hit"] / (after["predicted"] + after["true"])
    assert dice > 0.8 and after["true"] == 4 * 6 * 6 * 6


@pytest.mark.parametrize(
    "data, space, model",
    [
        (4, 1, {}),
        (2, 2, {"channels": (2, 4, 4, 4), "convs": 1, "deep_supervision": True}),
        (1, 4, {}),
    ],
)
def test_any_mesh_gives_the_same_step_without_gathering_activations(
    config, batch, data, space, model
):
    config.data.patch = (16, 16, 16)
    config.model.update(model)
    results = []
    for shape in ((1, 1), (data, space)):
        config.mesh.update(data=shape[0], space=shape[1])
        mesh, _, state, step = build(config)
        put = put_batch(batch, mesh)
        text = step.lower(state, put).compile().as_text()
        results.append(jax.device_get(step(state, put)))
    assert text.count("all-gather") == 0
    assert space == 1 or "collective-permute" in text
    (one, metrics), (many, sharded_metrics) = results
    np.testing.assert_allclose(metrics["loss"], sharded_metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], sharded_metrics["grad_norm"], rtol=1e-4)
    first = jax.tree.leaves(one.opt_state)
    second = jax.tree.leaves(many.opt_state)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)


def test_deep_supervision_trains_every_head_and_validates_the_finest(config, batch):
    config.model.update(channels=(2, 4, 4, 4), convs=1, deep_supervision=True)
    config.optimizer.weight_decay = 0.0
    mesh, apply, state, step = build(config)
    put = put_batch(batch, mesh)
    deep = jax.device_get(state.params)["deep_heads"]
    counts = make_validation_step(config, apply, mesh)(state.params, put)
    assert counts["true"] == 4 * 6 * 6 * 6
    after = step(state, put)[0].params["deep_heads"]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a != b).any()), deep, after))


def test_the_same_step_is_the_same_to_the_bit_and_the_next_draws_anew(config, batch):
    config.optimizer.learning_rate = 0.0
    config.optimizer.weight_decay = 0.0
    mesh, _, state, step = build(config)
    again = init_state(make_apply(config)[1], make_optimizer(config), mesh)
    put = put_batch(batch, mesh)
    state, first = step(state, put)
    _, same = step(again, put)
    _, other = step(state, put)
    assert float(first["loss"]) == float(same["loss"])
    assert float(first["loss"]) != float(other["loss"])  # parameters stayed, augmentation did not


@pytest.mark.parametrize(
    "label, consensus, expected",
    [
        ("consensus", 2, [0, 0, 1, 1, 1, 0]),
        ("consensus", 4, [0, 0, 0, 0, 1, 0]),
        ("any", 4, [0, 1, 1, 1, 1, 0]),
        ("soft", 2, [0, 0.25, 0.5, 0.75, 1, 0]),
    ],
)
def test_targets_follow_the_rule_and_leave_ignored_voxels_out(config, label, consensus, expected):
    config.data.update(label=label, consensus=consensus)
    labels = jnp.array([0, 1, 2, 3, 4, IGNORE], jnp.uint8)
    targets, weights = targets_of(labels, config.data)
    assert targets.tolist() == expected and weights.tolist() == [1, 1, 1, 1, 1, 0]


def test_soft_labels_are_validated_against_the_consensus(config, batch):
    config.data.label = "soft"
    mesh, apply, state, _ = build(config)
    counts = make_validation_step(config, apply, mesh)(state.params, put_batch(batch, mesh))
    assert counts["true"] == 4 * 6 * 6 * 6
