"""Many processes give what one gives, and none waits for ever for another.

LUNG_UNET_TEST_PROCESSES=4 makes them four.
"""

import contextlib
import os
import shutil
import subprocess

import pytest
from ml_collections import ConfigDict

from lung_unet.errors import InputError
from lung_unet.parallel import distributed
from lung_unet.parallel.distributed import find_job
from lung_unet.train.loop import train

MESHES = ((4, 1), (1, 4))  # the second has parts of a patch in all processes
PROCESSES = int(os.environ.get("LUNG_UNET_TEST_PROCESSES", 2))


def on(config: ConfigDict, data: int, space: int, steps: int = 2) -> ConfigDict:
    """A configuration of so many steps on a mesh; its flips and noise are those of the sample."""
    config = config.copy_and_resolve_references()
    config.mesh.update(data=data, space=space)
    config.data.patch = (16, 8, 8)
    config.train.update(steps=steps, batch_size=4, checkpoint_every=1, eval_every=1)
    config.optimizer.shard = data == 4  # saved whole, read in parts
    config.data.mining.every = 1
    config.timeout_s = 60.0
    return config


def test_many_processes_train_as_one_and_go_on_with_each_others_runs(
    config, dataset, tmp_path, job, worker, numbers
):
    train(on(config, 4, 1, steps=1), dataset, tmp_path / "one 4 1")
    shutil.copytree(tmp_path / "one 4 1", tmp_path / "elastic")  # the job goes on with it
    runs = []
    for data, space in MESHES:
        train(on(config, data, space), dataset, tmp_path / f"one {data} {space}")
        runs.append((dataset, tmp_path / f"many {data} {space}", on(config, data, space)))
    runs.append((dataset, tmp_path / "elastic", on(config, *MESHES[-1])))
    with job(worker(runs), PROCESSES) as processes:
        for number in range(PROCESSES):
            code, errors = processes.end(number)
            assert code == 0, f"process {number}: {errors}"
    for data, space in MESHES:
        one, many = (numbers(tmp_path / f"{who} {data} {space}") for who in ("one", "many"))
        assert len(one) == 8 and many == pytest.approx(one, rel=1e-6)
        assert list((tmp_path / f"many {data} {space}" / "tensorboard").iterdir())
    expected = pytest.approx(numbers(tmp_path / "one 4 1"), rel=1e-4)
    assert numbers(tmp_path / "elastic") == expected
    for who in ("one", "many"):  # what the job wrote, alone
        train(on(config, 4, 1, steps=3), dataset, tmp_path / f"{who} 4 1")
    expected = pytest.approx(numbers(tmp_path / "one 4 1"), rel=1e-6)
    assert numbers(tmp_path / "many 4 1") == expected


@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_waits_in_vain_for_another_ends_with_a_line(
    config, dataset, tmp_path, job, worker, one_line, missing
):
    config.timeout_s = 3.0
    prefixes = [(), ()]
    prefixes[missing] = ("true",)  # in place of Python
    with job(worker([(dataset, tmp_path, config)]), prefixes=prefixes) as processes:
        code, errors = processes.end(1 - missing)
    assert code == 1
    one_line(errors, "not all processes of the job came to 127.0.0.1:")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, encoding="utf-8")


@pytest.fixture
def hosts():
    """(names, prefixes) of two hosts: network namespaces, joined by a cable.

    A prefix runs a command there, whose host name is the address. It takes a superuser's rights.
    """
    names = [f"lung_unet_{os.getpid()}_{i}" for i in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth",
           "peer", "cable", "netns", names[1])  # fmt: skip
        for i, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        enter = 'hostname "$0" && exec "$@"'
        prefixes = [
            ("ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", enter, f"10.77.0.{i + 1}")
            for i, name in enumerate(names)
        ]
        subprocess.run([*prefixes[0], "true"], check=True, capture_output=True)
        yield names, prefixes
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_hosts_train_as_one_and_each_names_the_other_when_the_cable_is_cut(
    config, dataset, tmp_path, job, worker, hosts, numbers, one_line
):
    names, prefixes = hosts
    train(on(config, 4, 1), dataset, tmp_path / "one")
    endless = on(config, 4, 1, steps=100_000)
    runs = [(dataset, tmp_path / "many", on(config, 4, 1)), (dataset, tmp_path / "cut", endless)]
    for _, _, c in runs:
        c.timeout_s = 40.0
    with job(worker(runs), coordinator="10.77.0.1", prefixes=prefixes) as processes:
        processes.until(lambda: numbers(tmp_path / "cut"))
        ip("-n", names[0], "link", "set", "cable", "down")
        for number in range(2):
            code, errors = processes.end(number)
            assert code == 1, errors
            one_line(errors, f"process {1 - number} on 10.77.0.{2 - number} died, or its host")
    assert numbers(tmp_path / "many") == pytest.approx(numbers(tmp_path / "one"), rel=1e-6)


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
