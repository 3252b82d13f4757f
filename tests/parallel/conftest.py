"""Jobs of several processes on this machine."""

import json
import pathlib
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from lung_unet.command import frozen
from lung_unet.train.writer import read_rows

ROOT = pathlib.Path(__file__).parent.parent.parent
DEVICES = 4  # of a job
WORKER = """
import json, pathlib, sys
from ml_collections import ConfigDict
from lung_unet import command
command.set_up_jax()
from lung_unet.parallel import distributed
runs = json.loads(sys.argv[1])
with distributed.job(runs[0][2]["timeout_s"]):
    from lung_unet.data.manifest import Dataset
    from lung_unet.train.loop import train
    for dataset, workdir, config in runs:
        train(ConfigDict(config), Dataset(dataset), pathlib.Path(workdir))
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Job:
    """The processes that run a command of Python, `prefixes` before each; for a `with`."""

    def __init__(self, environment, arguments, processes=2, coordinator="127.0.0.1", prefixes=()):
        environment = environment(DEVICES // processes) | {
            "LUNG_UNET_COORDINATOR": f"{coordinator}:{free_port()}",
            "LUNG_UNET_PROCESSES": str(processes),
        }
        self.processes = [
            subprocess.Popen(
                [*(prefixes[i] if prefixes else ()), sys.executable, *arguments],
                cwd=ROOT, env=environment | {"LUNG_UNET_PROCESS_ID": str(i)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            )
            for i in range(processes)
        ]  # fmt: skip
        self._read: dict = {}  # by process: its output and its errors, as they come
        for process in self.processes:
            self._read[process] = ([], [])
            for stream, lines in zip(
                (process.stdout, process.stderr), self._read[process], strict=True
            ):
                threading.Thread(target=lines.extend, args=(stream,), daemon=True).start()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def until(self, condition, seconds: float = 240) -> None:
        """Returns once it holds; all processes must be alive then."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            for number, process in enumerate(self.processes):
                assert process.poll() is None, f"process {number}: {self._read[process]}"
            time.sleep(0.02)

    def output(self, process: int) -> str:
        """What a process has printed by now."""
        return "".join(self._read[self.processes[process]][0])

    def end(self, process: int) -> tuple[int, str]:
        """(exit code, errors) of a process, which must end by itself."""
        code = self.processes[process].wait(timeout=240)
        time.sleep(0.2)  # the rest of its output
        return code, "".join(self._read[self.processes[process]][1])


@pytest.fixture(scope="session")
def job(environment):
    """job(arguments of Python, …) → a Job."""
    return partial(Job, environment)


@pytest.fixture(scope="session")
def one_line():
    """one_line(errors, of) checks that a process ended with one line of error, which begins so."""

    def one_line(errors: str, begin: str) -> None:
        told = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and told[0].startswith(f"error: {begin}"), errors
        assert "Traceback" not in errors and "stack trace" not in errors, errors

    return one_line


@pytest.fixture(scope="session")
def numbers():
    """numbers(workdir) → {(step, name): number} of what a run logged that any mesh gives."""
    names = ("train/loss", "train/grad_norm", "validation/loss", "validation/dice")
    return lambda workdir: {
        (row["step"], name): row[name]
        for row in read_rows(workdir / "metrics.jsonl")
        for name in names
        if name in row
    }


@pytest.fixture(scope="session")
def worker():
    """worker(runs) → arguments of Python that train (dataset, workdir, config) one by one."""

    def worker(runs) -> tuple[str, ...]:
        plain = [(str(d.folder), str(w), frozen(c)) for d, w, c in runs]
        return "-c", WORKER, json.dumps(plain)

    return worker
