"""The second stage as the loop trains it: nodule or not, and the malignancy of what was rated."""

import dataclasses
import pathlib
from collections.abc import Callable

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from lung_unet.data import crops
from lung_unet.data.crops import NOT_RATED
from lung_unet.data.mining import Mining
from lung_unet.data.scan import IGNORE
from lung_unet.finished import METRICS
from lung_unet.model.classifier import MIDDLE_RATING, RATINGS_A_UNIT
from lung_unet.parallel.compiler import compiler_options
from lung_unet.parallel.mesh import BATCH, REPLICATED
from lung_unet.train.augment import augment, window
from lung_unet.train.ranking import auc, average_precision, malignancy_scores
from lung_unet.train.step import Apply, Batch, Gradient, Metrics, one_a_sample

FOLDER = "candidates"  # of the workdir: where the crops lie
NO_MINING = ConfigDict({"every": 0, "fraction": 0.0})  # the segmentation's marks are hard already


def opinion_terms(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy of nodule or not, Huber loss of the malignancy), each (batch,).

    outputs (batch, 2) are the network's.
    """
    entropy = optax.sigmoid_binary_cross_entropy(outputs[:, 0], (batch["nodule"] == 1) * 1.0)
    target = (batch["malignancy"] - MIDDLE_RATING) / RATINGS_A_UNIT
    return entropy, optax.huber_loss(outputs[:, 1], target)


def opinion_loss(
    entropy: ArrayLike,
    distance: ArrayLike,
    nodule: ArrayLike,
    rating: ArrayLike,
    malignancy_weight: float,
) -> jax.Array:
    """The mean entropy of what is not ignored, plus the weighted mean distance of what is rated.

    The terms are those of `opinion_terms`; nodule and rating as in a batch; all (batch,).
    """
    known = jnp.asarray(nodule) != IGNORE
    rated = known & (jnp.asarray(rating) != NOT_RATED)

    def mean(values: ArrayLike, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(where.sum(), 1)

    return mean(entropy, known) + malignancy_weight * mean(distance, rated)


def opinions(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(probability of a nodule, rating of its malignancy within 1 to 5), each (batch,)."""
    ratings = MIDDLE_RATING + RATINGS_A_UNIT * outputs[:, 1]
    return jax.nn.sigmoid(outputs[:, 0]), jnp.clip(ratings, 1, 5)


def make_gradient(config: ConfigDict, apply: Apply, mesh: Mesh) -> Gradient:
    """(params, batch, key) → (loss, gradient, no metrics), of the batch augmented by the key."""

    def augmented(hu: jax.Array, keys: jax.Array) -> jax.Array:
        return augment(hu, jnp.zeros_like(hu, jnp.uint8), keys, config)[0]

    augment_local = jax.shard_map(
        augmented, mesh=mesh, in_specs=BATCH, out_specs=BATCH, check_vma=False
    )

    def gradient(params: dict, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict, Metrics]:
        with jax.named_scope("augmentation"):
            images = augment_local(batch["hu"], one_a_sample(key, batch))

        def loss(params: dict) -> jax.Array:
            terms = opinion_terms(apply(params, images), batch)
            known = batch["nodule"], batch["malignancy"]
            return opinion_loss(*terms, *known, config.loss.malignancy_weight)

        return *jax.value_and_grad(loss)(params), {}

    return gradient


def make_validation_step(
    config: ConfigDict, apply: Apply, mesh: Mesh
) -> Callable[[dict, Batch], dict[str, jax.Array]]:
    """The compiled validation: (params, batch) → of each candidate what it is and seems, and the
    terms of the loss."""
    replicated = NamedSharding(mesh, REPLICATED)

    def step(params: dict, batch: Batch) -> dict[str, jax.Array]:
        params = jax.lax.with_sharding_constraint(params, replicated)
        outputs = apply(params, window(batch["hu"], config.data.window_hu)[..., None])
        probability, malignancy = opinions(outputs)
        entropy, distance = opinion_terms(outputs, batch)
        return {
            "nodule": batch["nodule"],
            "rating": batch["malignancy"],
            "probability": probability,
            "malignancy": malignancy,
            "entropy": entropy,
            "distance": distance,
        }

    return jax.jit(
        step,
        in_shardings=(None, NamedSharding(mesh, BATCH)),
        out_shardings=replicated,
        compiler_options=compiler_options(mesh),
    )


@dataclasses.dataclass(frozen=True)
class Classification:
    """See task.Task. The crops are those that `collect` cut into the workdir."""

    config: ConfigDict
    workdir: pathlib.Path
    metric = METRICS["classification"]  # few false positives before each nodule, as FROC wants it
    make_gradient = staticmethod(make_gradient)
    make_validation_step = staticmethod(make_validation_step)

    def mining(self) -> Mining:
        return Mining(NO_MINING, 0)

    def training_batches(self, mining: Mining, shard: int, shards: int) -> grain.IterDataset:
        data = self.config.data
        return crops.training_batches(
            self.workdir / FOLDER,
            patch=tuple(data.patch),
            batch_size=self.config.train.batch_size,
            nodule_fraction=data.nodule_fraction,
            seed=self.config.seed,
            threads=data.threads,
            prefetch=data.prefetch,
            on_broken=data.on_broken,
            shard=shard,
            shards=shards,
        )

    def validation_batches(self, shard: int, shards: int) -> list[dict[str, np.ndarray]]:
        return crops.validation_batches(
            self.workdir / FOLDER,
            patch=tuple(self.config.data.patch),
            batch_size=self.config.train.batch_size,
            patches=self.config.train.validation_patches,
            shard=shard,
            shards=shards,
        )

    def scores(self, outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Of all candidates the loss, how well nodules are told from others, and benign ones from
        malignant."""
        rows = {k: np.concatenate([o[k] for o in outputs]) for k in outputs[0]}
        known = rows["nodule"] != IGNORE
        rated = known & (rows["rating"] != NOT_RATED)
        nodule = rows["nodule"][known] == 1
        terms = rows["entropy"], rows["distance"], rows["nodule"], rows["rating"]
        loss = opinion_loss(*terms, malignancy_weight=self.config.loss.malignancy_weight)
        values = {
            "loss": float(loss),
            "auc": auc(rows["probability"][known], nodule),
            "average_precision": average_precision(rows["probability"][known], nodule),
            **malignancy_scores(rows["malignancy"][rated], rows["rating"][rated]),
        }
        return {name: value for name, value in values.items() if value is not None}
