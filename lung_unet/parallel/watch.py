"""A process's watch over the others of its job: who is dead, who hangs, who was told to stop."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

PULSE = "lung_unet/pulse"
STOP = "lung_unet/stop"  # a folder


class Watch:
    """Ends this process with a line that names whom it waited for.

    From `start` on, the others count as dead if they show no life for half of `timeout_s`. Within
    `training` they count as hung if this process makes no progress (`beat`) for all of it.
    """

    def __init__(self, timeout_s: float = float("inf"), process: int = 0):
        self._timeout_s, self._process = timeout_s, process
        self._client: Any = None
        self._hosts: list[str] = []
        self._beats, self._beaten = 0, float("inf")
        self._seen: dict[int, tuple[str, float]] = {}  # by process: its last sign, and when
        self._code: int | None = None
        self._pulse = max(0.2, min(5.0, timeout_s / 20))

    def start(self, client: Any, hosts: list[str]) -> None:
        """Watches from now on, through JAX's client of the coordination service.

        `hosts` are the names of the processes' hosts.
        """
        self._client, self._hosts = client, hosts
        self._seen = dict.fromkeys(range(len(hosts)), ("0 0", time.monotonic()))
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def beat(self) -> None:
        """Says that this process goes on; call it wherever one process may have to wait."""
        self._beats, self._beaten = self._beats + 1, time.monotonic()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within it this process has to `beat`; what a dead process breaks here names that one."""
        self.beat()
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError):  # as of a broken connection
            deadline = time.monotonic() + 6 * self._pulse
            while len(self._hosts) > 1 and time.monotonic() < deadline:
                if dead := self._silent(4 * self._pulse):
                    self.leave(self._line(dead, "died"))
                time.sleep(self._pulse)
            raise
        finally:
            self._beaten = float("inf")

    def expect_end(self, code: int) -> None:
        """Process 0 may end from now on; where it does, this process ends with that code."""
        self._code = code

    def lost(self) -> None:
        """Process 0, which holds the coordination service, has ended its connection."""
        if self._code is not None:
            os._exit(self._code)
        self.leave(self._line([0], "died, or its host is out of reach"))

    def leave(self, message: str) -> NoReturn:
        """Ends the process with one line, from any thread."""
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    def _watch(self) -> None:
        own, signs = f"{PULSE}/{self._process}", 0
        while self._code is None:
            time.sleep(self._pulse)
            signs += 1
            try:
                value = f"{self._beats} {signs}"
                self._client.key_value_set(own, value, allow_overwrite=True)
                self._look()
            except jax.errors.JaxRuntimeError:
                if self._code is None:
                    self.lost()
                return
            if dead := self._silent(self._timeout_s / 2):
                self.leave(self._line(dead, "died, or its host is out of reach"))
            if time.monotonic() - self._beaten > self._timeout_s:
                beats = {p: int(sign.split()[0]) for p, (sign, _) in self._seen.items()}
                behind = [p for p, n in beats.items() if n == min(beats.values())]
                self.leave(self._line(behind, f"is behind, no step for {self._timeout_s:g} s"))

    def _look(self) -> None:
        now = time.monotonic()
        for name, sign in self._client.key_value_dir_get(PULSE):
            process = int(name.rpartition("/")[2])
            if self._seen[process][0] != sign:
                self._seen[process] = (sign, now)
        if self._code is None and self._client.key_value_dir_get(STOP):
            self.expect_end(0)
            if callable(signal.getsignal(signal.SIGTERM)):  # or there is nothing to stop
                os.kill(os.getpid(), signal.SIGTERM)

    def _silent(self, seconds: float) -> list[int]:
        now, me = time.monotonic(), self._process
        return sorted(p for p, (_, at) in self._seen.items() if p != me and now - at > seconds)

    def _line(self, processes: list[int], what: str) -> str:
        names = ", ".join(f"{p} on {self._hosts[p]}" if self._hosts else str(p) for p in processes)
        return (
            f"process {names} {what}; see its own output, then run the same command again to go on "
            "from the last checkpoint"
        )
