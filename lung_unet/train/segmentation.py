"""Segmentation as the loop trains it: patches of blocks, and Dice to know the best checkpoint."""

import dataclasses

import grain
import numpy as np
from ml_collections import ConfigDict

from lung_unet.data import pipeline
from lung_unet.data.manifest import Dataset
from lung_unet.data.mining import Mining
from lung_unet.finished import METRICS
from lung_unet.train.step import make_gradient, make_validation_step


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """See task.Task."""

    config: ConfigDict
    dataset: Dataset
    metric = METRICS["segmentation"]
    make_gradient = staticmethod(make_gradient)
    make_validation_step = staticmethod(make_validation_step)

    def mining(self) -> Mining:
        return Mining(self.config.data.mining, self.dataset.records("train", "background"))

    def training_batches(self, mining: Mining, shard: int, shards: int) -> grain.IterDataset:
        data = self.config.data
        return pipeline.training_batches(
            self.dataset,
            patch=tuple(data.patch),
            batch_size=self.config.train.batch_size,
            nodule_fraction=data.nodule_fraction,
            seed=self.config.seed,
            threads=data.threads,
            prefetch=data.prefetch,
            on_broken=data.on_broken,
            mining=mining,
            shard=shard,
            shards=shards,
        )

    def validation_batches(self, shard: int, shards: int) -> list[dict[str, np.ndarray]]:
        if shard == 0:
            self._tell()
        return pipeline.validation_batches(
            self.dataset,
            patch=tuple(self.config.data.patch),
            batch_size=self.config.train.batch_size,
            patches=self.config.train.validation_patches,
            seed=self.config.seed,
            shard=shard,
            shards=shards,
        )

    def _tell(self) -> None:
        """Prints what of the data may not be meant."""
        if not any(e["nodules"] for e in self.dataset.scans("validation")):
            print("validation: its scans have no nodule; the latest checkpoint counts as the best")
        manifest, data = self.dataset.manifest, self.config.data
        readers = manifest["settings"]["min_readers"]
        outlined = manifest["counts"]["scans_with_outlines"]
        if data.label == "consensus" and data.consensus > readers and outlined:
            print(
                f"config.data.consensus = {data.consensus}: nodules that only {readers} readers "
                "outlined have no voxel to train on, but are scored"
            )

    def scores(self, outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Mean loss, and Dice over all voxels of the validation patches, if any is nodule: else
        it would be 1 for a network that finds nothing."""
        total = {k: float(np.sum([s[k] for s in outputs])) for k in outputs[0]}
        scores = {"loss": total["loss"] / len(outputs)}
        if total["true"]:
            scores["dice"] = 2 * total["hit"] / (total["predicted"] + total["true"])
        return scores
