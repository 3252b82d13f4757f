"""What a run trains, by `config.task`: all that the loop does not do the same for every network."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import grain
import numpy as np
from ml_collections import ConfigDict

from lung_unet.data.labels import agreement
from lung_unet.data.manifest import Dataset
from lung_unet.data.mining import Mining
from lung_unet.data.shard_reader import check_on_broken
from lung_unet.errors import InputError
from lung_unet.model.losses import make_loss
from lung_unet.parallel.mesh import make_mesh
from lung_unet.train.classification import Classification
from lung_unet.train.optimizer import make_optimizer
from lung_unet.train.rollback import check_on_nan
from lung_unet.train.segmentation import Segmentation

TASKS = ("segmentation", "classification")
COUNTS = (
    "steps", "batch_size", "accumulate", "log_every", "eval_every", "checkpoint_every",
    "validation_patches",
)  # fmt: skip


class Task(Protocol):
    """Its network is that of `step.make_apply`; batches are part `shard` of `shards` equal ones."""

    @property
    def metric(self) -> str:
        """Which of the scores tells the best checkpoint: the highest."""

    @property
    def make_gradient(self) -> Callable[..., Callable]:
        """(config, apply, mesh) → as `step.make_gradient`."""

    @property
    def make_validation_step(self) -> Callable[..., Any]:
        """(config, apply, mesh) → the compiled (params, batch) → what `scores` takes a list of."""

    def mining(self) -> Mining:
        """Fresh scores of hard negatives, that the training batches are drawn by."""

    def training_batches(self, mining: Mining, shard: int, shards: int) -> grain.IterDataset: ...

    def validation_batches(self, shard: int, shards: int) -> list[dict[str, np.ndarray]]: ...

    def scores(self, outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """The loss, and what else is defined."""


def check(config: ConfigDict) -> None:
    """Returns where the configuration asks for what can be done, before data are made for it.

    Raises:
      InputError: no such task, a choice or number that cannot be, devices that are not there, or
        what only segmentation has.
    """
    if config.task not in TASKS:
        raise InputError(f"config.task = {config.task!r}: choose one of {', '.join(TASKS)}")
    for name in COUNTS:
        if config.train[name] < 1:
            raise InputError(f"config.train.{name} = {config.train[name]}: choose 1 or more")
    check_on_nan(config.train)
    low_high = tuple(config.data.window_hu)
    if len(low_high) != 2 or not -math.inf < low_high[0] < low_high[1] < math.inf:
        raise InputError(
            f"config.data.window_hu = {low_high}: choose two HU, the lower first, as (-1000, 400)"
        )
    for name, value in (("seed", config.seed), ("data.threads", config.data.threads)):
        if value < 0:
            raise InputError(f"config.{name} = {value}: choose 0 or more")
    fraction = config.data.nodule_fraction
    if not 0 <= fraction <= 1:
        raise InputError(f"config.data.nodule_fraction = {fraction:g}: choose 0 to 1")
    check_on_broken(config.data.on_broken)
    if config.task == "segmentation":
        make_loss(config)
        agreement(config.data)
        Mining(config.data.mining, 0)
    elif fraction in (0, 1):
        raise InputError(
            f"config.data.nodule_fraction = {fraction:g}: choose above 0 and below 1, as what is "
            "no nodule must be learnt too"
        )
    elif (config.mesh.space, config.train.accumulate) != (1, 1):
        raise InputError(
            "config.mesh.space and config.train.accumulate: leave both at 1, crops are small"
        )
    make_optimizer(config)
    make_mesh(config)


def make_task(config: ConfigDict, dataset: Dataset, workdir: pathlib.Path) -> Task:
    """The task that `config.task` names.

    Raises:
      InputError: as `check`.
    """
    check(config)
    if config.task == "segmentation":
        return Segmentation(config, dataset)
    return Classification(config, workdir)
