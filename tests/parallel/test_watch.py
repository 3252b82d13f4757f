"""A watch names who is silent or behind, and passes on that the job is to stop."""

import signal
import threading
import time

import pytest

from lung_unet.parallel.watch import PULSE, STOP, Watch


class Store:
    """What Watch needs of JAX's coordination service; `signs` are those of other processes."""

    def __init__(self, signs):
        self.signs, self.own, self.stop = signs, {}, []

    def key_value_set(self, key, value, allow_overwrite):
        self.own[key] = value

    def key_value_dir_get(self, folder):
        if folder == STOP:
            return self.stop
        others = {f"{PULSE}/{p}": sign() for p, sign in self.signs.items()}
        return [*others.items(), *self.own.items()]


def alive() -> str:
    return f"9 {time.monotonic()}"


def started(monkeypatch, store) -> tuple[Watch, list[str], threading.Event]:
    """(watch, the line that it leaves with, whether it has)."""
    told, left = [], threading.Event()

    def leave(message):
        told.append(message)
        left.set()
        watch.expect_end(1)

    watch = Watch(1.0, 0)
    monkeypatch.setattr(watch, "leave", leave)
    watch.start(store, [f"host{p}" for p in range(1 + len(store.signs))])
    return watch, told, left


@pytest.mark.parametrize(
    "second, line",
    [
        (lambda: f"4 {time.monotonic()}", "process 2 on host2 is behind"),
        (lambda: "4 1", "process 2 on host2 died"),
    ],
    ids=["hung", "silent"],
)
def test_whoever_is_behind_or_silent_is_named(monkeypatch, second, line):
    watch, told, left = started(monkeypatch, Store({1: alive, 2: second, 3: alive}))
    with watch.training():
        for _ in range(9):
            watch.beat()
        assert left.wait(20)
    assert line in told[0]
    watch.expect_end(0)


def test_a_process_that_goes_on_is_left_alone_and_outside_training_none_is_behind(monkeypatch):
    watch, told, _ = started(monkeypatch, Store({1: lambda: f"1 {time.monotonic()}"}))
    with watch.training():
        for _ in range(8):
            time.sleep(0.2)
            watch.beat()
    time.sleep(1.5)
    assert not told
    watch.expect_end(0)


def test_what_a_dead_process_breaks_names_it(monkeypatch):
    watch, told, _ = started(monkeypatch, Store({1: lambda: "4 1"}))
    with pytest.raises(ValueError), watch.training():
        raise ValueError("connection closed")
    assert "process 1 on host1 died" in told[0]


def test_a_request_to_stop_arrives_as_sigterm(monkeypatch):
    store, came = Store({1: alive}), threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        _, told, _ = started(monkeypatch, store)
        store.stop = [(f"{STOP}/now", "")]
        assert came.wait(20) and not told
    finally:
        signal.signal(signal.SIGTERM, before)
