"""What is prepared does not depend on the engine, its workers, or how many of them die."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from lung_unet.data import engine
from lung_unet.data.preparation import prepare
from lung_unet.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]

# As many workers as `deaths` has bytes are killed in the middle of a shard. (Settings are what a
# worker is given: to unpickle these, it imports this module.)
FATAL = """
import multiprocessing, os, pathlib, signal
from lung_unet.data import records, shards

DEATHS = pathlib.Path(__file__).with_name("deaths")

class Fatal(shards.Settings):
    pass

class Killing(records.ArrayRecordWriter):
    def write(self, record):
        super().write(record)
        left = DEATHS.stat().st_size
        if left:
            os.truncate(DEATHS, left - 1)
            os.kill(os.getpid(), signal.SIGKILL)

if multiprocessing.parent_process():
    records.ArrayRecordWriter = Killing
"""

SBATCH = """#!/usr/bin/env bash
cat >job.sh
SLURM_JOB_ID=7 setsid bash job.sh >log 2>&1 &
echo $! >pid
echo "7;cluster"
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """What is prepared; not inputs.json, which is of the files that it was prepared from."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "inputs.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> pathlib.Path:
    """A folder that this process and all workers import from, with the module `fatal`."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "fatal.py").write_text(FATAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def fatal(modules, settings):
    """Makes settings that kill some workers."""

    def make(deaths: int):
        from fatal import Fatal

        (modules / "deaths").write_bytes(bytes(deaths))
        return Fatal(**vars(settings))

    return make


@pytest.fixture(scope="module")
def cluster(modules, tmp_path_factory) -> str:
    """A Dask cluster of two workers, as launch/dask_slurm.py starts it, but for SLURM itself."""
    folder = tmp_path_factory.mktemp("slurm")
    for name, text in {"sbatch": SBATCH, "srun": SRUN}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(modules)
    }  # fmt: skip
    command = [sys.executable, ROOT / "launch" / "dask_slurm.py", "--cores=2", f"--folder={folder}"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0, done.stderr
    yield done.stdout.split()[-1]
    os.killpg(int((folder / "pid").read_text(encoding="utf-8")), signal.SIGKILL)


@pytest.mark.parametrize(("workers", "deaths"), [(2, 1), (1, 2)])
def test_processes_that_die_change_nothing(
    luna16, prepared, tmp_path, fatal, modules, capsys, workers, deaths
):
    prepare(luna16, tmp_path, fatal(deaths), workers=workers)
    assert (modules / "deaths").stat().st_size == 0
    assert capsys.readouterr().out.count("a worker process died") == deaths
    assert contents(tmp_path) == contents(prepared)


def test_a_cluster_makes_the_same(cluster, luna16, prepared, tmp_path, settings, capsys):
    prepare(luna16, tmp_path, settings, engine=cluster)
    assert contents(tmp_path) == contents(prepared)
    assert "4/4" in capsys.readouterr().out


def test_workers_of_a_cluster_that_die_change_nothing(
    cluster, luna16, prepared, tmp_path, fatal, modules
):
    prepare(luna16, tmp_path, fatal(2), engine=cluster)
    assert (modules / "deaths").stat().st_size == 0
    assert contents(tmp_path) == contents(prepared)


def test_workers_of_a_cluster_that_die_again_and_again_are_told(cluster, luna16, tmp_path, fatal):
    with pytest.raises(InputError, match=f"{cluster}: workers died.*finished scans are kept"):
        prepare(luna16, tmp_path, fatal(100), engine=cluster)
    assert not (tmp_path / "manifest.json").exists()


def test_a_broken_scan_is_named_by_a_cluster_too(cluster, luna16, tmp_path, settings):
    folder = shutil.copytree(luna16, tmp_path / "luna16")
    data = folder / "subset3" / "1.2.3.zraw"
    data.write_bytes(data.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"subset3/1\.2\.3\.mhd: .*copy it again"):
        prepare(folder, tmp_path / "out", settings, engine=cluster)


@pytest.mark.parametrize(
    ("address", "saying"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers there"),
        ("tcp://127.0.0.1", "give local, or a Dask scheduler as tcp://host:8786"),
        ("dask", "give local, or a Dask scheduler as tcp://host:8786"),
    ],
)
def test_no_such_engine(luna16, tmp_path, settings, monkeypatch, address, saying):
    monkeypatch.setattr(engine, "CONNECT_S", 0.5)
    with pytest.raises(InputError, match=f"--engine={address}: {saying}") as error:
        prepare(luna16, tmp_path, settings, engine=address)
    assert "\n" not in str(error.value)


def test_without_dask(luna16, tmp_path, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="pip install distributed"):
        prepare(luna16, tmp_path, settings, engine="tcp://127.0.0.1:9")


def test_dask_is_imported_only_where_it_is_used():
    code = "import sys, lung_unet.data.preparation; print('distributed' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "False", done.stderr


def launch(*arguments: str, path: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "launch" / "dask_slurm.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, encoding="utf-8"
    )


def test_the_script_for_slurm(tmp_path):
    flags = ["--nodes=3", "--cores=16", "--memory=64G", "--partition=long", "--sbatch=--qos=low"]
    done = launch("--dry_run", *flags, f"--folder={tmp_path}/a folder")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    lines = done.stdout.splitlines()
    assert lines[0].startswith("#!")
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    expected = {"--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=16", "--mem=64G"}
    assert expected | {"--partition=long", "--qos=low"} <= set(options)
    assert lines[1 : 1 + len(options)] == [f"#SBATCH {o}" for o in options]  # sbatch reads no more
    commands = done.stdout.replace("\\\n", "")
    assert "-m dask scheduler" in commands
    assert "srun --cpus-per-task=16" in commands
    assert "--nworkers 16 --nthreads 1" in commands
    subprocess.run(["bash", "-n"], input=done.stdout, encoding="utf-8", check=True)


def test_without_slurm_and_with_a_job_that_it_refuses(tmp_path):
    done = launch(f"--folder={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no sbatch here" in done.stderr
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: no such partition' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    done = launch(f"--folder={tmp_path}", path=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no such partition" in done.stderr
