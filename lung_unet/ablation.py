"""What each change of a configuration is worth: trained with several seeds, compared in pairs.

    python -m lung_unet.ablation --config=configs/ablation.py --out=DIR
        --train=DIR[,DIR…] --validation=DIR[,DIR…] --test=DIR[,DIR…]

The folders are LUNA16 folders; all scans of a folder are in its split. They are prepared once, as
the base configuration says. Each run is a process of lung_unet.main of its own, in
OUT/runs/CHANGE/seed0 and so on, as is the base itself. A run that is done is not repeated, one that
was interrupted goes on: run the same command again. OUT/ablation.md and ablation.json hold, after
each run, what is done until then: of each change the metrics less the base's on the same scans and
seeds, with 95 % intervals over resamples of both.

Start the command several times with one OUT, each on GPUs or cores of its own (CUDA_VISIBLE_DEVICES
or taskset): they share the runs.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from lung_unet import command
from lung_unet.child import run_logged
from lung_unet.data.datasets import settings_of
from lung_unet.data.manifest import SPLITS
from lung_unet.errors import InputError

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: the base with a change, of one seed. `flags` are those of lung_unet.main."""

    change: str
    seed: int
    workdir: pathlib.Path
    flags: tuple[str, ...]
    config: ConfigDict

    @property
    def log(self) -> pathlib.Path:
        return self.workdir.with_suffix(".log")


def plan(ablation: ConfigDict, data: pathlib.Path, out: pathlib.Path) -> list[Run]:
    """All runs, seed by seed, the base first.

    Raises:
      InputError: there is no such base, or a change sets what its configuration does not have, or
        what the one dataset cannot have.
    """
    base = command.read_config(ablation.base, "config.base")
    runs: list[Run] = []
    for seed in range(ablation.seeds):
        for change in (BASE, *ablation.changes):
            config = base.copy_and_resolve_references()
            given = [ablation.overrides, ConfigDict({"seed": seed, "data": {"dir": str(data)}})]
            if change != BASE:
                given.insert(1, ablation.changes[change])
            values: dict[str, Any] = {}
            for overrides in given:
                flat = flattened(command.frozen(overrides))
                for key in flat:
                    if key not in flattened(command.frozen(base)):
                        raise InputError(
                            f"{change}: config has no field {key}; see {ablation.base}"
                        )
                try:
                    config.update(overrides)
                except TypeError as error:
                    raise InputError(f"{change}: {error}; see {ablation.base}") from error
                values |= flat
            if runs and settings_of(config.data) != settings_of(runs[0].config.data):
                raise InputError(
                    f"{change}: changes how scans are prepared, which is done once; set it in "
                    "config.overrides"
                )
            set_by = tuple(f"--config.{key}={_text(value)}" for key, value in values.items())
            folder = out / "runs" / change / f"seed{seed}"
            runs.append(Run(change, seed, folder, set_by, config))
    return runs


def flattened(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Values of a nested dict by their keys, joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= flattened(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def _text(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else str(value)


def finished(run: Run) -> bool:
    """Whether the run is done, as it is configured now."""
    try:
        made_with = json.loads((run.workdir / "config.json").read_text())["config"]
    except (OSError, ValueError, KeyError):
        return False
    wanted = json.loads(json.dumps(command.frozen(run.config)))
    return (run.workdir / "metrics.json").exists() and made_with == wanted


def execute(run: Run, base: Run, config_file: str) -> None:
    """Does a run, or goes on with it.

    Raises:
      InputError: it failed or was stopped.
    """
    only_scored = all(
        f.startswith("--config.evaluation.") for f in set(run.flags) - set(base.flags)
    )
    if run is not base and only_scored and finished(base) and not run.workdir.exists():
        _copy_training(base.workdir, run.workdir)
    (run.workdir / "metrics.json").unlink(missing_ok=True)
    arguments = [f"--config={config_file}", f"--workdir={run.workdir}", *run.flags]
    run_logged([sys.executable, "-m", "lung_unet.main", *arguments], run.log)
    if not (run.workdir / "metrics.json").exists():
        raise InputError(f"{run.workdir}: was stopped; run the same command again to go on")


@contextlib.contextmanager
def held(path: pathlib.Path, wait: bool) -> Iterator[bool]:
    """Holds the lock of a file, which is made, against other processes; False if another does.

    With `wait`, waits for it instead. A process that dies lets go.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _copy_training(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a workdir but for what evaluation wrote."""
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    scored = shutil.ignore_patterns("evaluation", "metrics.json", "report.html", "figures")
    try:
        shutil.copytree(source, temporary, ignore=scored)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    from lung_unet.data.combined import combine
    from lung_unet.data.preparation import prepare

    out = pathlib.Path(command.required("out"))
    ablation: ConfigDict = flags.FLAGS.config
    runs = plan(ablation, out / "data", out)
    folders = {s: list(map(pathlib.Path, getattr(flags.FLAGS, s))) for s in SPLITS}
    with held(out / "lock", wait=True):
        combine(folders, out / "luna16")
        prepare(out / "luna16", out / "data", settings_of(runs[0].config.data))
    bases = {run.seed: run for run in runs if run.change == BASE}
    for number, run in enumerate(runs, 1):
        with held(run.workdir.with_suffix(".lock"), wait=False) as ours:
            done = finished(run)
            if not ours:
                state = "running in another process"
            else:
                state = "done before" if done else f"running, see {run.log}"
            print(f"{number} of {len(runs)}: {run.change}, seed {run.seed}: {state}")
            if ours and not done:
                execute(run, bases[run.seed], ablation.base)
                _write_table(runs, out)
    print(_write_table(runs, out))


def _write_table(runs: list[Run], out: pathlib.Path) -> str:
    from lung_unet.evaluation.changes import write_table

    done: dict[str, dict[int, pathlib.Path]] = {}
    for run in filter(finished, runs):
        done.setdefault(run.change, {})[run.seed] = run.workdir
    return write_table(done, BASE, out)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to write to.")
    for split in SPLITS:
        flags.DEFINE_list(split, [], f"LUNA16 folders of the {split} split.")
    command.define_config("configs/ablation.py")
    command.run(main)
