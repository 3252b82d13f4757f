"""Many processes that run one job: how they find each other, wait for each other, and end.

The processes meet through JAX's coordination service, in process 0. Where the environment names no
others, nothing here does anything.

    LUNG_UNET_COORDINATOR=host:port  LUNG_UNET_PROCESSES=n  LUNG_UNET_PROCESS_ID=0 … n−1
    LUNG_UNET_COORDINATOR=auto       what JAX finds out by itself (Cloud TPU, TPUs on GKE)
    within `srun`                    what SLURM says
"""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src.distributed import global_state  # JAX has no public barrier with a time limit

from lung_unet.errors import InputError

VARIABLES = ("LUNG_UNET_COORDINATOR", "LUNG_UNET_PROCESSES", "LUNG_UNET_PROCESS_ID")
PORT = 20_000  # and the 10,000 after it: below the ports that Linux gives to clients
LONG_S = 7 * 24 * 3600  # for one process that prepares or scores while the others wait
TOGETHER_S = 5.0  # an error that all processes have, they have within this


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
    end of a wait for the others. They are told by JAX's heartbeats, or by `Watch`.

    Raises:
      InputError: the others did not come within `timeout_s`.
    """
    found = find_job(os.environ)
    if found is None:
        yield
        return
    seconds = max(1, round(timeout_s))
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=seconds,
            shutdown_timeout_seconds=seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"not all processes of the job came within config.timeout_s = {seconds}: {error}"
        ) from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    try:
        yield
    except (InputError, OSError) as error:
        everywhere = _meet("failed", TOGETHER_S)
        if not everywhere or jax.process_index() == 0:
            _leave(str(error))
        os._exit(1)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def _client() -> Any:
    return global_state.client


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


def _meet(what: str, seconds: float) -> bool:
    """Whether all processes came within so many seconds."""
    try:
        _client().wait_at_barrier(f"lung_unet/{what}", int(seconds * 1000))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _leave(message: str) -> None:
    """Ends the process with one line, from any thread."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class Watch:
    """Ends this process with a line that names whom it waited for; does nothing in one process.

    A context manager. The others of the job count as dead if they show no life for half of
    `timeout_s`, and as hung if this process makes no progress (`beat`) for all of it.
    """

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._beats, self._beaten = 0, time.monotonic()
        self._seen: dict[int, tuple[str, float]] = {}  # by process: its last sign, and when
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._pulse = max(0.2, min(5.0, timeout_s / 20))

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1:
            wait("watch")  # some compile longer than others
            self.beat()
            self._seen = dict.fromkeys(range(jax.process_count()), ("0 0", self._beaten))
            self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if self._thread is None:
            return
        dead: list[int] = []
        if isinstance(error, jax.errors.JaxRuntimeError | ValueError):  # as of a broken connection
            deadline = time.monotonic() + 6 * self._pulse
            while not dead and time.monotonic() < deadline:
                time.sleep(self._pulse)
                dead = self._silent(4 * self._pulse)
        self._done.set()  # not before: the others look for this one's signs
        self._thread.join()
        if dead:  # at once: whatever else would wait for it
            _leave(self._line(dead, "died"))

    def beat(self) -> None:
        """Says that this process goes on; call it wherever one process may have to wait."""
        self._beats, self._beaten = self._beats + 1, time.monotonic()

    def _watch(self) -> None:
        own, signs = f"lung_unet/pulse/{jax.process_index()}", 0
        while not self._done.wait(self._pulse):
            signs += 1
            try:
                value = f"{self._beats} {signs}"
                _client().key_value_set(own, value, allow_overwrite=True)
                self._look()
            except jax.errors.JaxRuntimeError:
                _leave(self._line([0], "died"))  # it holds the coordination service
            if dead := self._silent(self._timeout_s / 2):
                _leave(self._line(dead, "died, or its host is out of reach"))
            if time.monotonic() - self._beaten > self._timeout_s:
                beats = {p: int(sign.split()[0]) for p, (sign, _) in self._seen.items()}
                behind = [p for p, n in beats.items() if n == min(beats.values())]
                _leave(self._line(behind, f"is behind, no step for {self._timeout_s:g} s"))

    def _look(self) -> None:
        now = time.monotonic()
        for name, sign in _client().key_value_dir_get("lung_unet/pulse"):
            process = int(name.rpartition("/")[2])
            if process not in self._seen or self._seen[process][0] != sign:
                self._seen[process] = (sign, now)

    def _silent(self, seconds: float) -> list[int]:
        now, me = time.monotonic(), jax.process_index()
        return sorted(p for p, (_, at) in self._seen.items() if p != me and now - at > seconds)

    def _line(self, processes: list[int], what: str) -> str:
        names = ", ".join(map(str, processes))
        return (
            f"process {names} of {jax.process_count()} {what}; see its own output, then run the "
            "same command again to go on from the last checkpoint"
        )
