"""Checkpoints: best and latest are kept, broken ones passed over, nothing saved is lost."""

import dataclasses
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.data.pipeline import training_batches
from lung_unet.errors import InputError
from lung_unet.files import write_text
from lung_unet.parallel.mesh import make_mesh
from lung_unet.train.checkpoint import Checkpoints
from lung_unet.train.optimizer import make_optimizer
from lung_unet.train.step import TrainState, init_state, make_apply
from lung_unet.train.stored import Stored


@pytest.fixture
def state(config):
    mesh, optimizer = make_mesh(config), make_optimizer(config)
    fresh = init_state(config, make_apply(config)[1], optimizer, mesh)
    return dataclasses.replace(fresh, ema=jax.tree.map(lambda x: x + 0.5, fresh.params))


@pytest.fixture
def batches(dataset):
    return iter(
        training_batches(
            dataset, patch=(16, 16, 16), batch_size=1, nodule_fraction=0.5, seed=0, threads=1,
            prefetch=1,
        )
    )  # fmt: skip


def at(state: TrainState, step: int) -> TrainState:
    params, ema = jax.tree.map(lambda x: x + step, (state.params, state.ema))
    return dataclasses.replace(state, step=jnp.int32(step), params=params, ema=ema)


def test_best_and_latest_are_kept_and_the_best_predicts(state, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, dice in ((1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3), (5, 0.1)):
        checkpoints.save(at(state, step), batches.get_state(), {"loss": 1.0, "dice": dice})
    checkpoints.wait()
    assert checkpoints.latest_step() == 5 and checkpoints.best_step() == 2
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == {"2", "4", "5"}
    params, step = checkpoints.restore_params(state.params)
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, params, at(state, 2).ema)


def test_state_and_data_position_come_back(state, batches, dataset, tmp_path):
    checkpoints = Checkpoints(tmp_path)
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


def test_without_an_average_the_parameters_come_back_and_predict(state, tmp_path):
    state = dataclasses.replace(state, ema=None)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(state, 1), {"next_index": 1}, None)
    checkpoints.wait()
    restored, _ = checkpoints.restore(state)
    assert restored.ema is None
    jax.tree.map(np.testing.assert_array_equal, restored, at(state, 1))
    params, _ = checkpoints.restore_params(state.params)
    jax.tree.map(np.testing.assert_array_equal, params, restored.params)


def test_a_checkpoint_of_another_model_is_refused(config, state, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(state, 1), batches.get_state(), {"loss": 1.0, "dice": 0.5})
    checkpoints.wait()
    config.model.channels = (4, 16)
    params = jax.jit(make_apply(config)[1])()
    with pytest.raises(InputError, match="another model"):
        checkpoints.restore_params(params)


def test_a_model_of_the_same_shapes_under_other_names_is_another(state, saved):
    params = dict(state.params)
    params["top"] = params.pop("head")
    with pytest.raises(InputError, match="another model"):
        Stored(saved).restore_params(params)


def test_too_little_memory_is_not_called_a_broken_checkpoint(state, saved, monkeypatch):
    checkpoints = Stored(saved)

    def restore(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(checkpoints._manager, "restore", restore)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        checkpoints.restore_params(state.params)


def test_no_checkpoint_says_so(state, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        Stored(tmp_path).restore_params(state.params)


@pytest.fixture
def saved(state, batches, tmp_path):
    """A folder with the checkpoints 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "saved")
    for step in (1, 2):
        checkpoints.save(at(state, step), batches.get_state(), {"loss": 1.0, "dice": 0.5})
    checkpoints.wait()
    checkpoints.close()
    return tmp_path / "saved"


def garbled(data: bytes) -> bytes:
    return bytes(b ^ 1 << (i % 8) if i % 50 == 25 else b for i, b in enumerate(data))


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], garbled])
def test_whatever_is_broken_the_state_is_that_of_a_whole_checkpoint(state, saved, tmp_path, harm):
    """Each file of the latest in turn: it comes back whole, or the one before it does."""
    files = [p.relative_to(saved) for p in (saved / "2").rglob("*") if p.is_file()]
    went_back = 0
    for number, file in enumerate(sorted(files)):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        (folder / file).write_bytes(harm((folder / file).read_bytes()))
        checkpoints = Checkpoints(folder)
        restored, position = checkpoints.restore(state)
        step = int(restored.step)
        jax.tree.map(np.testing.assert_array_equal, restored, at(state, step))
        assert position == {"next_index": 0}
        if step == 1:  # then the next save must not meet what is broken
            went_back += 1
            checkpoints.save(at(state, 2), position, None)
            checkpoints.wait()
            assert int(Checkpoints(folder).restore(state)[0].step) == 2
    assert went_back > len(files) / 4


def test_a_broken_best_checkpoint_is_told_from_another_model_s(state, saved, tmp_path):
    """Each file of it in turn: it predicts as it was, or one line says what to do."""
    folder = tmp_path / "one"
    refused = 0
    for file in sorted(p.relative_to(saved) for p in (saved / "1").rglob("*") if p.is_file()):
        shutil.copytree(saved, folder)
        write_text(folder / "1" / "metrics" / "metrics", '{"dice": 0.9}')  # the best
        before = (folder / file).read_bytes()
        (folder / file).write_bytes(before[: len(before) // 2])
        try:
            params, step = Stored(folder).restore_params(state.params)
            jax.tree.map(np.testing.assert_array_equal, params, at(state, step).ema)
        except InputError as error:
            refused += 1
            assert re.search(r"1: cannot be read .*move it away|metrics: is broken", str(error))
            assert "\n" not in str(error)
            shutil.rmtree(folder / "1")
            assert Stored(folder).restore_params(state.params)[1] == 2
        shutil.rmtree(folder)
    assert refused >= 3


def test_going_back_is_told_in_one_line_and_deletes_nothing(state, saved, capsys):
    shutil.rmtree(saved / "2" / "rest")
    files = {p.name for p in (saved / "2").iterdir()}
    restored, _ = Checkpoints(saved).restore(state)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{saved}/2: is broken (") and line.endswith("going back to 1")
    (aside,) = saved.glob("broken-2-*")
    assert {p.name for p in aside.iterdir()} == files and int(restored.step) == 1


def test_where_none_can_be_read_nothing_is_touched(state, saved):
    for step in (1, 2):
        (saved / str(step) / "params" / "_METADATA").write_text("{")
    with pytest.raises(InputError, match=r"none of the checkpoints \[1, 2\] can be read"):
        Checkpoints(saved).restore(state)
    assert {p.name for p in saved.iterdir()} == {"1", "2"}


@pytest.fixture
def full_disk():
    """full_disk(True): no file may grow beyond 1,000 bytes until full_disk(False)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full_disk(full: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if full else soft, hard))

    yield full_disk
    full_disk(False)


def test_a_save_that_fails_costs_nothing_and_the_next_one_succeeds(state, saved, full_disk, capsys):
    checkpoints = Checkpoints(saved)
    full_disk(True)
    checkpoints.save(at(state, 3), {"next_index": 3}, {"loss": 1.0, "dice": 0.9})
    with pytest.raises(InputError, match="the last checkpoint could not be saved"):
        checkpoints.wait()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"checkpoint not saved: {saved}: File too large; ")
    assert checkpoints.latest_step() == Stored(saved).latest_step() == 2
    restored, _ = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored, at(state, 2))
    full_disk(False)
    checkpoints.save(at(state, 4), {"next_index": 4}, {"loss": 1.0, "dice": 0.1})
    checkpoints.wait()
    assert {p.name for p in saved.iterdir()} == {"2", "4"}  # the best, and the latest two
    restored, _ = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored, at(state, 4))


def test_a_state_may_change_as_soon_as_save_returns(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    wanted = jax.device_get(at(state, 1))
    given = at(state, 1)
    checkpoints.save(given, {"next_index": 1}, None)
    jax.tree.map(lambda x: x.delete(), given)
    checkpoints.wait()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(state)[0], wanted)


def test_a_score_may_come_after_the_save(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, scores in ((1, None), (2, {"dice": 0.2}), (3, None)):
        checkpoints.save(at(state, step), {"next_index": step}, scores)
    checkpoints.wait()
    assert checkpoints.best_step() == 2
    checkpoints.score(3, {"dice": 0.7})
    assert checkpoints.best_step() == Stored(tmp_path).best_step() == 3
