"""Many processes that run one job: how they find each other, wait for each other, and end.

The processes meet through JAX's coordination service, in process 0. Where the environment names no
others, nothing here does anything.

    LUNG_UNET_COORDINATOR=host:port  LUNG_UNET_PROCESSES=n  LUNG_UNET_PROCESS_ID=0 … n−1
    LUNG_UNET_COORDINATOR=auto       what JAX finds out by itself (Cloud TPU, TPUs on GKE)
    within `srun`                    what SLURM says
"""

import contextlib
import itertools
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src.clusters import ClusterEnv  # as jax.distributed.initialize uses it
from jax._src.distributed import global_state  # JAX has no public barrier with a time limit

from lung_unet.errors import InputError, out_of_memory
from lung_unet.parallel.tunnel import Tunnel
from lung_unet.parallel.watch import STOP, Watch

VARIABLES = ("LUNG_UNET_COORDINATOR", "LUNG_UNET_PROCESSES", "LUNG_UNET_PROCESS_ID")
PORT = 20_000  # and the 10,000 after it: below the ports that Linux gives to clients
LONG_S = 7 * 24 * 3600  # for one process that prepares or scores while the others wait
TOGETHER_S = 5.0  # what all processes do at once, they do within this

_asked = itertools.count()  # all processes ask the same questions in the same order
_watch = Watch()


def find_job(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of jax.distributed.initialize; None where this process is the only one.

    Raises:
      InputError: variables that are missing or no numbers.
    """
    coordinator, processes, process = (environment.get(name) for name in VARIABLES)
    if coordinator == "auto":
        return {}
    if coordinator is None and "SLURM_STEP_NODELIST" in environment:
        host = re.match(r"([^,\[]+)(?:\[(\w+))?", environment["SLURM_STEP_NODELIST"])
        processes = environment.get("SLURM_STEP_NUM_TASKS")
        process = environment.get("SLURM_PROCID")
        port = PORT + int(environment.get("SLURM_JOB_ID", 0)) % 10_000
        coordinator = f"{host[1]}{host[2] or ''}:{port}" if host else None
    if coordinator is None and processes is None:
        return None
    try:
        count, number = int(processes or ""), int(process or "")
        address, colon, _ = (coordinator or "").rpartition(":")
        if not (0 <= number < count and address and colon):
            raise ValueError
    except ValueError as error:
        raise InputError(
            "set LUNG_UNET_COORDINATOR=host:port, LUNG_UNET_PROCESSES=n and "
            f"LUNG_UNET_PROCESS_ID=0 … n-1; found {coordinator}, {processes}, {process}"
        ) from error
    if count == 1:
        return None
    return {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",  # of a node, JAX would take one GPU alone
    }


@contextlib.contextmanager
def job(timeout_s: float) -> Iterator[None]:
    """Joins the job that the environment describes; call it before the first JAX computation.

    Within it only process 0 prints. What fails in one process ends that process at once, not at the
    end of a wait for the others; `Watch` tells them.

    A process that the others do not join within `timeout_s` ends with a line as well.

    Raises:
      InputError: the environment describes no job that can be.
    """
    global _watch
    found = find_job(os.environ)
    if found is None:
        yield
        return
    _watch = watch = _join(found, timeout_s)
    if jax.process_index():
        # For the rest of the process.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        yield
        wait("end")
        watch.expect_end(0)
    except (InputError, OSError) as error:
        everywhere = _meet("failed", TOGETHER_S)
        watch.expect_end(1)
        if not everywhere or jax.process_index() == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        if everywhere:
            _meet("told", TOGETHER_S)  # so that no process ends before another has the answer
        os._exit(1)
    except SystemExit:
        raise
    except BaseException as error:
        told = out_of_memory(error)
        if told:
            print(f"error: {told}", file=sys.stderr, flush=True)
        else:
            sys.excepthook(*sys.exc_info())
        os._exit(1)


def _join(found: dict[str, Any], timeout_s: float) -> Watch:
    seconds = max(1, round(timeout_s))
    try:
        if not found:
            names = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
            values = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, seconds
            )
            found = dict(zip(names, values, strict=True))
        process, coordinator = found["process_id"], found["coordinator_address"]
        watch = Watch(timeout_s, process)
        if process:
            tunnel = Tunnel(coordinator, timeout_s / 2, watch.lost)
            found = found | {"coordinator_address": tunnel.address}
        late = (
            f"not all processes of the job came to {coordinator} within config.timeout_s = "
            f"{seconds}; see whether all were started, and the outputs of the others"
        )
        alarm = threading.Timer(seconds, watch.leave, (late,))
        alarm.daemon = True
        alarm.start()
        jax.distributed.initialize(
            **found,
            initialization_timeout=2 * seconds,  # at which JAX aborts
            heartbeat_timeout_seconds=seconds,
            shutdown_timeout_seconds=seconds,
        )
        alarm.cancel()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes of the job did not find each other: {error}") from error
    watch.start(_client(), gather("host", socket.gethostname()))
    return watch


def _client() -> Any:
    return global_state.client


@contextlib.contextmanager
def training() -> Iterator[Watch]:
    """What has to `beat` within it, where all processes do the same; they enter it together.

    A process that then falls behind ends the others with a line that names it.

    Raises:
      InputError: one of them died before.
    """
    wait("training")  # some compile longer than others
    with _watch.training():
        yield _watch


def wait(what: str) -> None:
    """Returns once all processes have called it with that name.

    Raises:
      InputError: one of them died; it names it.
    """
    if jax.process_count() == 1:
        return
    try:
        _client().wait_at_barrier(f"lung_unet/{what}", LONG_S * 1000)
    except jax.errors.JaxRuntimeError as error:
        dead = re.search(r"Task:? (\d+)", str(error))
        raise InputError(
            f"process {dead[1] if dead else 'unknown'} of {jax.process_count()} died; see its own "
            "output, then run the same command again"
        ) from error


def gather(what: str, answer: str) -> list[str]:
    """Every process's answer, in the order of the processes; waits for all of them.

    Raises:
      InputError: one of them died.
    """
    if jax.process_count() == 1:
        return [answer]
    folder = f"lung_unet/{what}/{next(_asked)}"
    _client().key_value_set(f"{folder}/{jax.process_index():06}", answer)
    wait(folder)
    return [found for _, found in sorted(_client().key_value_dir_get(folder))]


def stop_all() -> None:
    """Has every other process of the job get SIGTERM; returns when they have, or soon after."""
    if jax.distributed.is_initialized():
        _watch.expect_end(0)
        _client().key_value_set(f"{STOP}/now", "", allow_overwrite=True)
        _meet("stop", TOGETHER_S)


def _meet(what: str, seconds: float) -> bool:
    """Whether all processes came within so many seconds."""
    try:
        _client().wait_at_barrier(f"lung_unet/{what}", int(seconds * 1000))
    except jax.errors.JaxRuntimeError:
        return False
    return True
