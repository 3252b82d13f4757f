"""How many of our own steps fit into a budget: measured in a run of a few."""

import json
import pathlib
import tempfile

from ml_collections import ConfigDict

from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError
from lung_unet.train import goodput
from lung_unet.train.classification import FOLDER
from lung_unet.train.loop import train

PROBE_STEPS = 20
VALIDATIONS = 10  # and checkpoints, of a run
RESERVE = 0.03  # of the budget: steps are not all equally long


def scheduled(config: ConfigDict, steps: int) -> ConfigDict:
    """The configuration of a run of so many steps."""
    config = config.copy_and_resolve_references()
    every = max(1, steps // VALIDATIONS)
    config.train.update(steps=steps, eval_every=every, checkpoint_every=every)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 20)
    return config


def steps_that_fit(seconds: dict[str, float], steps: int, budget_s: float) -> int:
    """How many steps fit into a budget, by goodput's `seconds` of a run of `steps` steps with one
    validation and one checkpoint.

    Raises:
      InputError: not even as many as there are validations.
    """
    fixed = seconds["start"] + seconds["compilation"]
    fixed += VALIDATIONS * (seconds["evaluation"] + seconds["checkpoints"])
    step_s = (seconds["steps"] + seconds["input"]) / steps
    fit = int((budget_s * (1 - RESERVE) - fixed) / step_s)
    if fit < VALIDATIONS:
        raise InputError(
            f"{max(0, budget_s) / 60:.1f} minutes to train: {fixed:.0f} s go into compilation and "
            f"validation, and a step takes {step_s:.2f} s; give more --minutes"
        )
    return fit


def probe(
    config: ConfigDict, dataset: Dataset, budget_s: float, crops: pathlib.Path | None = None
) -> int:
    """How many steps fit into a budget; a second stage is trained on `crops`.

    Raises:
      InputError: as `steps_that_fit`.
    """
    config = scheduled(config, PROBE_STEPS)
    config.train.update(eval_every=PROBE_STEPS, checkpoint_every=PROBE_STEPS)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if crops is not None:
            (folder / FOLDER).symlink_to(crops.absolute())
        train(config, dataset, folder, goodput.Goodput(folder))
        seconds = json.loads((folder / goodput.NAME).read_text())["seconds"]
    return steps_that_fit(seconds, PROBE_STEPS, budget_s)
