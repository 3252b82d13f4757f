"""How many of our own steps fit into a budget: measured in a run of a few."""

import json
import pathlib
import tempfile

from ml_collections import ConfigDict

from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError, Stopped
from lung_unet.train import goodput
from lung_unet.train.classification import FOLDER
from lung_unet.train.loop import train
from lung_unet.train.writer import JSONL, read_rows

PROBE_STEPS = 20
VALIDATIONS = 10  # and checkpoints, of a run
RESERVE = 0.05  # of the budget: steps are not all equally long


def scheduled(config: ConfigDict, steps: int) -> ConfigDict:
    """The configuration of a run of so many steps."""
    config = config.copy_and_resolve_references()
    every = max(1, steps // VALIDATIONS)
    config.train.update(steps=steps, eval_every=every, checkpoint_every=every)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 20)
    return config


def steps_that_fit(seconds: dict[str, float], steps: int, step_s: float, budget_s: float) -> int:
    """How many steps fit into a budget, by goodput's `seconds` of a run of `steps` steps with one
    validation and one checkpoint, of which the later steps took `step_s` each.

    Raises:
      InputError: not even as many as there are validations.
    """
    fixed = seconds["start"] + seconds["compilation"]
    fixed += max(0.0, seconds["steps"] + seconds["input"] - steps * step_s)  # the first batch
    fixed += VALIDATIONS * (seconds["evaluation"] + seconds["checkpoints"])
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
      InputError: as `steps_that_fit`. `Stopped` by SIGTERM.
    """
    config = scheduled(config, PROBE_STEPS)
    each = {f"{what}_every": PROBE_STEPS for what in ("eval", "checkpoint", "log")}
    config.train.update(each)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if crops is not None:
            (folder / FOLDER).symlink_to(crops.absolute())
        if not train(config, dataset, folder, goodput.Goodput(folder)):
            raise Stopped(f"{folder}: was stopped; run the same command again")
        seconds = json.loads((folder / goodput.NAME).read_text(encoding="utf-8"))["seconds"]
        (step_ms,) = (r["step_ms"] for r in read_rows(folder / JSONL) if "step_ms" in r)
    return steps_that_fit(seconds, PROBE_STEPS, step_ms / 1000, budget_s)
