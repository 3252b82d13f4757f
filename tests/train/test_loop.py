"""Training end to end in small: it logs, saves, and goes on exactly where it was."""

import json

import jax
import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.parallel.mesh import make_mesh
from lung_unet.train import loop
from lung_unet.train.checkpoint import Checkpoints
from lung_unet.train.step import make_apply
from lung_unet.train.writer import read_rows


def losses(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


def test_resumed_equals_uninterrupted_to_the_bit(config, dataset, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config.optimizer.schedule = "constant"  # which does not depend on where training stops
    loop.train(config, dataset, whole)
    config.train.steps = 2
    loop.train(config, dataset, parts)
    config.train.steps = 4
    config.data.threads = 5  # the order of the data must not depend on who reads it
    loop.train(config, dataset, parts)
    assert losses(parts) == losses(whole) and set(losses(whole)) == {1, 2, 3, 4}
    mesh = make_mesh(config)
    params = jax.jit(make_apply(config)[1])()
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    ends = [Checkpoints(w / "checkpoints").restore_params(params)[0] for w in (whole, parts)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_logs_hold_what_is_promised(config, dataset, tmp_path):
    config.train.steps = 2
    loop.train(config, dataset, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
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


def test_a_loss_that_is_no_number_stops_and_names_the_last_good_checkpoint(
    config, dataset, tmp_path
):
    config.train.steps = 2
    loop.train(config, dataset, tmp_path)
    config.train.steps = 6
    config.optimizer.learning_rate = float("inf")
    with pytest.raises(InputError, match=r"loss is nan.*checkpoints/2 is good"):
        loop.train(config, dataset, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").latest_step() == 2
