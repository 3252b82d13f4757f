"""Checkpoints: the best and the latest are kept, and only the right model is restored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.data.pipeline import training_batches
from lung_unet.errors import InputError
from lung_unet.parallel.mesh import make_mesh
from lung_unet.train.checkpoint import Checkpoints
from lung_unet.train.optimizer import make_optimizer
from lung_unet.train.step import TrainState, init_state, make_apply


@pytest.fixture
def state(config):
    return init_state(make_apply(config)[1], make_optimizer(config), make_mesh(config))


@pytest.fixture
def batches(dataset):
    return iter(
        training_batches(
            dataset, patch=(16, 16, 16), batch_size=1, nodule_fraction=0.5, seed=0, threads=1,
            prefetch=1,
        )
    )  # fmt: skip


def at(state: TrainState, step: int) -> TrainState:
    params = jax.tree.map(lambda x: x + step, state.params)
    return TrainState(jnp.int32(step), params, state.opt_state)


def test_best_and_latest_are_kept_and_the_best_predicts(state, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path, write=True)
    for step, dice in ((1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3), (5, 0.1)):
        checkpoints.save(at(state, step), batches.get_state(), {"loss": 1.0, "dice": dice})
    checkpoints.wait()
    assert checkpoints.latest_step() == 5 and checkpoints.best_step() == 2
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == {"2", "4", "5"}
    params, step = checkpoints.restore_params(state.params)
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, params, at(state, 2).params)


def test_state_and_data_position_come_back(state, batches, dataset, tmp_path):
    checkpoints = Checkpoints(tmp_path, write=True)
    next(batches), next(batches)
    checkpoints.save(at(state, 2), batches.get_state(), {"loss": 1.0, "dice": 0.5})
    following = next(batches)
    checkpoints.wait()
    other = iter(
        training_batches(
            dataset, patch=(16, 16, 16), batch_size=1, nodule_fraction=0.5, seed=0, threads=3,
            prefetch=2,
        )
    )  # fmt: skip
    restored, position = Checkpoints(tmp_path).restore(state)
    other.set_state(position)
    jax.tree.map(np.testing.assert_array_equal, restored, at(state, 2))
    np.testing.assert_array_equal(next(other)["hu"], following["hu"])


def test_a_checkpoint_of_another_model_is_refused(config, state, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path, write=True)
    checkpoints.save(at(state, 1), batches.get_state(), {"loss": 1.0, "dice": 0.5})
    checkpoints.wait()
    config.model.channels = (4, 16)
    params = jax.jit(make_apply(config)[1])()
    with pytest.raises(InputError, match="another model"):
        checkpoints.restore_params(params)


def test_no_checkpoint_says_so(state, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        Checkpoints(tmp_path).restore_params(state.params)
