"""How long work takes: wall time, and this process's CPU time, since machines are shared."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

SHORTEST_S = 0.2


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, one entry a repeat. CPU time is of all threads together."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]

    @property
    def ms(self) -> float:
        return statistics.median(self.wall_ms)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_ms)

    def to_json(self, name: str) -> dict:
        """Median, lowest and highest, and median CPU time, under keys that begin with `name`."""
        return {
            f"{name}_ms": self.ms,
            f"{name}_ms_spread": [min(self.wall_ms), max(self.wall_ms)],
            f"{name}_cpu_ms": self.cpu,
        }


def measure(work: Callable[[], object], repeats: int, shortest_s: float = SHORTEST_S) -> Timing:
    """Times of `work`, which returns arrays, after a warm-up.

    A repeat is as many calls as take `shortest_s`, at least one. They are dispatched one after the
    other, as in training, and awaited at its end, so that a device never waits for Python.
    """
    jax.block_until_ready(work())
    start = time.perf_counter()
    jax.block_until_ready(work())
    calls = max(1, round(shortest_s / max(time.perf_counter() - start, 1e-6)))
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            result = work()
        jax.block_until_ready(result)
        wall.append(1000 * (time.perf_counter() - start) / calls)
        cpu.append(1000 * (time.process_time() - start_cpu) / calls)
    return Timing(tuple(wall), tuple(cpu))
