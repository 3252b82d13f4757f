"""Checkpoints: state and data position together, saved in the background, best and latest kept."""

import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lung_unet.errors import InputError, out_of_memory
from lung_unet.files import write_text
from lung_unet.parallel.distributed import gather
from lung_unet.parallel.mesh import REPLICATED
from lung_unet.train.step import TrainState

KEEP_LATEST = 2
TMP = ".orbax-checkpoint-tmp"  # Orbax's mark of what is not whole yet


class _Manager(ocp.CheckpointManager):
    """Does not ask for SIGTERM itself, which would shift the count that processes share."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints in one folder, newest and best kept; made to read them, or to `write` too.

    The best is that of the highest score of the name `metric`.

    A checkpoint takes its name only once it is whole. One that could not be written (a full disk)
    is told of in a line and costs nothing that was saved before; the next is tried as usual.

    Of the processes of a job the first writes, all read, and each learns what became of it; they
    make the same calls.
    """

    def __init__(self, folder: pathlib.Path, write: bool = False, metric: str = "dice"):
        self.folder = folder.absolute()
        self._metric = metric
        me = jax.process_index()
        self._write = write and me == 0
        if self._write or not write:
            self._check_scores()
        if self._write:
            self.folder.mkdir(parents=True, exist_ok=True)
        if write:
            gather("scores", "")
        # Orbax knows of this process alone: its barriers are device programs, or wait for minutes
        # where one process has failed.
        active = {me} if jax.process_count() > 1 else None
        policy = AnyPreservationPolicy(
            [LatestN(KEEP_LATEST), BestN(get_metric_fn=self._score, n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=self._score,
            best_mode="max",
            read_only=not self._write,
            enable_async_checkpointing=False,  # the thread is ours, so that nothing of it blocks
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes=active
            ),
            create=False,
        )
        self._manager = _Manager(self.folder, options=options)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: concurrent.futures.Future | None = None
        self._begun = False  # a save that is not settled
        self._failed = ""  # why the last one was not written
        self._copy: Callable[[TrainState], TrainState] = jax.jit(_copied)

    def _check_scores(self) -> None:
        """Orbax opens no folder with a broken score in it."""
        for path in self.folder.glob("*/metrics/metrics"):
            try:
                json.loads(path.read_bytes())
            except ValueError as error:
                if not self._write:
                    raise InputError(f"{path}: is broken ({error}); run main to mend it") from error
                write_text(path, json.dumps({self._metric: None}))
                print(f"{path}: is broken ({error}); this checkpoint counts as not validated")

    def _score(self, metrics: dict | None) -> float:
        value = (metrics or {}).get(self._metric)
        return -math.inf if value is None else value

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
        if self._write:
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
        if self._write and step in self._manager.all_steps():
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
                reason = _reason(error)
        self._begun, self._failed = False, gather("saved", reason)[0]
        if self._failed:
            print(f"checkpoint not saved: {self.folder}: {self._failed}; trying again at the next")
        if self._failed or not self._write:
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
        self._thread.shutdown()
        self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest validation score, the latest where none was validated."""
        return self._manager.best_step()

    def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
        """(state, data position) of the latest whole checkpoint, None if there is none.

        `like` gives shapes and shardings. Newer ones that cannot be read are renamed, and told of.

        Raises:
          InputError: there are checkpoints, but none can be read; nothing is renamed then.
        """
        self.settle()
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_abstract(like.weights)),
            rest=ocp.args.StandardRestore(_abstract(_rest(like))),
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
                reason = _reason(error)
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
        if self._write:
            os.replace(self.folder / str(step), self.folder / name)
        gather("set aside", "")
        self._manager.reload()

    def restore_params(self, params: dict) -> tuple[dict, int]:
        """(parameters, step) of the best checkpoint, on the shapes and shardings of `params`.

        Raises:
          InputError: there is none, or it is broken or of another model.
        """
        step = self.best_step()
        if step is None:
            raise InputError(f"{self.folder}: holds no checkpoint; train first with lung_unet.main")
        items = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
        try:
            return self._manager.restore(step, args=items)["params"], step
        except Exception as error:  # whatever garbled bytes lead to
            if out_of_memory(error):
                raise
            path, reason = self.folder / str(step), _reason(error)
            stored = _shapes_in(path / "params")
            if stored and stored != _shapes(params):
                raise InputError(
                    f"{path}: is of another model ({reason}); use the configuration that it was "
                    "trained with"
                ) from error
            raise InputError(
                f"{path}: cannot be read ({reason}); put that right, or, if it is broken, move it "
                "away and run again, for the next best"
            ) from error


def _shapes(tree: dict) -> dict[tuple[str, ...], tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {tuple(str(key.key) for key in path): tuple(x.shape) for path, x in leaves}


def _shapes_in(item: pathlib.Path) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Names and shapes of the arrays that an item of a checkpoint should hold; {} where nothing
    tells."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return _shapes(checkpointer.metadata(item).item_metadata.tree)
    except Exception:  # whatever garbled bytes lead to
        return {}


def _kept(state: TrainState) -> str:
    """Which field of a state predicts."""
    return "params" if state.ema is None else "ema"


def _rest(state: TrainState) -> dict:
    """Everything of a state but what predicts."""
    names = {f.name for f in dataclasses.fields(state)} - {"ema", _kept(state)}
    return {name: getattr(state, name) for name in names}


def _copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _whole(x: jax.Array) -> NamedSharding:
    """On every device, so that process 0 has all of it."""
    assert isinstance(x.sharding, NamedSharding)
    return NamedSharding(x.sharding.mesh, REPLICATED)


def _reason(error: Exception) -> str:
    code = re.search(r"os_error_code='([0-9]+)'", str(error))  # at the end of a long message
    if code:
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
