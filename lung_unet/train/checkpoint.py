"""Checkpoints: state and data position together, saved in the background, best and latest kept."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from lung_unet.errors import InputError
from lung_unet.files import write_text
from lung_unet.parallel.distributed import gather
from lung_unet.parallel.mesh import REPLICATED
from lung_unet.train.step import TrainState
from lung_unet.train.stored import Stored, abstract, broken_scores, reason_of

TMP = ".orbax-checkpoint-tmp"  # Orbax's mark of what is not whole yet


class Checkpoints(Stored):
    """The checkpoints in one folder, to read and to add to; newest and best are kept.

    A checkpoint takes its name only once it is whole. One that could not be written (a full disk)
    is told of in a line and costs nothing that was saved before; the next is tried as usual.

    Of the processes of a job the first writes, all read, and each learns what became of it; they
    make the same calls.
    """

    def __init__(self, folder: pathlib.Path, metric: str = "dice"):
        self._writes = jax.process_index() == 0
        if self._writes:
            folder.mkdir(parents=True, exist_ok=True)
            for path, error in broken_scores(folder.absolute()):
                write_text(path, json.dumps({metric: None}))
                print(f"{path}: is broken ({error}); this checkpoint counts as not validated")
        gather("scores", "")
        super().__init__(folder, metric, saving=self._writes)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: concurrent.futures.Future | None = None
        self._begun = False  # a save that is not settled
        self._failed = ""  # why the last one was not written
        self._copy: Callable[[TrainState], TrainState] = jax.jit(_copied)

    def compile(self, like: TrainState) -> None:
        """Makes ready to save such states, so that the first time takes no longer than others."""
        shardings = jax.tree.map(_whole, like) if jax.process_count() > 1 else None
        self._copy = jax.jit(_copied, out_shardings=shardings).lower(like).compile()

    def save(self, state: TrainState, position: dict, scores: dict[str, float] | None) -> None:
        """Starts to save; returns once the state is copied, all else goes on in the background.

        `position` is the data iterator's state, `scores` the validation of this state, if any.
        """
        self.settle()
        copied = self._copy(state)  # the next step takes the memory of `state`
        self._begun = True
        if self._writes:
            self._saving = self._thread.submit(self._save, copied, position, scores)

    def _save(self, state: TrainState, position: dict, scores: dict | None) -> None:
        self._clear()
        state = jax.device_get(state)
        step = int(state.step)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.weights),  # alone, for those that only predict
            rest=ocp.args.StandardSave(_rest(state)),
            data=ocp.args.JsonSave(position),
        )
        if not self._manager.save(step, args=items, metrics=scores or {self._metric: None}):
            raise ValueError(f"{step} is not newer than {self.latest_step()}")

    def _clear(self) -> None:
        """Removes what a killed run, or a save that failed, had begun."""
        for begun in self.folder.glob(f"*{TMP}*"):
            shutil.rmtree(begun, ignore_errors=True)  # its threads may still be writing

    def score(self, step: int, scores: dict[str, float]) -> None:
        """Adds the validation of a state that was saved before it could be validated."""
        self.settle()
        if self._writes and step in self._manager.all_steps():
            write_text(self.folder / str(step) / "metrics" / "metrics", json.dumps(scores))
        gather("score", "")
        self._manager.reload()

    def settle(self) -> None:
        """Waits for the save that was begun; all processes learn what became of it."""
        if not self._begun:
            return
        reason = ""
        if self._saving is not None:
            try:
                self._saving.result()
            except Exception as error:  # what fails may be the disk, or any layer above it
                reason = reason_of(error)
        self._begun, self._failed = False, gather("saved", reason)[0]
        if self._failed:
            print(f"checkpoint not saved: {self.folder}: {self._failed}; trying again at the next")
        if self._failed or not self._writes:
            self._manager.reload()

    def wait(self) -> None:
        """Returns once everything is on disk.

        Raises:
          InputError: the last checkpoint could not be written.
        """
        self.settle()
        if self._failed:
            raise InputError(
                f"{self.folder}: the last checkpoint could not be saved ({self._failed}); what was "
                "saved before is kept: free space and run again"
            )

    def close(self) -> None:
        """Ends the thread too, once what it has to save is saved."""
        self._thread.shutdown()
        super().close()

    def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
        """(state, data position) of the latest whole checkpoint, None if there is none.

        `like` gives shapes and shardings. Newer ones that cannot be read are renamed, and told of.

        Raises:
          InputError: there are checkpoints, but none can be read; nothing is renamed then.
        """
        self.settle()
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract(like.weights)),
            rest=ocp.args.StandardRestore(abstract(_rest(like))),
            data=ocp.args.JsonRestore(),
        )
        broken: dict[int, str] = {}
        steps = json.loads(gather("steps", json.dumps(sorted(self._manager.all_steps())))[0])
        for step in reversed(steps):
            reason, state, position = "", like, {}
            try:
                found = self._manager.restore(step, args=items)
                state = type(like)(**{"ema": None, **found["rest"], _kept(like): found["params"]})
                position = found["data"]
                if int(state.step) != step:
                    raise ValueError(f"it holds step {int(state.step)}")
            except Exception as error:  # whatever garbled bytes lead to
                reason = reason_of(error)
            first, *others = gather("restored", reason)
            if first:
                broken[step] = first
                continue
            if any(others):
                process, why = next((p, r) for p, r in enumerate(others, 1) if r)
                raise InputError(
                    f"{self.folder}/{step}: process 0 can read it, process {process} cannot "
                    f"({why}); all hosts must see the same --workdir"
                )
            for number, reason in broken.items():
                self._set_aside(number)
                print(f"{self.folder}/{number}: is broken ({reason}); going back to {step}")
            return state, position
        if broken:
            raise InputError(
                f"{self.folder}: none of the checkpoints {sorted(broken)} can be read "
                f"({broken[max(broken)]}); choose another --workdir"
            )
        return None

    def _set_aside(self, step: int) -> None:
        name = f"broken-{step}-{uuid.uuid4().hex[:8]}"
        if self._writes:
            os.replace(self.folder / str(step), self.folder / name)
        gather("set aside", "")
        self._manager.reload()


def _kept(state: TrainState) -> str:
    """Which field of a state predicts."""
    return "params" if state.ema is None else "ema"


def _rest(state: TrainState) -> dict:
    """Everything of a state but what predicts."""
    rest = {"step": state.step, "opt_state": state.opt_state}
    return rest if state.ema is None else rest | {"params": state.params}


def _copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _whole(x: jax.Array) -> NamedSharding:
    """On every device, so that process 0 has all of it."""
    assert isinstance(x.sharding, NamedSharding)
    return NamedSharding(x.sharding.mesh, REPLICATED)
