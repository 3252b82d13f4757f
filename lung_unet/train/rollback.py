"""A loss that is not a number: stop, or go back and leave the batch out."""

import json
import math
import pathlib

import jax
from ml_collections import ConfigDict

from lung_unet.errors import InputError
from lung_unet.files import write_text

NAME = "skipped.json"
ON_NAN = ("stop", "rollback")


class NotFinite(Exception):
    """The loss or the gradient of a step is not a number."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"the loss is {loss} at step {step}")
        self.step = step


def check_finite(pending: tuple[int, dict] | None) -> float:
    """The loss of a step, given with its metrics; waits for it.

    Raises:
      NotFinite: it, or the gradient's norm, is not a number.
    """
    if pending is None:
        return 0.0
    step, metrics = pending
    loss = float(metrics["loss"])
    if not math.isfinite(loss) or not math.isfinite(float(metrics["grad_norm"])):
        raise NotFinite(step, loss)
    return loss


def check_on_nan(train: ConfigDict) -> None:
    """
    Raises:
      InputError: config.train.on_nan is unknown.
    """
    if train.on_nan not in ON_NAN:
        raise InputError(f"config.train.on_nan = {train.on_nan!r}: choose {' or '.join(ON_NAN)}")


class Skipped:
    """The steps whose batch is left out, once for each time that it is listed.

    Kept in the workdir, so that a run that is killed after it went back skips the same batches.
    """

    def __init__(self, workdir: pathlib.Path, train: ConfigDict):
        """
        Raises:
          InputError: the list is broken.
        """
        self._path = workdir / NAME
        self._most = train.max_rollbacks if train.on_nan == "rollback" else 0
        try:
            self._steps = [int(s) for s in json.loads(self._path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            self._steps = []
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self._path}: is broken ({error}); choose another --workdir"
            ) from error

    def count(self, step: int) -> int:
        """How many batches to leave out before that of a step."""
        return self._steps.count(step)

    def add(self, bad: NotFinite, good: int | None, folder: pathlib.Path) -> None:
        """Leaves out the batch of a bad step from now on; `good` is the latest checkpoint's step.

        Raises:
          InputError: by the configuration this is where to stop.
        """
        if len(self._steps) >= self._most:
            where = "no checkpoint was saved" if good is None else f"{folder}/{good} is good"
            free = "config.train.on_nan=rollback, which leaves such batches out"
            if self._most:
                free = f"a config.train.max_rollbacks above {self._most}"
            after = f" after {len(self._steps)} rollbacks" if self._steps else ""
            raise InputError(
                f"{bad}{after}; {where}: run again with {free}, or with a lower "
                "config.optimizer.learning_rate or clip_norm in another --workdir"
            )
        self._steps.append(bad.step)
        if jax.process_index() == 0:
            write_text(self._path, json.dumps(self._steps))
        print(f"{bad}; going back to step {good or 0} and leaving its batch out")
