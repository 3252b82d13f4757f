"""Worker processes that end with the process that they work for, however that ends."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def worker_pool(count: int, interrupts: bool = True) -> concurrent.futures.ProcessPoolExecutor:
    """A pool of so many processes; without `interrupts`, ctrl-C is left to this process."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    return concurrent.futures.ProcessPoolExecutor(
        count, spawn, initializer=_begin, initargs=(interrupts,)
    )


def _begin(interrupts: bool) -> None:
    if not interrupts:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool notices only that its pipe is gone, and only once all that is queued is done."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
