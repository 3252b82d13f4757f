"""The training loop: restore; then, step by step, evaluate → save → next batch."""

import math
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from lung_unet.data.manifest import Dataset
from lung_unet.data.pipeline import training_batches, validation_batches
from lung_unet.errors import InputError
from lung_unet.parallel.mesh import make_mesh, put_batch
from lung_unet.train.checkpoint import Checkpoints
from lung_unet.train.optimizer import make_optimizer, make_schedule
from lung_unet.train.step import init_state, make_apply, make_train_step, make_validation_step
from lung_unet.train.writer import Writer


def train(config: ConfigDict, dataset: Dataset, workdir: pathlib.Path) -> None:
    """Trains to `config.train.steps`, from the latest checkpoint in the workdir if there is one.

    Raises:
      InputError: a configuration that cannot run, or a loss that is not a number.
    """
    mesh = make_mesh(config)
    apply, init = make_apply(config)
    optimizer = make_optimizer(config)
    schedule = make_schedule(config)
    train_step = make_train_step(config, apply, optimizer, mesh)
    validation_step = make_validation_step(config, apply, mesh)
    batch_size = config.train.batch_size
    patch = tuple(config.data.patch)
    batches = iter(
        training_batches(
            dataset,
            patch=patch,
            batch_size=batch_size // jax.process_count(),
            nodule_fraction=config.data.nodule_fraction,
            seed=config.seed,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            on_broken=config.data.on_broken,
            shard=jax.process_index(),
            shards=jax.process_count(),
        )
    )
    validation = validation_batches(
        dataset,
        patch=patch,
        batch_size=batch_size,
        patches=config.train.validation_patches,
        seed=config.seed,
    )
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = init_state(init, optimizer, mesh)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state, batches)
        print(f"resuming from step {int(state.step)} of {checkpoints.folder}")
    first, steps = int(state.step), config.train.steps
    scores = {"loss": math.nan, "dice": 0.0}

    with Writer(workdir, first, steps) as writer:
        if first < steps:
            writer.progress(first, "compiling")
        pending = None  # metrics are read one step late, so that dispatch never waits
        meter = Meter(batch_size)
        for step in range(first + 1, steps + 1):
            state, metrics = train_step(state, put_batch(next(batches), mesh))
            if pending is not None:
                check_finite(pending, checkpoints)
            pending = (step, metrics)
            meter.tick()
            writer.progress(step, f"{meter.step_ms:.0f} ms a step")

            if step % config.train.log_every == 0 or step == steps:
                loss = check_finite(pending, checkpoints)
                row = {
                    "train/loss": loss,
                    "train/grad_norm": float(metrics["grad_norm"]),
                    "train/learning_rate": float(schedule(step - 1)),
                    "step_ms": meter.step_ms,
                    "patches_per_s": meter.patches_per_s,
                }
                text = (
                    f"loss {loss:.4f}  lr {row['train/learning_rate']:.2e}  "
                    f"{meter.step_ms:.0f} ms a step  {meter.patches_per_s:.2f} patches/s"
                )
                writer.write(step, row, text)
            if step % config.train.eval_every == 0 or step == steps:
                check_finite(pending, checkpoints)
                with meter.paused():
                    scores = validate(validation_step, state.params, validation, mesh)
                row = {f"validation/{k}": v for k, v in scores.items()}
                writer.write(
                    step, row, f"validation loss {scores['loss']:.4f}  dice {scores['dice']:.4f}"
                )
            if step % config.train.checkpoint_every == 0 or step == steps:
                check_finite(pending, checkpoints)
                with meter.paused():
                    checkpoints.save(state, batches, scores)
    checkpoints.wait()
    checkpoints.close()


def validate(validation_step, params: dict, batches: list[dict], mesh) -> dict[str, float]:
    """Mean loss, and Dice over all voxels of the validation patches together."""
    sums = [jax.device_get(validation_step(params, put_batch(b, mesh))) for b in batches]
    total = {k: float(np.sum([s[k] for s in sums])) for k in sums[0]}
    marked = total["predicted"] + total["true"]
    return {
        "loss": total["loss"] / len(sums),
        "dice": 2 * total["hit"] / marked if marked else 1.0,
    }


def check_finite(pending: tuple[int, dict], checkpoints: Checkpoints) -> float:
    """The loss of a finished step.

    Raises:
      InputError: it is not a number; the message names the last good checkpoint.
    """
    step, metrics = pending
    loss = float(metrics["loss"])
    if not math.isfinite(loss) or not math.isfinite(float(metrics["grad_norm"])):
        checkpoints.wait()
        good = checkpoints.latest_step()
        where = (
            "no checkpoint was saved" if good is None else f"{checkpoints.folder}/{good} is good"
        )
        raise InputError(
            f"the loss is {loss} at step {step}; {where}: lower config.optimizer.learning_rate "
            "or config.optimizer.clip_norm and run again"
        )
    return loss


class Meter:
    """Milliseconds a step over the last steps, compilation and pauses left out."""

    def __init__(self, batch_size: int, keep: int = 20):
        self._batch_size, self._keep = batch_size, keep
        self._times: list[float] = []
        self._last: float | None = None

    def tick(self) -> None:
        """Call once a step, after the step before is known to be done."""
        now = time.perf_counter()
        if self._last is not None:
            self._times = [*self._times[1 - self._keep :], now - self._last]
        self._last = now

    def paused(self) -> "Meter":
        return self

    def __enter__(self) -> None:
        self._last = None

    def __exit__(self, *_) -> None:
        self._last = None

    @property
    def step_ms(self) -> float:
        return 1000 * float(np.median(self._times)) if self._times else 0.0

    @property
    def patches_per_s(self) -> float:
        return 1000 * self._batch_size / self.step_ms if self._times else 0.0
