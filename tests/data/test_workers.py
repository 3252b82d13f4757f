"""Workers end with the process that they work for, even if that is killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lung_unet.data.workers import worker_pool

ROOT = pathlib.Path(__file__).parents[2]
MAIN = """
import os, time
from lung_unet.data.workers import worker_pool

if __name__ == "__main__":
    pool = worker_pool(2)
    jobs = [pool.submit(time.sleep, 0.2) for _ in range(1000)]
    jobs[0].result()
    print(*pool._processes, flush=True)
    time.sleep(1000)
"""


def running(pid: int) -> bool:
    try:
        return (
            pathlib.Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8")
            .rpartition(")")[2]
            .split()[0]
            != "Z"
        )
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_they_end_with_it(tmp_path, number):
    (tmp_path / "main.py").write_text(MAIN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "main.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and all(map(running, workers))
        process.send_signal(number)
    deadline = time.time() + 60
    while any(map(running, workers)) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(map(running, workers))


def test_ctrl_c_may_be_left_to_the_parent():
    with worker_pool(1, interrupts=False) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
    with worker_pool(1) as pool:
        # as here: a shell's & ignores it
        ignored = pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
        assert ignored == (signal.getsignal(signal.SIGINT) == signal.SIG_IGN)
