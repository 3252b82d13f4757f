"""Checkpoints: state and data position together, saved in the background, best and latest kept."""

import pathlib

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lung_unet.errors import InputError
from lung_unet.train.step import TrainState

KEEP_LATEST = 2
METRIC = "dice"


class Checkpoints:
    """The checkpoints in one folder, newest and best kept."""

    def __init__(self, folder: pathlib.Path):
        policy = AnyPreservationPolicy(
            [LatestN(KEEP_LATEST), BestN(get_metric_fn=lambda m: m[METRIC], n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=lambda m: m[METRIC], best_mode="max"
        )
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(
        self, state: TrainState, batches: grain.DatasetIterator, metrics: dict[str, float]
    ) -> None:
        """Starts to save; returns once the state is copied, writing goes on in the background."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),  # alone, for those that only predict
            rest=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            data=grain.checkpoint.CheckpointSave(batches),
        )
        self._manager.save(int(state.step), args=items, metrics=metrics)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest validation Dice, the latest where none was validated."""
        return self._manager.best_step() or self.latest_step()

    def restore(self, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        """The latest state, on the shardings of `state`; moves `batches` to where it was saved."""
        rest = {"step": state.step, "opt_state": state.opt_state}
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_abstract(state.params)),
            rest=ocp.args.StandardRestore(_abstract(rest)),
            data=grain.checkpoint.CheckpointRestore(batches),
        )
        restored = self._manager.restore(self.latest_step(), args=items)
        return TrainState(params=restored["params"], **restored["rest"])

    def restore_params(self, params: dict) -> tuple[dict, int]:
        """(parameters, step) of the best checkpoint, on the shapes and shardings of `params`.

        Raises:
          InputError: there is none, or it is of another model.
        """
        step = self.best_step()
        if step is None:
            raise InputError(f"{self.folder}: holds no checkpoint; train first with lung_unet.main")
        items = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
        try:
            return self._manager.restore(step, args=items)["params"], step
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{self.folder}/{step}: is of another model ({str(error).splitlines()[0][:120]}); "
                "use the configuration that it was trained with"
            ) from error

    def wait(self) -> None:
        """Returns once everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
