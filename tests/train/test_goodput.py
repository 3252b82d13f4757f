"""Each second of a run belongs to one kind, and none that was done again counts as training."""

import json

import pytest

from lung_unet.train import goodput
from lung_unet.train.goodput import KINDS, Goodput


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) passes time."""
    now = [1000.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])

    def clock(seconds: float) -> None:
        now[0] += seconds

    return clock


def seconds(workdir) -> dict[str, float]:
    found = json.loads((workdir / "goodput.json").read_text(encoding="utf-8"))["seconds"]
    return {kind: s for kind, s in found.items() if s}


def test_every_second_has_one_kind(clock, tmp_path):
    run = Goodput(tmp_path, since=998.0)
    clock(1)
    with run.spending("compilation"):
        clock(4)
    run.restored(0)
    run.switch("steps")
    clock(5)
    with run.spending("input"):
        clock(2)
        with run.spending("evaluation"):
            clock(3)
        clock(1)
    clock(10)
    run.write()
    assert seconds(tmp_path) == {
        "start": 3, "compilation": 4, "steps": 15, "input": 3, "evaluation": 3,
    }  # fmt: skip
    assert run.shares().keys() == set(KINDS) and sum(run.shares().values()) == pytest.approx(1)
    assert run.summary().startswith("28 s: ") and "steps 53.6%" in run.summary()


def test_what_a_restart_does_again_is_lost_and_so_is_its_start(clock, tmp_path):
    run = Goodput(tmp_path)
    run.restored(0)
    run.switch("steps")
    clock(10)
    run.saved(100)
    clock(7)
    with run.spending("evaluation"):
        clock(2)
    run.write()
    clock(50)  # between the processes
    again = Goodput(tmp_path)
    clock(3)
    again.restored(100)
    again.switch("steps")
    clock(7)
    again.write()
    assert seconds(tmp_path) == {"steps": 17, "lost": 12}
    assert ", 1 restarts: " in again.summary()


def test_a_rollback_loses_what_came_after_the_checkpoint(clock, tmp_path):
    run = Goodput(tmp_path)
    run.switch("steps")
    clock(10)
    run.saved(100)
    clock(4)
    run.restored(100)
    clock(1)
    run.write()
    assert seconds(tmp_path) == {"steps": 11, "lost": 4}


def test_a_rollback_to_the_beginning_loses_the_steps_but_not_the_start(clock, tmp_path):
    run = Goodput(tmp_path)
    clock(2)
    with run.spending("compilation"):
        clock(3)
    run.restored(0)
    run.switch("steps")
    clock(10)
    run.restored(0)
    clock(1)
    run.write()
    assert seconds(tmp_path) == {"start": 2, "compilation": 3, "steps": 1, "lost": 10}


def test_without_a_checkpoint_all_of_it_is_lost(clock, tmp_path):
    run = Goodput(tmp_path)
    clock(2)
    run.switch("steps")
    clock(10)
    run.write()
    again = Goodput(tmp_path)
    again.restored(0)
    again.write()
    assert seconds(tmp_path) == {"lost": 12}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": 1, "seconds": {}, "saved": {}}'])
def test_a_broken_file_is_begun_anew(clock, tmp_path, content):
    (tmp_path / "goodput.json").write_text(content)
    assert Goodput(tmp_path).starts == 1
