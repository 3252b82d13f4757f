"""Augmentation of a batch: its time, its share of the step, and each transform alone."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lung_unet.benchmark import synthetic
from lung_unet.benchmark.program import compile_step, runner
from lung_unet.benchmark.tables import print_table
from lung_unet.benchmark.timing import Timing, measure
from lung_unet.parallel.mesh import BATCH, make_mesh, put_batch
from lung_unet.train.augment import augment
from lung_unet.train.step import Batch

DRAWN_S = 1.0  # a repeat: long enough for rare transforms to count as often as they are drawn


def without_augmentation(config: ConfigDict) -> ConfigDict:
    """A copy of the configuration in which no transform is ever drawn."""
    return _drawing(config, only=None)


def _drawing(config: ConfigDict, only: str | None) -> ConfigDict:
    """A copy of the configuration that draws one transform always, the others never."""
    copy = config.copy_and_resolve_references()
    copy.augment.update_from_flattened_dict(
        {name: float(name == only) for name in _switches(config.augment)}
    )
    return copy


def _switches(c: ConfigDict) -> dict[str, float]:
    """The probability of each transform, by its path in `config.augment`."""
    return {f"{name}.probability": group.probability for name, group in c.items()}


def measure_augmentation(config: ConfigDict, mesh: Mesh, batch: Batch, repeats: int) -> Timing:
    """Times of the augmentation of a batch, compiled alone; each call draws anew."""
    apply = jax.shard_map(
        partial(augment, config=config), mesh=mesh, in_specs=BATCH, out_specs=BATCH, check_vma=False
    )

    @jax.jit
    def draw(batch: Batch, step: jax.Array):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        return apply(batch["hu"], batch["labels"], jax.random.split(key, batch["hu"].shape[0]))

    steps = itertools.count()
    return measure(lambda: draw(batch, jnp.int32(next(steps))), repeats, DRAWN_S)


def measure_augment(config: ConfigDict, repeats: int) -> dict:
    """The augmentation as configured, and each of its transforms alone, of every sample."""
    mesh = make_mesh(config)
    batch = put_batch(synthetic.batch(config), mesh)
    step = measure(runner(config, mesh, compile_step(config, mesh, batch, True)[0], batch), repeats)
    configured = measure_augmentation(config, mesh, batch, repeats)
    alone = {
        name.removesuffix(".probability"): measure_augmentation(
            _drawing(config, name), mesh, batch, repeats
        )
        for name, probability in _switches(config.augment).items()
        if probability
    }
    none = measure_augmentation(without_augmentation(config), mesh, batch, repeats)
    return {
        **configured.to_json("augment"),
        **step.to_json("step"),
        "share": configured.ms / step.ms,
        "none": none.to_json("augment"),
        "alone": {name: timing.to_json("augment") for name, timing in alone.items()},
    }


def show_augment(result: dict) -> None:
    """Prints what `measure_augment` returned."""
    r = result
    rows = [("as configured", r), ("nothing drawn", r["none"])]
    rows += [(f"{name} alone, always", row) for name, row in r["alone"].items()]
    print_table(
        f"augmentation of a batch: {100 * r['share']:.1f}% of the step's {r['step_ms']:.1f} ms",
        ("", "ms", "lowest", "highest", "CPU ms"),
        [
            (label, v["augment_ms"], *v["augment_ms_spread"], v["augment_cpu_ms"])
            for label, v in rows
        ],
    )
