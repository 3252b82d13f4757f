"""Training end to end in small: it logs, saves, goes on exactly where it was, and bears faults."""

import itertools
import json
import os
import pathlib
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from lung_unet.data.manifest import Dataset
from lung_unet.data.mining import Mining
from lung_unet.errors import InputError
from lung_unet.parallel.mesh import make_mesh
from lung_unet.train import loop
from lung_unet.train.step import make_apply
from lung_unet.train.stored import Stored
from lung_unet.train.writer import read_rows


def losses(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


def validations(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    return [(r["step"], r["validation/dice"]) for r in rows if "validation/dice" in r]


@pytest.fixture(scope="module")
def whole(shrunk_config, prepared, tmp_path_factory):
    """The folder of an undisturbed run of four steps."""
    workdir = tmp_path_factory.mktemp("whole")
    assert loop.train(shrunk_config(), Dataset(prepared), workdir)
    return workdir


def test_resumed_equals_uninterrupted_to_the_bit(config, dataset, whole, tmp_path):
    parts = tmp_path / "parts"
    config.train.steps = 2
    loop.train(config, dataset, parts)
    config.train.steps = 4
    config.data.threads = 5  # the order of the data must not depend on who reads it
    loop.train(config, dataset, parts)
    assert losses(parts) == losses(whole) and set(losses(whole)) == {1, 2, 3, 4}
    mesh = make_mesh(config)
    params = jax.jit(make_apply(config)[1])()
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    ends = [Stored(w / "checkpoints").restore_params(params)[0] for w in (whole, parts)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_the_best_of_all_validations_is_kept(config, dataset, tmp_path, monkeypatch):
    """Also where it lies between two regular checkpoints."""
    scores = iter([0.2, 0.9, 0.1, 0.3, 0.4])
    monkeypatch.setattr(loop.Trainer, "validate", lambda *_: {"loss": 1.0, "dice": next(scores)})
    config.train.update(eval_every=1, checkpoint_every=3, steps=4)
    loop.train(config, dataset, tmp_path)
    found = dict(validations(tmp_path))
    assert Stored(tmp_path / "checkpoints").best_step() == max(found, key=found.get) != 3


def test_hard_negatives_are_mined_the_same_after_a_restart(config, dataset, tmp_path, monkeypatch):
    """Stopped between two refreshes, then at one."""
    record = Mining.record

    def odd_alone(self, blocks, wrong):  # an untrained network scores all blocks alike
        record(self, blocks, np.where(blocks % 2, wrong, 0))

    monkeypatch.setattr(Mining, "record", odd_alone)
    config.data.mining.update(every=2, fraction=1.0)
    config.train.update(checkpoint_every=3, eval_every=10)
    for name, stops in (("whole", (5,)), ("parts", (3, 4, 5))):
        for config.train.steps in stops:
            assert loop.train(config, dataset, tmp_path / name)
            config.data.threads = 5
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert parts == whole and set(whole) == set(range(1, 6))
    config.data.mining.every = 100
    config.train.steps = 3
    assert loop.train(config, dataset, tmp_path / "never")
    never = losses(tmp_path / "never")
    assert (never[1], never[2]) == (whole[1], whole[2]) and never[3] != whole[3]


def test_sigterm_in_validation_saves_and_the_validation_is_made_up_for(
    config, dataset, whole, tmp_path, monkeypatch
):
    parts = tmp_path / "parts"
    validate = loop.Trainer.validate

    def disturbed(self, params, preemption, watch):
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not preemption.requested() and time.monotonic() < deadline:
            time.sleep(0.001)
        return validate(self, params, preemption, watch)

    monkeypatch.setattr(loop.Trainer, "validate", disturbed)
    assert not loop.train(config, dataset, parts)
    assert Stored(parts / "checkpoints").latest_step() == 2 and validations(parts) == []
    monkeypatch.setattr(loop.Trainer, "validate", validate)
    assert loop.train(config, dataset, parts)
    assert losses(parts) == losses(whole) and validations(parts) == validations(whole)
    scores = [
        (w / "checkpoints" / "2" / "metrics" / "metrics").read_text(encoding="utf-8")
        for w in (whole, parts)
    ]
    assert scores[0] == scores[1]  # by which the best checkpoint is chosen


def test_the_hosts_clock_may_jump(config, dataset, whole, tmp_path, monkeypatch):
    real, jumps = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 86400 * 365)
    assert loop.train(config, dataset, tmp_path / "jumpy")
    assert losses(tmp_path / "jumpy") == losses(whole)
    rows = read_rows(tmp_path / "jumpy" / "metrics.jsonl")
    assert all(0 <= row["step_ms"] < 60_000 for row in rows if "step_ms" in row)
    seconds = json.loads((tmp_path / "jumpy" / "goodput.json").read_text(encoding="utf-8"))[
        "seconds"
    ]
    assert min(seconds.values()) >= 0 and sum(seconds.values()) < 600


def test_a_full_disk_stops_neither_training_nor_the_log(
    config, dataset, whole, tmp_path, monkeypatch, capsys
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    validate = loop.Trainer.validate

    def full_then_not(self, params, preemption, watch):
        full = not validations(tmp_path / "full")  # the first time
        self.checkpoints.settle()  # the save that meets the full disk has done so
        resource.setrlimit(resource.RLIMIT_FSIZE, (700 if full else soft, hard))
        return validate(self, params, preemption, watch)

    monkeypatch.setattr(loop.Trainer, "validate", full_then_not)
    try:
        assert loop.train(config, dataset, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    output = capsys.readouterr().out
    assert "checkpoint not saved" in output and "metrics.jsonl: File too large" in output
    assert losses(tmp_path / "full") == losses(whole)
    assert Stored(tmp_path / "full" / "checkpoints").latest_step() == 4
    assert not (tmp_path / "full" / "checkpoints" / "2").exists()


def test_a_shard_that_was_cut_off_stops_training_and_is_named(config, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    for shard in Dataset(tmp_path / "data").shards("train", "nodule"):
        path = pathlib.Path(shard)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"nodule\.arrayrecord"):
        loop.train(config, Dataset(tmp_path / "data"), tmp_path / "run")


def test_logs_hold_what_is_promised(config, dataset, tmp_path):
    config.train.steps = 2
    loop.train(config, dataset, tmp_path)
    rows = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    train = [r for r in rows if "train/loss" in r]
    assert {"train/learning_rate", "patches_per_s", "step_ms"} <= train[0].keys()
    assert any("validation/dice" in r for r in rows)
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_running_again_does_nothing_more(config, dataset, tmp_path):
    config.train.steps = 2
    loop.train(config, dataset, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    loop.train(config, dataset, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_does_not_go_back(config, dataset, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    config.train.steps = 3
    with pytest.raises(InputError, match=r"is at step 4 already; set config\.train\.steps, 3 now"):
        loop.train(config, dataset, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(whole)


def test_a_loss_that_is_no_number_stops_and_names_the_last_good_checkpoint(
    config, dataset, tmp_path
):
    config.train.steps = 2
    loop.train(config, dataset, tmp_path)
    config.train.steps = 6
    config.optimizer.learning_rate = float("inf")
    with pytest.raises(InputError, match=r"loss is nan.*checkpoints/2 is good"):
        loop.train(config, dataset, tmp_path)
    assert Stored(tmp_path / "checkpoints").latest_step() == 2
