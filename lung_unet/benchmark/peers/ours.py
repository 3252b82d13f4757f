"""lung_unet itself by the clock: as many steps as fit into the budget, then the usual evaluation.

    python -m lung_unet.benchmark.peers.ours --config=… --config.data.dir=PREPARED --out=DIR
        --minutes=30

A run of a few steps measures a step, a validation, a checkpoint, and the start with compilation;
the schedule is made for the steps that fit beside the others. All of a training process's time
counts, compilation too, though a program that was compiled before is read from JAX's cache.
"""

import json
import pathlib
import tempfile
from importlib.metadata import version

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from lung_unet import __version__, command
from lung_unet.benchmark.peers.exchange import spending, write_system
from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError
from lung_unet.evaluation.ensemble import Predict

PROBE_STEPS = 20
VALIDATIONS = 10  # and checkpoints, of a run
RESERVE = 0.03  # of the budget: steps are not all equally long


class Timed:
    """A predictor that adds the time it takes to `seconds`."""

    def __init__(self, predictor: Predict, seconds: dict[str, float]):
        self._predictor, self._seconds = predictor, seconds

    def __call__(self, hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
        with spending(self._seconds, "predict"):
            return self._predictor(hu, lungs)


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
            f"--minutes={budget_s / 60:g}: {fixed:.0f} s go into compilation and validation, and "
            f"a step takes {step_s:.2f} s; give more minutes"
        )
    return fit


def probe(config: ConfigDict, dataset: Dataset, budget_s: float) -> int:
    """How many steps fit into a budget, measured in a run of a few."""
    from lung_unet.train import goodput
    from lung_unet.train.loop import train

    config = scheduled(config, PROBE_STEPS)
    config.train.update(eval_every=PROBE_STEPS, checkpoint_every=PROBE_STEPS)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        train(config, dataset, folder, goodput.Goodput(folder))
        seconds = json.loads((folder / goodput.NAME).read_text())["seconds"]
    return steps_that_fit(seconds, PROBE_STEPS, budget_s)


def main() -> None:
    command.set_up_jax()
    from lung_unet.evaluation.resume import member
    from lung_unet.evaluation.split import evaluate_split
    from lung_unet.restore import restore_runs
    from lung_unet.train.loop import train
    from lung_unet.workdir import claim, load

    out = pathlib.Path(command.required("out"))
    config: ConfigDict = flags.FLAGS.config
    dataset = Dataset(config.data.dir, config.data.fold)
    steps = probe(config, dataset, 60 * flags.FLAGS.minutes)
    config = scheduled(config, steps)
    claim(out, config, dataset)
    seconds: dict[str, float] = {}
    with spending(seconds, "train"):
        if not train(config, dataset, out):
            return
    run = load(out)
    predictor, (step,) = restore_runs([run])
    timed = Timed(predictor, seconds)
    evaluate_split(timed, config, dataset, "test", out, [member(run, step)])
    write_system(
        out,
        f"lung_unet {__version__}",
        seconds,
        iterations=steps,
        batch=config.train.batch_size,
        patch=list(config.data.patch),
        spacing_mm=[dataset.spacing_mm] * 3,
        channels=list(config.model.channels),
        jax=version("jax"),
    )


if __name__ == "__main__":
    command.define_config("configs/unet3d.py")
    flags.DEFINE_string("out", None, "Folder of the run.")
    flags.DEFINE_float("minutes", 30.0, "To train, by the clock.", lower_bound=0)
    command.run(main)
