"""Where the train step's time goes: its stages, each compiled and timed alone, with gradients.

The stages are the network's own modules on arrays of the real shapes, types and shardings. Alone,
a stage is not fused with its neighbours and reads its inputs from memory, so the times need not add
up to the step's: what is left, or too much, is shown as the remainder.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lung_unet.benchmark.augment import measure_augmentation
from lung_unet.benchmark.tables import print_table
from lung_unet.benchmark.timing import Timing, measure
from lung_unet.model import unet
from lung_unet.model.conv import max_pool3d
from lung_unet.model.fused import ACTIVATIONS
from lung_unet.model.layers import Norm
from lung_unet.model.levels import Axes, scales_of
from lung_unet.model.losses import at_all_levels, make_loss
from lung_unet.parallel.mesh import BATCH_AND_DEPTH, REPLICATED
from lung_unet.train.optimizer import make_optimizer
from lung_unet.train.step import Batch, targets_of

NORM = "norm and activation"


def measure_stages(
    config: ConfigDict, mesh: Mesh, batch: Batch, repeats: int
) -> dict[str, list[Timing]]:
    """Times of each stage; of NORM, which is part of the encoder and decoder, one a layer."""
    module = nnx.jit(
        lambda: unet.build(config, nnx.Rngs(config.seed)),
        out_shardings=NamedSharding(mesh, REPLICATED),
    )()
    compute = unet.compute_dtype(config.model.dtype)
    levels, scales = len(module.encoder), scales_of(config.model)

    def array(level: int, channels: int, dtype: jnp.dtype = compute) -> jax.Array:
        size = [n // scale for n, scale in zip(config.data.patch, scales[level], strict=True)]
        shape = (config.train.batch_size, *size, channels)
        values = np.random.default_rng(level).standard_normal(shape, np.float32)
        return jax.device_put(values.astype(dtype), NamedSharding(mesh, BATCH_AND_DEPTH))

    def time(function: Callable, stage: nnx.Module, *inputs: jax.Array, wanted: bool = True):
        return measure(_with_gradients(function, stage, inputs, wanted), repeats)

    def encode(blocks: nnx.List, x: jax.Array, pool: Axes = (1, 1, 1)) -> jax.Array:
        x = max_pool3d(x, pool)
        for block in blocks:
            x = block(x)
        return x

    def decode(stage: nnx.Dict, x: jax.Array, skip: jax.Array) -> jax.Array:
        return encode(stage.blocks, jnp.concatenate([stage.up(x), skip], -1))

    channels = tuple(config.model.channels)
    times: dict[str, list[Timing]] = {}
    for level, blocks in enumerate(module.encoder):
        x = array(level - 1, channels[level - 1]) if level else array(0, 1, jnp.float32)
        pool = module.strides[level - 1] if level and module.pools else (1, 1, 1)
        times[f"encoder {level}"] = [time(partial(encode, pool=pool), blocks, x, wanted=level > 0)]
    for i, (up, blocks) in enumerate(zip(module.ups, module.decoder, strict=True)):
        level = levels - 2 - i
        inputs = array(level + 1, channels[level + 1]), array(level, channels[level])
        times[f"decoder {level}"] = [time(decode, nnx.Dict(up=up, blocks=blocks), *inputs)]
    targets, weights = targets_of(batch["labels"], config.data)
    loss_of = at_all_levels(make_loss(config))

    def score(heads: nnx.List, *features: jax.Array) -> jax.Array:
        logits = [h(x).astype(jnp.float32)[..., 0] for h, x in zip(heads, features, strict=True)]
        return loss_of(logits, targets, weights)

    heads = nnx.List([module.head, *module.deep_heads])
    features = [array(level, channels[level]) for level in range(len(heads))]
    times["heads and loss"] = [time(score, heads, *features)]
    times["augmentation"] = [measure_augmentation(config, mesh, batch, repeats)]
    params = nnx.to_pure_dict(nnx.state(module))
    times["optimizer"] = [measure(_optimizing(config, params), repeats)]
    times[NORM] = []
    known: dict[tuple[int, int], Timing] = {}
    for level, norm in _norms(module):
        key = (level, norm.scale.shape[0])
        if key not in known:
            known[key] = time(
                lambda norm, x: ACTIVATIONS[config.model.activation](norm(x)), norm, array(*key)
            )
        times[NORM].append(known[key])
    return times


def _norms(module: unet.UNet) -> Iterator[tuple[int, Norm]]:
    """(level, norm) of all of them; each is taken for one that an activation follows."""
    for side in (module.encoder, list(module.decoder)[::-1]):
        for level, stage in enumerate(side):
            yield from (
                (level, node) for _, node in nnx.iter_graph(stage) if isinstance(node, Norm)
            )


def _with_gradients(
    function: Callable, stage: nnx.Module, inputs: tuple[jax.Array, ...], wanted: bool
) -> Callable[[], object]:
    """Runs function(stage, *inputs) and its gradients: of the parameters, and of the inputs if
    they are wanted."""
    graph, params = nnx.split(stage)

    def forward(params, inputs):
        return function(nnx.merge(graph, params), *inputs)

    @jax.jit
    def run(params, inputs, cotangent):
        if wanted:
            result, pull = jax.vjp(forward, params, inputs)
        else:
            result, pull = jax.vjp(lambda p: forward(p, inputs), params)
        return result, pull(cotangent)

    cotangent = jax.jit(lambda p, x: jnp.ones_like(forward(p, x)))(params, inputs)
    return lambda: run(params, inputs, cotangent)


def _optimizing(config: ConfigDict, params: dict) -> Callable[[], object]:
    optimizer = make_optimizer(config)
    grads = jax.tree.map(lambda p: 1e-3 * jnp.ones_like(p), params)
    state = jax.tree.map(jnp.copy, params), optimizer.init(params)

    def update(state, grads):
        params, opt_state = state
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), optax.global_norm(grads)

    update = jax.jit(update, donate_argnums=0)

    def run() -> jax.Array:
        nonlocal state
        state, norm = update(state, grads)
        return norm

    return run


def shares(times: dict[str, list[Timing]], whole: Timing) -> dict:
    """Milliseconds and the share of the step `whole` of each stage, and of what they leave.

    On the CPU both are CPU time, which other work on the machine disturbs less.
    """
    on_cpu = jax.default_backend() == "cpu"

    def ms_of(timing: Timing) -> float:
        return timing.cpu if on_cpu else timing.ms

    ms = {name: sum(map(ms_of, layers)) for name, layers in times.items()}
    remainder = ms_of(whole) - sum(value for name, value in ms.items() if name != NORM)
    return {
        name: {"ms": value, "share": value / ms_of(whole)}
        for name, value in {**ms, "remainder": remainder}.items()
    }


def show(stages: dict) -> None:
    """Prints what `shares` returned."""
    rows = [(name, v["ms"], 100 * v["share"]) for name, v in stages.items() if name != NORM]
    norm = stages[NORM]
    print_table(
        "stages with gradients, each compiled alone; on the CPU its time",
        ("", "ms", "% of the step"),
        [*rows, (f"of it {NORM}", norm["ms"], 100 * norm["share"])],
    )
