"""Reading one scan ahead: in a process of its own, while the scan before it is worked on."""

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, TypeVar

from lung_unet.data.workers import worker_pool
from lung_unet.errors import InputError, unexpected

Job = TypeVar("Job")
Result = TypeVar("Result")


class ReadAhead(Generic[Job, Result]):
    """Iterates over (job, result of `task(job)`, or the InputError that it raised), in order.

    A context: entered, it begins with the first job. At most one job is ahead of the one that was
    last taken, so that memory holds two results. A job that fails in any other way is an InputError
    too, also one that ends its process (out of memory, or a file that breaks a library), and the
    next goes on.
    """

    def __init__(self, task: Callable[[Job], Result], jobs: Sequence[Job]):
        self._task, self._jobs = task, jobs

    def __enter__(self) -> "ReadAhead[Job, Result]":
        self._start()
        if self._jobs:
            self._next = self._submit(0)
        return self

    def __exit__(self, *_) -> None:
        # Waited for: an executor that still ends while Python exits may find its pipe closed.
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Job, Result | InputError]]:
        for number, job in enumerate(self._jobs):
            result: Result | InputError
            try:
                result = self._next.result()
            except InputError as error:
                result = error
            except MemoryError:
                result = InputError(f"{job}: is too large for the memory that is left")
            except BrokenProcessPool:
                result = InputError(
                    f"{job}: reading it ended the process, out of memory perhaps; copy it again, "
                    "or run it alone"
                )
                self._restart()
            except (Exception, SystemExit) as error:
                result = unexpected(job, error)
            if number + 1 < len(self._jobs):
                self._next = self._submit(number + 1)
            yield job, result

    def _start(self) -> None:
        self._pool = worker_pool(1, interrupts=False)

    def _restart(self) -> None:
        self._pool.shutdown()
        self._start()

    def _submit(self, number: int) -> concurrent.futures.Future:
        try:
            return self._pool.submit(self._task, self._jobs[number])
        except BrokenProcessPool:  # its process died after the result before
            self._restart()
            return self._pool.submit(self._task, self._jobs[number])
