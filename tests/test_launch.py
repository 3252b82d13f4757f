"""What starts jobs on clusters is sound, and calls the same main."""

import os
import pathlib
import stat
import subprocess

import pytest
import yaml

from lung_unet.parallel.distributed import VARIABLES, find_job

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"


@pytest.mark.parametrize("path", sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]), ids=str)
def test_scripts_are_bash(path):
    subprocess.run(["bash", "-n", path], check=True)


def tool(folder: pathlib.Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    "srun, code, requeued",
    [
        ('touch "$WORKDIR/finished.json"', 0, False),
        ("true", 0, True),  # as after TERM
        ('touch "$WORKDIR/metrics.json"', 0, True),  # as after TERM, and evaluated meanwhile
        ("exit 1", 1, False),
    ],
    ids=["done", "stopped", "stopped and evaluated", "failed"],
)
def test_slurm_requeues_what_was_stopped_and_nothing_else(tmp_path, srun, code, requeued):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "finished.json").touch()  # of a shorter run before
    os.utime(workdir / "finished.json", (0, 0))
    tool(tmp_path, "srun", f'echo "$@" >"{tmp_path}/srun.log"; {srun}')
    tool(tmp_path, "scontrol", f'echo "$@" >"{tmp_path}/scontrol.log"')
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "--config=c.py", f"--workdir={workdir}"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKDIR": str(workdir),
            "SLURM_SUBMIT_DIR": str(LAUNCH.parent), "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "64",
        },
    )  # fmt: skip
    assert done.returncode == code
    assert "--cpus-per-task=64 " in (tmp_path / "srun.log").read_text(encoding="utf-8")
    assert (tmp_path / "scontrol.log").exists() == requeued
    assert "-m lung_unet.main --config=c.py" in (tmp_path / "srun.log").read_text(encoding="utf-8")


def test_each_task_of_a_slurm_array_is_a_fold(tmp_path):
    tool(tmp_path, "srun", f'printf "%s\\n" "$@" >"{tmp_path}/srun.log"')
    tool(tmp_path, "scontrol", f'echo "$@" >"{tmp_path}/scontrol.log"')
    subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", f"--workdir={tmp_path}/a run", "--config=c.py"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(LAUNCH.parent),
            "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3",
        },
        check=True,
    )  # fmt: skip
    arguments = (tmp_path / "srun.log").read_text(encoding="utf-8").splitlines()[-3:]
    assert arguments == [
        "--config=c.py",
        "--config.data.fold=3",
        f"--workdir={tmp_path}/a run/fold3",
    ]
    assert (tmp_path / "scontrol.log").read_text(
        encoding="utf-8"
    ) == "requeue 7_3\n"  # "7" would be all tasks


def folds_of_the_jobset(tmp_path) -> list[str]:
    """What the command in the file's comments hands to kubectl."""
    tool(tmp_path, "kubectl", f'cat >"{tmp_path}/$(ls "{tmp_path}" | wc -l).yaml"')
    text = (LAUNCH / "gke_jobset.yaml").read_text(encoding="utf-8")
    lines = [line[4:] for line in text.splitlines() if line.startswith("#   ")]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = "\n".join(lines)
    subprocess.run(["bash", "-c", command], check=True, cwd=LAUNCH.parent, env=environment)
    return [
        p.read_text(encoding="utf-8")
        for p in sorted(tmp_path.glob("*.yaml"), key=lambda p: int(p.stem))
    ]


def test_each_fold_is_a_jobset_of_its_own(tmp_path):
    folds = folds_of_the_jobset(tmp_path)
    assert len(folds) == 10
    for fold, text in enumerate(folds):
        jobset = yaml.safe_load(text)
        check_jobset(jobset)
        assert jobset["metadata"]["name"] == f"lung-unet-fold{fold}"
        assert f"--config.data.fold={fold} --workdir=/data/run/fold{fold} &" in text
        assert f"[ /data/run/fold{fold}/finished.json -nt" in text
        assert "claimName: lung-unet\n" in text  # the data are the same


def test_the_pods_of_a_jobset_are_a_job():
    check_jobset(yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text(encoding="utf-8")))


def check_jobset(jobset: dict) -> None:
    job = jobset["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    subprocess.run(["bash", "-n", "-c", *container["args"]], check=True)
    assert "-m lung_unet.main" in container["args"][0]
    environment = {
        e["name"]: e.get("value", str(spec["completions"] - 1)) for e in container["env"]
    }
    assert set(environment) == set(VARIABLES)
    found = find_job(environment)
    assert found["num_processes"] == spec["completions"] == spec["parallelism"]
    name = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
    assert found["coordinator_address"].startswith(f"{name}:")


def test_a_pods_arguments_reach_every_host_as_they_were_given(tmp_path):
    tool(tmp_path, "gcloud", f'printf "%s\\n" "$@" >"{tmp_path}/gcloud.log"')
    subprocess.run(
        [LAUNCH / "tpu_pod.sh", "--config=c.py:smoke", "--config.data.dir=/a b"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU": "t", "ZONE": "z"},
        check=True,
    )
    sent = (tmp_path / "gcloud.log").read_text(encoding="utf-8")
    assert "--worker=all" in sent and "LUNG_UNET_COORDINATOR=auto launch/local.sh" in sent
    assert "--config=c.py:smoke --config.data.dir=/a\\ b" in sent
