"""The step: it learns, and its result does not depend on how the mesh splits it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lung_unet.benchmark.collectives import collectives
from lung_unet.data.scan import IGNORE
from lung_unet.parallel.mesh import make_mesh, put_batch
from lung_unet.train.augment import window
from lung_unet.train.optimizer import make_optimizer
from lung_unet.train.step import (
    abstract_state,
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
    block = np.array([3, -1, 7, 0], np.int32)
    return {"hu": hu.astype(np.int16), "labels": labels, "block": block}


def build(config):
    mesh = make_mesh(config)
    apply, init = make_apply(config)
    optimizer = make_optimizer(config)
    state = init_state(config, init, optimizer, mesh)
    return mesh, apply, state, make_train_step(config, apply, optimizer, mesh)


def test_loss_falls_and_validation_dice_rises(quiet, batch):
    config = quiet
    config.augment.flip.probability = 0.5
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


DEEP = {"channels": (2, 4, 4, 4), "convs": 1, "deep_supervision": True}
RESIDUAL = {
    "channels": (2, 4),
    "strides": ((1, 2, 2),),
    "down": "strided",
    "encoder": "residual",
    "blocks": (1, 1),
    "stochastic_depth": 0.5,
    "convs": 1,
    "remat": True,
}


# Without them, as tests are compiled, programs differ by more than what is asserted.
EMITTERS = {"xla_cpu_use_fusion_emitters": True}


def first_step(config, batch):
    """(compiled step, what it gives) of the first step."""
    mesh, _, state, step = build(config)
    put = put_batch(batch, mesh)
    compiled = step.lower(state, put).compile(EMITTERS)
    return compiled, compiled(state, put)


def assert_same_step(one, many):
    """Loss and gradient norm to 1e-5, the gradient (in the optimizer's moments) to 1e-5 of its
    largest value."""
    (state, metrics), (other, other_metrics) = jax.device_get((one, many))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(optax.tree.get(state, "mu")))
    for a, b in zip(
        jax.tree.leaves(state.opt_state), jax.tree.leaves(other.opt_state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize(
    "meshes, model, augment",
    [
        (((8, 1), (4, 2), (1, 8)), {}, "quiet"),
        (((2, 4),), {}, "augmented"),
        (((2, 2),), DEEP, "quiet"),
        (((2, 2),), RESIDUAL, "quiet"),
    ],
)
def test_any_mesh_gives_the_same_step_without_gathering_activations(
    request, batch, meshes, model, augment
):
    config = request.getfixturevalue(augment)
    config.train.batch_size = 8
    config.model.update(model)
    batch = {name: np.concatenate([array, array[::-1]]) for name, array in batch.items()}
    _, one = first_step(config, batch)
    for data, space in meshes:
        config.mesh.update(data=data, space=space)
        compiled, many = first_step(config, batch)
        text = compiled.as_text()
        assert text.count("all-gather") == 0
        assert space == 1 or "collective-permute" in text
        assert_same_step(one, many)


def test_a_sharded_optimizer_takes_less_memory_and_gives_the_same_step(quiet, batch):
    config = quiet
    config.mesh.update(data=4)
    config.train.batch_size = 4
    whole, one = first_step(config, batch)
    config.optimizer.shard = True
    split, many = first_step(config, batch)
    assert_same_step(one, many)
    state = many[0]
    parts = [x for x in jax.tree.leaves((state.opt_state, state.ema)) if x.size % 4 == 0]
    assert all(x.addressable_shards[0].data.size == x.size // 4 for x in parts)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))
    size, less = (c.memory_analysis().argument_size_in_bytes for c in (whole, split))
    assert size - less > 0.7 * sum(x.nbytes for x in parts)


@pytest.mark.parametrize(
    "loss, mesh, model",
    [("nodule_dice_ce", (2, 2), RESIDUAL), ("tversky", (1, 1), DEEP), ("focal", (1, 1), {})],
)
def test_a_batch_seen_in_parts_gives_the_step_of_the_whole(quiet, batch, loss, mesh, model):
    config = quiet
    config.train.batch_size = 4
    config.mesh.update(data=mesh[0], space=mesh[1])
    config.model.update(model)
    config.loss.name = loss
    config.data.mining.every = 1
    batch["labels"][1:] = 0  # so that the parts differ
    batch["hu"][2] += 300
    batch["labels"][3] = IGNORE
    _, one = first_step(config, batch)
    config.train.accumulate = 2
    compiled, many = first_step(config, batch)
    gathered = sum(v["bytes"] for k, v in collectives(compiled).items() if "gather" in k)
    assert gathered <= 2 * 4 * 4  # of a number and a score a patch
    assert_same_step(one, many)
    metrics, in_parts = one[1], many[1]
    assert metrics["block"].tolist() == in_parts["block"].tolist() == [3, -1, 7, 0]
    wrong = metrics["false_positives"]
    assert len(set(wrong.tolist())) == 4 and wrong[3] == 0
    np.testing.assert_allclose(wrong, in_parts["false_positives"], rtol=1e-5)


def test_false_positives_are_the_probability_outside_the_truth_of_each_patch(quiet, batch):
    config = quiet
    config.data.mining.every = 1
    mesh, apply, state, step = build(config)
    images = window(batch["hu"], config.data.window_hu)[..., None]
    probability = np.asarray(jax.nn.sigmoid(apply(state.params, images)[..., 0]))
    expected = (probability * (batch["labels"] == 0)).sum((1, 2, 3))
    _, metrics = step(state, put_batch(batch, mesh))
    np.testing.assert_allclose(metrics["false_positives"], expected, rtol=1e-4)


def test_the_average_follows_its_definition_and_validates(config, batch):
    mesh, apply, state, step = build(config)
    put = put_batch(batch, mesh)
    expected = jax.device_get(state.params)
    for number in range(4):
        decay = (1 + number) / (10 + number)
        state, _ = step(state, put)
        expected = jax.tree.map(
            lambda m, p, d=decay: d * m + (1 - d) * p, expected, jax.device_get(state.params)
        )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), state.ema, expected)
    assert state.weights is state.ema
    validate = make_validation_step(config, apply, mesh)
    assert validate(state.weights, put)["loss"] != validate(state.params, put)["loss"]


def test_without_an_average_there_is_no_second_copy_of_the_weights(config):
    def state(decay):
        config.optimizer.ema = decay
        init, optimizer = make_apply(config)[1], make_optimizer(config)
        return abstract_state(config, init, optimizer, make_mesh(config))

    def size(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    kept, none = state(0.999), state(0.0)
    assert none.ema is None and none.weights is none.params
    assert size(kept) - size(none) == size(none.params)


def test_deep_supervision_trains_every_head_and_validates_the_finest(quiet, batch):
    config = quiet
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
    again = init_state(config, make_apply(config)[1], make_optimizer(config), mesh)
    put = put_batch(batch, mesh)
    state, first = step(state, put)
    _, same = step(again, put)
    _, other = step(state, put)
    assert float(first["loss"]) == float(same["loss"])
    assert float(first["loss"]) != float(other["loss"])  # parameters stayed, augmentation did not


def test_stochastic_depth_draws_for_each_sample_and_block_in_training_alone(config, batch):
    config.model.update(RESIDUAL)
    mesh, apply, state, _ = build(config)
    put = put_batch(batch, mesh)
    seen = []

    def spy(params, *inputs, **options):
        seen.append([x.shape for x in inputs])
        return apply(params, *inputs, **options)

    make_train_step(config, spy, make_optimizer(config), mesh).lower(state, put)
    make_validation_step(config, spy, mesh).lower(state.params, put)
    assert seen == [[(4, 16, 16, 16, 1), (4, 2)], [(4, 16, 16, 16, 1)]]


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
