"""One function over many jobs: in processes of this machine, or on a Dask cluster.

A worker may die at any time (out of memory, a machine that fails): its jobs are done again by
others. So a job must leave the same files whether it ran once, twice, or half and then again.
"""

import concurrent.futures
import os
import re
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool

from lung_unet.data.workers import worker_pool
from lung_unet.errors import InputError

LOCAL = "local"
ATTEMPTS = 3  # of a pool in a row that dies before it finishes a single job
CONNECT_S = 5


def run(
    task: Callable, jobs: Sequence[tuple], engine: str = LOCAL, workers: int | None = None
) -> Generator:
    """The results of `task(*job)` of all jobs, as they come. What a job begins with names it.

    `engine` is "local", on `workers` processes (by default one for each core that this one may
    use), or the address of a Dask scheduler, as tcp://host:8786; its workers must be able to import
    `task`.

    Raises:
      InputError: no such engine, no scheduler there, or workers that die again and again; and
        what a task raises. Jobs that have not begun are dropped then.
    """
    if engine == LOCAL:
        return _local(task, jobs, workers or len(os.sched_getaffinity(0)))
    if not re.fullmatch(r"(tcp|tls)://.+:[0-9]+", engine):
        raise InputError(f"--engine={engine}: give local, or a Dask scheduler as tcp://host:8786")
    return _dask(task, jobs, engine)


def _local(task: Callable, jobs: Sequence[tuple], workers: int) -> Generator:
    left = dict(enumerate(jobs))
    attempts = 0
    while left:
        if attempts == ATTEMPTS:
            raise InputError(
                f"{next(iter(left.values()))[0]}: a worker process died of it, out of memory "
                "perhaps; copy it again, or run where there is more; finished scans are kept"
            )
        attempts += 1
        if attempts == ATTEMPTS:
            print("going on with one worker: less memory, and what dies is known")
            workers = 1  # in order: the first that is left
        pool = worker_pool(min(workers, len(left)))
        try:
            futures = {pool.submit(task, *job): number for number, job in left.items()}
            for future in concurrent.futures.as_completed(futures):
                result = future.result()
                del left[futures[future]]
                attempts = 0
                yield result
        except BrokenProcessPool:
            print("a worker process died; what it did not finish is done again")
        finally:
            pool.shutdown(cancel_futures=True)


def _dask(task: Callable, jobs: Sequence[tuple], address: str) -> Generator:
    try:
        import distributed
    except ImportError:
        raise InputError(f"--engine={address}: needs Dask; pip install distributed") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except Exception as error:  # whatever a server that is none of Dask's may cause
        raise InputError(
            f"--engine={address}: no Dask scheduler answers there ({type(error).__name__}); "
            "start one, as launch/dask_slurm.py does"
        ) from error
    with client:
        if not client.nthreads():
            print(f"{address} has no workers yet; waiting for them")
        futures = client.map(task, *zip(*jobs, strict=True), pure=False)
        names = {future.key: str(job[0]) for future, job in zip(futures, jobs, strict=True)}
        done = distributed.as_completed(futures, with_results=True, raise_errors=False)
        for future, result in done:
            if future.status != "finished":
                raise _told(address, future, names[future.key]) from None
            yield result


def _told(address: str, future, name: str) -> BaseException:
    """Why a job came to nothing: what it raised, or what became of the cluster."""
    import distributed

    if future.status != "error":
        return InputError(f"{address}: the scheduler went away; run again, finished scans are kept")
    error = future.exception()
    if isinstance(error, distributed.KilledWorker):  # several, one after the other
        return InputError(
            f"{address}: workers died, of {name} and out of memory perhaps; run again with more "
            "memory a worker, finished scans are kept"
        )
    if isinstance(error, ImportError) or str(error).startswith("Error during deserialization"):
        return InputError(
            f"{address}: the scheduler or a worker has not this code ({str(error).splitlines()[0]})"
            "; start them in the project's folder with its .venv"
        )
    return error
