"""Training by the clock."""

import time
from collections.abc import Callable, Iterator


def iterations(budget_s: float, clock: Callable[[], float] = time.monotonic) -> Iterator[float]:
    """The share of the budget that is used, below 1, before each iteration.

    It ends when another iteration, as long as the mean of those before, would not fit; so a
    schedule that is a function of the share is fitted to the iterations that fit.
    """
    start, done = clock(), 0
    while (used := clock() - start) + (used / done if done else 0) <= budget_s:
        yield min(used / budget_s, 1.0)
        done += 1
