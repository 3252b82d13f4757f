"""Start a Dask cluster as a SLURM job, to prepare an archive on many machines.

    .venv/bin/python launch/dask_slurm.py --nodes=4 --cores=32 --memory=128G [--time=12:00:00]
        [--partition=NAME] [--dry_run] [--sbatch=--account=LAB --sbatch=--qos=long]

submits one job: the scheduler on its first node, and on every node a worker process a core. When
the scheduler runs, its address is printed; give it to prepare:

    .venv/bin/python -m lung_unet.prepare --engine=tcp://node17:8786 --luna16=DIR --out=DIR

The project's folder, with its .venv, and the folders of the data must be shared by all nodes, under
the same paths. A scan takes about 1 GB of memory, so give 1.5 GB a core or more. Workers may be
lost, and the job may end (run prepare again with another): finished scans are kept. When all is
prepared, end the job with scancel.

The scheduler answers whoever reaches its port and runs what they send: use a cluster whose network
you trust.
"""

import json
import pathlib
import shlex
import subprocess
import sys
import time

from absl import app, flags

_NODES = flags.DEFINE_integer("nodes", 1, "Machines.", lower_bound=1)
_CORES = flags.DEFINE_integer("cores", 8, "Cores a machine; one worker each.", lower_bound=1)
_MEMORY = flags.DEFINE_string("memory", "16G", "Memory a machine, as SLURM writes it.")
_TIME = flags.DEFINE_string("time", "12:00:00", "How long the job may run.")
_PARTITION = flags.DEFINE_string("partition", None, "SLURM partition; the default one if not set.")
_SBATCH = flags.DEFINE_multi_string("sbatch", [], "More options of sbatch, each as --sbatch=--x=y.")
_FOLDER = flags.DEFINE_string("folder", "runs/dask", "Shared folder for the job's log and address.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the script for sbatch and stop.")

ROOT = pathlib.Path(__file__).absolute().parent.parent


def batch_script(folder: pathlib.Path) -> str:
    """The script that sbatch runs: options, then the scheduler, then the workers of all nodes."""
    options = [
        "--job-name=lung_unet-dask",
        f"--nodes={_NODES.value}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={_CORES.value}",
        f"--mem={_MEMORY.value}",
        f"--time={_TIME.value}",
        f"--output={folder}/%j.log",
        *([f"--partition={_PARTITION.value}"] if _PARTITION.value else []),
        *_SBATCH.value,
    ]
    dask = f"{shlex.quote(sys.executable)} -m dask"
    address = f"{shlex.quote(str(folder))}/$SLURM_JOB_ID.json"
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {shlex.quote(option)}" for option in options),
            "set -euo pipefail",
            f"cd {shlex.quote(str(ROOT))}",
            f"{dask} scheduler --port 0 --no-dashboard --scheduler-file {address} &",
            "# A worker is a process of one thread; its nanny starts it again when it dies.",
            "# SLURM limits the memory, so Dask need not.",
            f"srun --cpus-per-task={_CORES.value} {dask} worker --scheduler-file {address} \\",
            f"    --nworkers {_CORES.value} --nthreads 1 --memory-limit 0 --no-dashboard \\",
            '    --local-directory "${TMPDIR:-/tmp}" --death-timeout 120',
            "",
        ]
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; see --help")
    folder = pathlib.Path(_FOLDER.value).absolute()
    script = batch_script(folder)
    if _DRY_RUN.value:
        print(script, end="")
        return
    folder.mkdir(parents=True, exist_ok=True)  # SLURM starts no job whose log it cannot open
    try:
        submitted = subprocess.run(
            ["sbatch", "--parsable"],
            input=script, capture_output=True, encoding="utf-8", check=True,
        )  # fmt: skip
    except FileNotFoundError:
        sys.exit("error: there is no sbatch here; run this on a login node of a SLURM cluster")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: sbatch refused the job: {' '.join(error.stderr.split())}")
    job = submitted.stdout.strip().partition(";")[0]
    print(f"job {job} is submitted; scancel {job} ends it; log: {folder}/{job}.log")
    print(f"engine: {_address(folder / f'{job}.json')}")


def _address(path: pathlib.Path) -> str:
    """The scheduler's address, once it runs and has written it."""
    while True:
        try:
            return json.loads(path.read_text(encoding="utf-8"))["address"]
        except (OSError, ValueError):
            time.sleep(1)


if __name__ == "__main__":
    try:
        app.run(main)
    except KeyboardInterrupt:
        sys.exit("stopped waiting; the job stays submitted")
