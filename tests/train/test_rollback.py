"""A loss that is not a number stops the run, or costs it one batch."""

import re

import jax
import numpy as np
import pytest

from lung_unet.data.pipeline import training_batches
from lung_unet.errors import InputError
from lung_unet.train import loop
from lung_unet.train.rollback import NotFinite, Skipped, check_on_nan
from lung_unet.train.writer import read_rows

make_train_step = loop.make_train_step


def losses(workdir) -> dict[int, float]:
    rows = read_rows(workdir / "metrics.jsonl")
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert len(steps) == len(set(steps))
    return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


@pytest.fixture
def poison(config, dataset, monkeypatch):
    """poison(number): the batch of that number, from 1, makes the loss and all parameters NaN."""

    def poison(number: int) -> None:
        batches = iter(
            training_batches(
                dataset, patch=tuple(config.data.patch), batch_size=config.train.batch_size,
                nodule_fraction=config.data.nodule_fraction, seed=config.seed, threads=1,
                prefetch=1,
            )
        )  # fmt: skip
        bad = [next(batches)["hu"].astype(int).sum() for _ in range(number)][-1]

        class Poisoned:
            def __init__(self, *arguments):
                self.step = make_train_step(*arguments)

            def lower(self, *arguments):
                self.step = self.step.lower(*arguments)
                return self

            def compile(self):
                self.step = self.step.compile()
                return self

            def __call__(self, state, batch):
                factor = np.nan if np.asarray(batch["hu"], int).sum() == bad else 1
                state, metrics = self.step(state, batch)
                return jax.tree.map(lambda x: (x * factor).astype(x.dtype), (state, metrics))

        monkeypatch.setattr(loop, "make_train_step", Poisoned)

    return poison


def test_rolled_back_equals_a_run_that_never_had_the_batch(config, dataset, tmp_path, poison):
    config.train.on_nan = "rollback"
    poisoned, without = tmp_path / "poisoned", tmp_path / "without"
    without.mkdir()
    (without / "skipped.json").write_text("[3]")
    assert loop.train(config, dataset, without)
    poison(3)
    assert loop.train(config, dataset, poisoned)
    assert losses(poisoned) == losses(without) and set(losses(without)) == {1, 2, 3, 4}
    assert (poisoned / "skipped.json").read_text(encoding="utf-8") == "[3]"


def test_a_run_that_goes_wrong_again_and_again_stops(config, dataset, tmp_path):
    config.train.update(steps=6, on_nan="rollback", max_rollbacks=2)
    config.optimizer.learning_rate = float("inf")
    with pytest.raises(InputError, match=r"after 2 rollbacks; no checkpoint was saved.*above 2"):
        loop.train(config, dataset, tmp_path)


def test_batches_are_skipped_after_a_restart_too(config, tmp_path):
    config.train.update(on_nan="rollback", max_rollbacks=3)
    skipped = Skipped(tmp_path, config.train)
    for step in (7, 7, 9):
        skipped.add(NotFinite(step, float("nan")), 5, tmp_path)
    again = Skipped(tmp_path, config.train)
    assert [again.count(step) for step in (6, 7, 8, 9)] == [0, 2, 0, 1]
    message = re.escape(f"{tmp_path}/5 is good")
    with pytest.raises(InputError, match=f"nan at step 11 after 3 rollbacks; {message}"):
        again.add(NotFinite(11, float("nan")), 5, tmp_path)


def test_by_default_the_first_one_stops(config, tmp_path):
    with pytest.raises(
        InputError, match=r"loss is inf at step 3; no checkpoint was saved.*rollback"
    ):
        Skipped(tmp_path, config.train).add(NotFinite(3, float("inf")), None, tmp_path)


def test_what_cannot_be_is_refused(config, tmp_path):
    (tmp_path / "skipped.json").write_text("{")
    with pytest.raises(InputError, match=r"skipped\.json: is broken"):
        Skipped(tmp_path, config.train)
    config.train.on_nan = "ignore"
    with pytest.raises(InputError, match="on_nan = 'ignore': choose stop or rollback"):
        check_on_nan(config.train)
