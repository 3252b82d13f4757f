"""Many processes give what one gives, and none waits for ever for another.

LUNG_UNET_TEST_PROCESSES=4 makes them four.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from ml_collections import ConfigDict

from lung_unet.command import frozen
from lung_unet.errors import InputError
from lung_unet.parallel import distributed
from lung_unet.parallel.distributed import Watch, find_job
from lung_unet.train.loop import train
from lung_unet.train.writer import read_rows

ROOT = pathlib.Path(__file__).parent.parent.parent
DEVICES = 4  # of a job
MESHES = ((4, 1), (1, 4))  # the second has parts of a patch in all processes
PROCESSES = int(os.environ.get("LUNG_UNET_TEST_PROCESSES", 2))
WORKER = """
import json, pathlib, sys
from ml_collections import ConfigDict
from lung_unet import command
command.set_up_jax()
from lung_unet.parallel import distributed
runs = json.loads(pathlib.Path(sys.argv[1]).read_text())
with distributed.job(runs[0][2]["timeout_s"]):
    from lung_unet.data.manifest import Dataset
    from lung_unet.train.loop import train
    for dataset, workdir, config in runs:
        train(ConfigDict(config), Dataset(dataset), pathlib.Path(workdir))
"""


def start(runs, processes: int, tmp_path) -> list[subprocess.Popen]:
    """The processes of a job that trains one run after the other: (dataset, workdir, config)."""
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([(str(d.folder), str(w), frozen(c)) for d, w, c in runs]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    devices = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    environment = {
        **os.environ,
        "XLA_FLAGS": devices,
        "LUNG_UNET_COORDINATOR": address,
        "LUNG_UNET_PROCESSES": str(processes),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)],
            cwd=ROOT, env=environment | {"LUNG_UNET_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )
        for i in range(processes)
    ]  # fmt: skip


def finish(job: list[subprocess.Popen]) -> None:
    for number, process in enumerate(job):
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"process {number}: {output[-2000:]}{errors[-4000:]}"


def on(config: ConfigDict, data: int, space: int, steps: int = 4) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.mesh.update(data=data, space=space)
    config.train.update(steps=steps, batch_size=4)
    config.optimizer.schedule = "constant"
    config.data.mining.every = 2
    config.timeout_s = 60.0
    return config


def numbers(workdir) -> dict[tuple, float]:
    names = ("train/loss", "train/grad_norm", "validation/loss", "validation/dice")
    return {
        (row["step"], name): row[name]
        for row in read_rows(workdir / "metrics.jsonl")
        for name in names
        if name in row
    }


def test_many_processes_train_as_one_and_go_on_with_each_others_runs(config, dataset, tmp_path):
    first = on(config, 4, 1, steps=2)
    train(first, dataset, tmp_path / "elastic")  # two steps in one process; the job goes on
    runs = [(dataset, tmp_path / "elastic", on(config, 2, 2))]
    for data, space in MESHES:
        c = on(config, data, space)
        c.optimizer.shard = data == 4  # saved and read in parts
        train(c, dataset, tmp_path / f"one {data} {space}")
        runs.append((dataset, tmp_path / f"many {data} {space}", c))
    finish(start(runs, PROCESSES, tmp_path))
    for data, space in MESHES:
        one, many = (numbers(tmp_path / f"{who} {data} {space}") for who in ("one", "many"))
        assert len(one) == 12 and many == pytest.approx(one, rel=1e-6)
        assert list((tmp_path / f"many {data} {space}" / "tensorboard").iterdir())
    expected = pytest.approx(numbers(tmp_path / "one 4 1"), rel=1e-4)
    assert numbers(tmp_path / "elastic") == expected
    shutil.copytree(tmp_path / "many 4 1", tmp_path / "longer")
    train(on(config, 1, 1, steps=5), dataset, tmp_path / "longer")  # what the job wrote, alone
    train(on(config, 4, 1, steps=5), dataset, tmp_path / "one 4 1")
    expected = pytest.approx(numbers(tmp_path / "one 4 1"), rel=1e-4)
    assert numbers(tmp_path / "longer") == expected


def test_a_dead_process_ends_the_others_with_a_line_that_names_it(config, dataset, tmp_path):
    job = start([(dataset, tmp_path / "run", on(config, 4, 1, steps=100_000))], 2, tmp_path)
    try:
        deadline = time.monotonic() + 200
        while not numbers(tmp_path / "run") and time.monotonic() < deadline:
            assert job[0].poll() is None, job[0].stderr.read()
            time.sleep(0.05)
        job[1].send_signal(signal.SIGKILL)
        _, errors = job[0].communicate(timeout=60)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert job[0].returncode == 1
        assert len(lines) == 1 and "process 1 of 2 died" in lines[0] and "Traceback" not in errors
    finally:
        for process in job:
            process.kill()
            process.wait()


class Store:
    """What Watch needs of JAX's coordination service; `signs` are those of other processes."""

    def __init__(self, signs):
        self.signs, self.own = signs, {}

    def wait_at_barrier(self, name, timeout_ms):
        pass

    def key_value_set(self, key, value, allow_overwrite):
        self.own[key] = value

    def key_value_dir_get(self, folder):
        others = {f"{folder}/{p}": sign() for p, sign in self.signs.items()}
        return [*others.items(), *self.own.items()]


@pytest.mark.parametrize(
    "second, line",
    [
        (lambda: f"4 {time.monotonic()}", "process 2 of 4 is behind"),
        (lambda: "4 1", "process 2 of 4 died"),
    ],
    ids=["hung", "silent"],
)
def test_whoever_is_behind_or_silent_is_named(monkeypatch, second, line):
    told: list[str] = []
    alive = lambda: f"9 {time.monotonic()}"  # noqa: E731
    store = Store({1: alive, 2: second, 3: alive})
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(distributed, "_client", lambda: store)
    monkeypatch.setattr(distributed, "_leave", told.append)
    with Watch(1.0) as watch:
        for _ in range(9):
            watch.beat()
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert line in told[0]


def test_a_process_that_goes_on_is_left_alone(monkeypatch):
    told: list[str] = []
    store = Store({1: lambda: f"1 {time.monotonic()}"})
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "_client", lambda: store)
    monkeypatch.setattr(distributed, "_leave", told.append)
    with Watch(1.0) as watch:
        for _ in range(8):
            time.sleep(0.2)
            watch.beat()
    assert not told


def test_alone_where_the_environment_names_nobody():
    assert find_job({"PATH": "/bin", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}) is None
    step = {"SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert find_job(step) is None


@pytest.mark.parametrize(
    "nodes, host",
    [("node001", "node001"), ("gpu-a,gpu-b", "gpu-a"), ("n[007-009,12],m3", "n007")],
)
def test_a_slurm_step_is_a_job_with_its_first_node_as_coordinator(nodes, host):
    found = find_job(
        {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2",
         "SLURM_JOB_ID": "123456"}
    )  # fmt: skip
    assert found["coordinator_address"] == f"{host}:23456"
    assert (found["num_processes"], found["process_id"]) == (3, 2)


def test_variables_win_and_may_leave_it_to_jax():
    slurm = {"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2"}
    own = dict(zip(distributed.VARIABLES, ("host:1", "2", "1"), strict=True))
    assert find_job(slurm | own)["coordinator_address"] == "host:1"
    assert find_job({"LUNG_UNET_COORDINATOR": "auto"}) == {}


@pytest.mark.parametrize("values", [("host", "2", "1"), ("host:1", "2", "2"), ("host:1", "x", "0")])
def test_a_job_that_cannot_be_is_refused(values):
    with pytest.raises(InputError, match="LUNG_UNET_PROCESS_ID"):
        find_job(dict(zip(distributed.VARIABLES, values, strict=True)))
