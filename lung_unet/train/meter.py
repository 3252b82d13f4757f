"""How fast training goes."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np

KEPT = 20  # steps


class Meter:
    """Milliseconds a step over the last steps, compilation and pauses left out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._times: list[float] = []
        self._last: float | None = None

    def tick(self) -> None:
        """Call once a step, after the step before is known to be done."""
        now = time.perf_counter()
        if self._last is not None:
            self._times = [*self._times[1 - KEPT :], now - self._last]
        self._last = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within is no step."""
        self._last = None
        yield
        self._last = None

    @property
    def step_ms(self) -> float:
        return 1000 * float(np.median(self._times)) if self._times else 0.0

    @property
    def patches_per_s(self) -> float:
        return 1000 * self._batch_size / self.step_ms if self._times else 0.0
