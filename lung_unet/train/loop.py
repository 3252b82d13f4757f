"""The training loop: restore; then, step by step, evaluate → save → next batch."""

import contextlib
import functools
import pathlib

import grain
import jax
from ml_collections import ConfigDict

from lung_unet.allocator import release_freed_memory
from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError
from lung_unet.parallel.distributed import training
from lung_unet.parallel.mesh import make_mesh, put_batch, share_of_batch
from lung_unet.parallel.watch import Watch
from lung_unet.train.checkpoint import Checkpoints
from lung_unet.train.goodput import Goodput
from lung_unet.train.meter import Meter
from lung_unet.train.optimizer import make_optimizer, make_schedule
from lung_unet.train.preemption import Preemption
from lung_unet.train.rollback import NotFinite, Skipped, check_finite
from lung_unet.train.step import (
    TrainState,
    abstract_state,
    init_state,
    make_apply,
    make_train_step,
)
from lung_unet.train.task import make_task
from lung_unet.train.writer import Writer


def train(
    config: ConfigDict, dataset: Dataset, workdir: pathlib.Path, goodput: Goodput | None = None
) -> bool:
    """Trains to `config.train.steps`, from the latest checkpoint in the workdir if there is one.

    Returns True once it is there, False if SIGTERM came before; the state is saved then.

    Raises:
      InputError: a configuration that cannot run, a loss that is not a number, or a disk that has
        no place for the last checkpoint.
    """
    skipped = Skipped(workdir, config.train)
    goodput = goodput or Goodput(workdir, writes=jax.process_index() == 0)
    with Preemption() as preemption:
        trainer = Trainer(config, dataset, workdir, goodput, skipped)
        checkpoints = trainer.checkpoints
        with contextlib.closing(checkpoints):
            while True:
                try:
                    return trainer.run(preemption)
                except NotFinite as bad:
                    checkpoints.settle()  # the last may be being saved
                    skipped.add(bad, checkpoints.latest_step(), checkpoints.folder)


class Trainer:
    """A run's parts, made once; `run` starts from the latest checkpoint each time."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        workdir: pathlib.Path,
        goodput: Goodput,
        skipped: Skipped,
    ):
        self.config, self.workdir = config, workdir
        self.goodput, self.skipped = goodput, skipped
        self.task = make_task(config, dataset, workdir)
        self.mesh = make_mesh(config)
        self.shard, self.shards = share_of_batch(self.mesh)
        self.apply, self.init = make_apply(config)
        self.optimizer = make_optimizer(config)
        self.schedule = make_schedule(config)
        self.abstract = abstract_state(config, self.init, self.optimizer, self.mesh)
        self.validation = self.task.validation_batches(self.shard, self.shards)
        self.checkpoints = Checkpoints(workdir / "checkpoints", self.task.metric)

    @functools.cached_property
    def train_step(self) -> jax.stages.Compiled:
        step = make_train_step(
            self.config, self.apply, self.optimizer, self.mesh, self.task.make_gradient
        )
        return self.compiled(step, self.abstract)

    @functools.cached_property
    def validation_step(self) -> jax.stages.Compiled:
        step = self.task.make_validation_step(self.config, self.apply, self.mesh)
        return self.compiled(step, self.abstract.weights)

    def compiled(self, step, like) -> jax.stages.Compiled:
        batch = put_batch(self.validation[0], self.mesh)  # of the same shape as those of training
        with self.goodput.spending("compilation"):
            program = step.lower(like, batch).compile()
            release_freed_memory()
            return program

    def run(self, preemption: Preemption) -> bool:
        """Trains from the latest checkpoint; True at the last step, False if SIGTERM came before.

        Raises:
          NotFinite: the loss is not a number; what is saved is good.
          InputError: the run is beyond its last step.
        """
        c, checkpoints, goodput = self.config.train, self.checkpoints, self.goodput
        state, batches = self.restore()
        first = saved = int(state.step)
        if first > c.steps:
            raise InputError(
                f"{self.workdir}: is at step {first} already; set config.train.steps, {c.steps} "
                f"now, to {first} or more, or choose another --workdir"
            )
        if first < c.steps:  # now: SIGTERM costs nothing yet, too little memory shows early
            train_step, _ = self.train_step, self.validation_step
            self.checkpoints.compile(self.abstract)
        meter, pending = Meter(c.batch_size), None
        with (
            preemption.holding(),
            training() as watch,
            Writer(self.workdir, first, c.steps, writes=jax.process_index() == 0) as writer,
        ):
            goodput.switch("steps")
            for step in range(first, c.steps + 1):
                watch.beat()
                scores = None
                if self.due(step, c.eval_every) and not writer.holds(step, "validation/loss"):
                    self.settle(pending)
                    with meter.paused(), goodput.spending("evaluation"):
                        scores = self.validate(state.weights, preemption, watch)
                if scores:
                    if step == saved:
                        checkpoints.score(step, scores)
                    text = "validation " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
                    writer.write(step, {f"validation/{k}": v for k, v in scores.items()}, text)

                preempted = preemption.requested()
                # What was validated too: it may be the best.
                if step > saved and (self.due(step, c.checkpoint_every) or scores or preempted):
                    self.settle(pending)
                    with meter.paused(), goodput.spending("checkpoints"):
                        mining = self.mining.get_state()
                        position = {"batches": batches.get_state(), "mining": mining}
                        checkpoints.save(state, position, scores)
                    saved = step
                    goodput.saved(step)
                    shares = goodput.shares()
                    writer.draw(step, {f"goodput/{k}": v for k, v in shares.items()})
                if preempted or step == c.steps:
                    break

                with goodput.spending("input"):
                    if self.mining.due(step):
                        self.settle(pending)
                        self.mining.refresh()
                        batches.set_state(batches.get_state())  # what was read ahead is drawn anew
                    for _ in range(self.skipped.count(step + 1)):
                        next(batches)
                    batch = put_batch(next(batches), self.mesh)
                watch.beat()
                state, metrics = train_step(state, batch)
                self.settle(pending)  # of the step before, so that dispatch never waits
                pending = (step + 1, metrics)
                meter.tick()
                writer.progress(step + 1, f"{meter.step_ms:.0f} ms a step")
                if self.due(step + 1, c.log_every):
                    self.log(writer, meter, *pending)
            with goodput.spending("checkpoints"):
                checkpoints.wait()
            goodput.saved(saved)
        stopped = preempted or preemption.requested()  # the latter while the last was being saved
        if stopped:
            print(f"preempted at step {saved}; run the same command again to go on")
        return not stopped

    def restore(self) -> tuple[TrainState, grain.DatasetIterator]:
        """(state, batches) of the latest checkpoint, fresh ones if there is none."""
        self.mining = self.task.mining()
        batches = iter(self.task.training_batches(self.mining, self.shard, self.shards))
        found = self.checkpoints.restore(self.abstract)
        if found is None:
            self.goodput.restored(0)
            return init_state(self.config, self.init, self.optimizer, self.mesh), batches
        state, position = found
        batches.set_state(position["batches"])
        self.mining.set_state(position["mining"])
        self.goodput.restored(int(state.step))
        print(f"resuming from step {int(state.step)} of {self.checkpoints.folder}")
        return state, batches

    def settle(self, pending: tuple[int, dict] | None) -> None:
        """Waits for a step, refuses a loss that is not a number, and keeps what is to be mined."""
        check_finite(pending)
        if pending and "block" in pending[1]:
            self.mining.record(
                *jax.device_get((pending[1]["block"], pending[1]["false_positives"]))
            )

    def validate(
        self, params: dict, preemption: Preemption, watch: Watch
    ) -> dict[str, float] | None:
        """The task's scores of the validation batches; None if preempted."""
        outputs = []
        for batch in self.validation:
            watch.beat()
            if preemption.requested():
                return None
            output = self.validation_step(params, put_batch(batch, self.mesh))
            outputs.append(jax.device_get(output))
        return self.task.scores(outputs)

    def log(self, writer: Writer, meter: Meter, step: int, metrics: dict) -> None:
        row = {
            "train/loss": check_finite((step, metrics)),
            "train/grad_norm": float(metrics["grad_norm"]),
            "train/learning_rate": float(self.schedule(step - 1)),
            "step_ms": meter.step_ms,
            "patches_per_s": meter.patches_per_s,
        }
        text = (
            f"loss {row['train/loss']:.4f}  lr {row['train/learning_rate']:.2e}  "
            f"{meter.step_ms:.0f} ms a step  {meter.patches_per_s:.2f} patches/s"
        )
        writer.write(step, row, text)
        self.goodput.write()

    def due(self, step: int, every: int) -> bool:
        """Whether to do after a step what is done `every` so many, and after the last."""
        return step > 0 and (step % every == 0 or step == self.config.train.steps)
