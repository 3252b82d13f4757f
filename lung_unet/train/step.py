"""The training step and the validation step: pure functions over pytrees."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lung_unet.data.labels import agreement
from lung_unet.data.scan import IGNORE, READERS
from lung_unet.model import classifier, unet
from lung_unet.model.encoders import blocks_of
from lung_unet.model.losses import Sums, at_all_levels, make_loss
from lung_unet.model.unet import UNet
from lung_unet.parallel.compiler import compiler_options
from lung_unet.parallel.mesh import (
    BATCH,
    BATCH_AND_DEPTH,
    REPLICATED,
    from_parts,
    in_parts,
    split_over_data,
)
from lung_unet.train.augment import augment, window
from lung_unet.train.optimizer import ema_decay

Batch = dict[str, jax.Array]
Apply = Callable[..., Any]
Init = Callable[[], dict]
Metrics = dict[str, jax.Array]
Gradient = Callable[[dict, Batch, jax.Array], tuple[jax.Array, dict, Metrics]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("step", "params", "opt_state", "ema"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes. The random keys follow from the seed and the step."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None  # the parameters' moving average, where `config.optimizer.ema` asks for one

    @property
    def weights(self) -> dict:
        """The parameters to validate and predict with."""
        return self.params if self.ema is None else self.ema


def make_apply(config: ConfigDict) -> tuple[Apply, Init]:
    """(apply, init) of the network of `config.task`: apply(params, images) → what it makes of them,
    logits, and init() → fresh parameters.

    The module is built once and split; from there on parameters are plain nested dicts. As in Flax,
    apply(…, method=UNet.all_levels) calls that method of the module instead.
    """
    build: Callable = classifier.build if config.get("task") == "classification" else unet.build
    graph, abstract = nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(0))))

    def init() -> dict:
        module = build(config, nnx.Rngs(config.seed))
        return nnx.to_pure_dict(nnx.state(module))

    def apply(params: dict, *inputs: jax.Array, method: Callable | None = None) -> Any:
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        module = nnx.merge(graph, state)
        return method(module, *inputs) if method else module(*inputs)

    return apply, init


def init_state(
    config: ConfigDict, init: Init, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state at step 0, on every device of the mesh; `config.optimizer.shard` splits the
    optimizer's and the average over `data` (ZeRO-1: Rajbhandari et al. 2020, arXiv 1910.02054)."""
    return _fresh(config, init, optimizer, mesh)()


def abstract_state(
    config: ConfigDict, init: Init, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, types and shardings of the state; nothing is compiled or computed."""
    return _fresh(config, init, optimizer, mesh).eval_shape()


def _fresh(config: ConfigDict, init: Init, optimizer: optax.GradientTransformation, mesh: Mesh):
    def fresh() -> TrainState:
        params = init()
        ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)

    layout: Any = NamedSharding(mesh, REPLICATED)
    if config.optimizer.shard:
        state = jax.eval_shape(fresh)
        layout = TrainState(layout, layout, *split_over_data((state.opt_state, state.ema), mesh))
    # It runs once, and LLVM would take twenty times as long to optimise its random draws.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(fresh, out_shardings=layout, compiler_options=options)


def targets_of(labels: jax.Array, data: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """(targets, weights) float32 of a label volume, by `config.data.label`; weight 0 if ignored."""
    weights = (labels != IGNORE).astype(jnp.float32)
    soft = data.label == "soft"
    targets = labels / READERS if soft else (labels >= agreement(data)).astype(jnp.float32)
    return targets * weights, weights


def one_a_sample(key: jax.Array, batch: Batch) -> jax.Array:
    """A key for each sample of a batch, folded from that of the step."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch["hu"].shape[0]))


def make_gradient(config: ConfigDict, apply: Apply, mesh: Mesh) -> Gradient:
    """(params, batch, key) → (loss, gradient, metrics) of segmentation; the key augments.

    Metrics are there where hard negatives are mined: of each patch of the batch its block and
    false_positives, the probability outside the truth, summed over voxels.

    With `config.train.accumulate` the network sees the batch in parts, twice: forward, for the sums
    that the loss is made of, then both ways, weighted with the loss's derivatives by these sums. So
    loss and gradient are the batch's, of Dice too, for a third more computation.
    """
    loss_of = at_all_levels(make_loss(config))
    inner = NamedSharding(mesh, BATCH_AND_DEPTH)
    # Augmentation gathers across the whole patch, so it runs before depth is split.
    augment_local = jax.shard_map(
        partial(augment, config=config), mesh=mesh, in_specs=BATCH, out_specs=BATCH, check_vma=False
    )

    def gradient(params: dict, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict, Metrics]:
        keys = one_a_sample(key, batch)
        with jax.named_scope("augmentation"):
            images, labels = augment_local(batch["hu"], batch["labels"], keys)
        images = jax.lax.with_sharding_constraint(images, inner)
        labels = jax.lax.with_sharding_constraint(labels, inner)
        voxels: tuple = images, *targets_of(labels, config.data)
        if config.model.stochastic_depth:
            samples, blocks = images.shape[0], sum(blocks_of(config.model))
            # The key after those of the samples, so that augmentation draws as it does without.
            draws = jax.random.uniform(jax.random.fold_in(key, samples), (samples, blocks))
            voxels += (draws,)

        def sums(params: dict, voxels: tuple) -> tuple[Sums, jax.Array]:
            images, targets, weights, *draws = voxels
            levels = [x[..., 0] for x in apply(params, images, *draws, method=UNet.all_levels)]
            wrong = jnp.sum(jax.nn.sigmoid(levels[0]) * (1 - targets) * weights, (1, 2, 3))
            with jax.named_scope("loss"):
                return loss_of.sums(levels, targets, weights), wrong

        def whole(params: dict) -> tuple[jax.Array, jax.Array]:
            total, wrong = sums(params, voxels)
            return loss_of.of(total), wrong

        if config.train.accumulate == 1:
            (loss, wrong), grads = jax.value_and_grad(whole, has_aux=True)(params)
        else:
            parts = jax.tree.map(lambda x: in_parts(x, config.train.accumulate, mesh), voxels)
            total, wrong = _summed(lambda part: sums(params, part), parts)
            loss, slopes = jax.value_and_grad(loss_of.of)(total)
            weighted = jax.grad(lambda p, part: optax.tree.vdot(slopes, sums(p, part)[0]))
            grads, _ = _summed(lambda part: (weighted(params, part), None), parts)
            wrong = from_parts(wrong, mesh)
        if not config.data.mining.every:
            return loss, grads, {}
        return loss, grads, {"block": batch["block"], "false_positives": wrong}

    return gradient


def make_train_step(
    config: ConfigDict,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    make_gradient: Callable[[ConfigDict, Apply, Mesh], Gradient] = make_gradient,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The compiled step: (state, batch) → (state, metrics). The state's memory is reused.

    Metrics are loss, grad_norm and those of the gradient.
    """
    gradient = make_gradient(config, apply, mesh)
    replicated = NamedSharding(mesh, REPLICATED)
    state = abstract_state(config, make_apply(config)[1], optimizer, mesh)
    layout = jax.tree.map(lambda x: x.sharding, state)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, grads, metrics = gradient(state.params, batch, key)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            rate = 1 - ema_decay(config, state.step)
            ema = None if state.ema is None else optax.incremental_update(params, state.ema, rate)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads), **metrics}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return jax.jit(
        step,
        in_shardings=(layout, NamedSharding(mesh, BATCH)),
        out_shardings=(layout, replicated),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def _summed(function: Callable[[Any], tuple[Any, Any]], parts: Any) -> tuple[Any, Any]:
    """(sum, stack) of the two values that a function has of each part, one after the other."""
    like, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        value, other = function(part)
        return jax.tree.map(jnp.add, total, value), other

    return jax.lax.scan(add, nothing, parts)


def make_validation_step(
    config: ConfigDict, apply: Apply, mesh: Mesh
) -> Callable[[dict, Batch], dict[str, jax.Array]]:
    """The compiled validation: (params, batch) → loss and the counts that Dice is made of.

    Parameters may lie as they like, an average split over `data` as well.
    """
    loss_of = make_loss(config)

    def step(params: dict, batch: Batch) -> dict[str, jax.Array]:
        params = jax.lax.with_sharding_constraint(params, NamedSharding(mesh, REPLICATED))
        images = window(batch["hu"], config.data.window_hu)[..., None]
        images = jax.lax.with_sharding_constraint(images, NamedSharding(mesh, BATCH_AND_DEPTH))
        targets, weights = targets_of(batch["labels"], config.data)
        logits = apply(params, images)[..., 0]
        predicted = (logits > 0) * weights
        true = (batch["labels"] >= agreement(config.data)) * weights
        return {
            "loss": loss_of(logits, targets, weights),
            "hit": jnp.sum(predicted * true),
            "predicted": jnp.sum(predicted),
            "true": jnp.sum(true),
        }

    return jax.jit(
        step,
        in_shardings=(None, NamedSharding(mesh, BATCH)),
        compiler_options=compiler_options(mesh),
    )
