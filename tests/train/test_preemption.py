"""SIGTERM ends a process at once with code 0, or is kept until the state is saved."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from lung_unet.train import preemption
from lung_unet.train.preemption import Preemption

BUSY = """
import numpy as np
from lung_unet.train.preemption import Preemption
with Preemption():
    print("busy", flush=True)
    np.linalg.svd(np.random.rand(4000, 4000))  # in C, where no Python handler can run
print("done")
"""

COUNT = """
import sys, time
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from lung_unet.train.preemption import Preemption
with Preemption() as preemption, preemption.holding():
    print("counting", flush=True)
    count = 1
    while not preemption.requested() and count < 3000:
        count += 1
        time.sleep(0.01)
    print(count, preemption.requested())
"""


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def until(condition) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def test_a_process_deep_in_a_library_ends_at_once():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "done" not in output and "run the same command" in output


@pytest.fixture
def left(monkeypatch) -> list:
    """One entry for each time that the process would have ended."""
    left: list = []
    monkeypatch.setattr(preemption, "stop_preempted", lambda: left.append(True))
    return left


def test_while_held_it_is_only_told(left):
    with Preemption() as asked:
        with asked.holding():
            assert not asked.requested()
            terminate()
            assert until(asked.requested) and not left
        terminate()
        assert until(lambda: bool(left))


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_one_within_another_leaves_that_in_force(left):
    with Preemption():
        with Preemption():
            pass
        terminate()
        assert until(lambda: bool(left)) and left == [True]


def test_other_signals_are_not_mistaken_for_it(left):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    with Preemption():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        terminate()
        assert until(lambda: bool(left)) and left == [True]
    signal.signal(signal.SIGINT, before)


def test_with_jax_distributed_all_are_told_at_the_same_call_and_stay_told():
    """Two processes; one gets SIGTERM, both go on to the same count, and it stays requested."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, str(port), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        for rank in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "counting\n"
    processes[0].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs[0] == outputs[1] and outputs[0].endswith(" True\n")
    assert [process.returncode for process in processes] == [0, 0]


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_waits_for_the_others_of_its_job_ends_with_code_0(process, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = {"COORDINATOR": f"localhost:{port}", "PROCESSES": "2", "PROCESS_ID": str(process)}
    program = (
        "import sys, runpy\nfrom lung_unet.parallel import distributed\n"
        "join = distributed._join\n"
        "distributed._join = lambda *a: (print('joining', flush=True), join(*a))[1]\n"
        f"sys.argv = ['main', '--workdir={tmp_path}/run', '--config.timeout_s=300']\n"
        "runpy.run_module('lung_unet.main', run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, encoding="utf-8",
        env=os.environ | {f"LUNG_UNET_{name}": value for name, value in job.items()},
        cwd=pathlib.Path(__file__).parents[2],
    ) as waiting:  # fmt: skip
        assert waiting.stdout.readline() == "joining\n"
        time.sleep(2)  # within jax.distributed.initialize
        waiting.send_signal(signal.SIGTERM)
        output, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0 and "run the same command" in output
