"""The checkpoints in a folder: which there are, what they scored, the weights of the best."""

import json
import math
import os
import pathlib
import re

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lung_unet.errors import InputError, out_of_memory

KEEP_LATEST = 2


class _Manager(ocp.CheckpointManager):
    """Does not ask for SIGTERM itself, which would shift the count that processes share."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Stored:
    """Checkpoints to read; the best is that of the highest score of the name `metric`.

    `saving` makes them for `Checkpoints`, which adds to them.

    Raises:
      InputError: a score is broken.
    """

    def __init__(self, folder: pathlib.Path, metric: str = "dice", saving: bool = False):
        self.folder = folder.absolute()
        self._metric = metric
        for path, error in broken_scores(self.folder):
            raise InputError(f"{path}: is broken ({error}); run main to mend it")
        # Orbax knows of this process alone: its barriers are device programs, or wait for minutes
        # where one process has failed.
        me = jax.process_index()
        active = {me} if jax.process_count() > 1 else None
        policy = AnyPreservationPolicy(
            [LatestN(KEEP_LATEST), BestN(get_metric_fn=self._score, n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=self._score,
            best_mode="max",
            read_only=not saving,
            enable_async_checkpointing=False,  # the thread is ours, so that nothing of it blocks
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes=active
            ),
            create=False,
        )
        self._manager = _Manager(self.folder, options=options)

    def _score(self, metrics: dict | None) -> float:
        value = (metrics or {}).get(self._metric)
        return -math.inf if value is None else value

    def close(self) -> None:
        """Ends what Orbax has running."""
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest, None where there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest validation score, the latest where none was validated."""
        return self._manager.best_step()

    def restore_params(self, params: dict) -> tuple[dict, int]:
        """(parameters, step) of the best checkpoint, on the shapes and shardings of `params`.

        Raises:
          InputError: there is none, or it is broken or of another model.
        """
        step = self.best_step()
        if step is None:
            raise InputError(f"{self.folder}: holds no checkpoint; train first with lung_unet.main")
        items = ocp.args.Composite(params=ocp.args.StandardRestore(abstract(params)))
        try:
            return self._manager.restore(step, args=items)["params"], step
        except Exception as error:  # whatever garbled bytes lead to
            if out_of_memory(error):
                raise
            path, reason = self.folder / str(step), reason_of(error)
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


def broken_scores(folder: pathlib.Path) -> list[tuple[pathlib.Path, ValueError]]:
    """The files that Orbax opens no folder with, and what is wrong with them."""
    broken = []
    for path in folder.glob("*/metrics/metrics"):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            broken.append((path, error))
    return broken


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


def reason_of(error: Exception) -> str:
    """Why a checkpoint could not be written or read, in a few words."""
    code = re.search(r"os_error_code='([0-9]+)'", str(error))  # at the end of a long message
    if code:
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def abstract(tree):
    """Shapes and shardings of arrays, which tell Orbax how to restore them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
