"""What each change of a configuration is worth: trained with several seeds, compared in pairs.

    python -m lung_unet.ablation --config=configs/ablation.py --out=DIR [--lidc_xml=DIR]
        --patients=DIR,DIR,DIR[,DIR…]
    python -m lung_unet.ablation --config=configs/ablation.py --out=DIR [--lidc_xml=DIR]
        --train=DIR[,DIR…] --validation=DIR[,DIR…] --test=DIR[,DIR…]

The folders are LUNA16 folders, three to ten of different patients (or hospitals) after --patients:
rotation k tests on folder k, validates (checkpoint and thresholds) on the next and trains on the
others, so that each is tested on once, by what has not seen it. With a fixed split, all scans of a
folder are in its split. A patient (patients.csv) in two folders is refused.

Scans are prepared once, as the base configuration says. Each run is a process of lung_unet.main of
its own, in OUT/runs/CHANGE/fold0_seed0 (seed0 where the split is fixed) and so on, as is the base
itself. A run that is done is not repeated, one that was interrupted goes on: run the same command
again. OUT/ablation.md and ablation.json hold, after each run, what is done until then: of each
change the metrics less the base's on the same scans and seeds, with 95 % intervals over resamples
of both, all rotations together and one by one. A run that fails is told, and left out until it is
put right.

Start the command several times with one OUT, each on GPUs or cores of its own (CUDA_VISIBLE_DEVICES
or taskset): they share the runs.
"""

import functools
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from lung_unet import command, split_flags
from lung_unet import workdir as runs
from lung_unet.ablation_plan import BASE, Run, plan
from lung_unet.child import run_logged
from lung_unet.data.datasets import settings_of
from lung_unet.data.manifest import ALL, Dataset
from lung_unet.errors import InputError, Stopped
from lung_unet.files import LOCK, alone_in, held, remove_leftovers, temporary_name, write_text
from lung_unet.finished import is_finished, unfinish


def finished(run: Run) -> bool:
    """Whether the run is done, as it is configured now."""
    made = _made(run)
    if made is None or _asked(made.config) != _asked(run.config):
        return False
    return is_finished(run.workdir)


def _asked(config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run trains, and how it is scored; where and how it runs may differ."""
    trains = runs.recipe(config) | {"train.steps": config.train.steps}
    return trains, command.frozen(config.evaluation)


def _made(run: Run) -> runs.Run | None:
    """What the workdir says of itself; None if it says nothing, which main then tells."""
    try:
        return runs.load(run.workdir, run.config.task)
    except InputError:
        return None


def check_scans(planned: list[Run], given: str, out: pathlib.Path) -> None:
    """Returns where no run in `out` is of other scans than those `given`, and keeps them there.

    Raises:
      InputError: there is one.
    """
    kept = out / "scans.json"
    if kept.exists() and kept.read_text(encoding="utf-8") != given and any(map(_made, planned)):
        raise InputError(
            f"{out}: its runs are of other scans, see {kept}; give the same --patients, or "
            "--train, --validation and --test, and --lidc_xml as before, or choose another --out"
        )
    write_text(kept, given)


def check_runs(planned: list[Run], data: dict) -> None:
    """Returns where all runs that were begun are of the dataset with the identity `data`, and train
    as is asked for now.

    Raises:
      InputError: there is one that is not, or does not.
    """
    for run in planned:
        made = _made(run)
        if made is None or not (runs.is_trained(run.workdir) or finished(run)):
            continue
        if made.data != runs.hash_of(data):
            raise InputError(
                f"{run.workdir}: is of these scans as they were before they changed; choose "
                "another --out"
            )
        for _, said in runs.differences(_asked(made.config)[0], _asked(run.config)[0]):
            raise InputError(
                f"{run.workdir}: was made with {said}; remove it to train anew, or choose another "
                "--out"
            )


def execute(run: Run, base: Run, config_file: str) -> None:
    """Does a run, or goes on with it.

    Raises:
      InputError: it failed. `Stopped` where it was stopped.
    """
    only_scored = all(
        f.startswith("--config.evaluation.") for f in set(run.flags) - set(base.flags)
    )
    with alone_in(run.workdir, "a process of before still runs it", "wait for its end"):
        begun = any(path.name != LOCK for path in run.workdir.iterdir())
        if run is not base and only_scored and finished(base) and not begun:
            _copy_training(base.workdir, run.workdir)
        unfinish(run.workdir)
    arguments = [f"--config={config_file}", f"--workdir={run.workdir}", *run.flags]
    run_logged([sys.executable, "-m", "lung_unet.main", *arguments], run.log)
    if not is_finished(run.workdir):
        raise Stopped(f"{run.workdir}: was stopped; run the same command again to go on")


def _copy_training(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies what a training left into a folder that is there, what says whose it is last."""
    remove_leftovers(target.parent, target.name)
    temporary = temporary_name(target)
    trained = ("checkpoints", "metrics.jsonl", "goodput.json", "skipped.json", runs.NAME)
    try:
        for name in trained:
            if (source / name).is_dir():
                shutil.copytree(source / name, temporary / name)
            elif (source / name).exists():
                shutil.copy2(source / name, temporary / name)
        for name in trained:
            if (temporary / name).exists():
                os.replace(temporary / name, target / name)
    except OSError as error:  # shutil.Error too
        raise InputError(f"{target}: {source} cannot be copied there ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    from lung_unet.data.preparation import prepare

    out = pathlib.Path(command.required("out")).resolve()
    ablation: ConfigDict = flags.FLAGS.config
    given = split_flags.given()
    if given is None:
        raise InputError("--patients is missing, or --train, --validation and --test; see --help")
    planned = plan(ablation, out / "data", out, len(given.patients) or None)
    with held(out / "lock", wait=f"{out}: another process prepares it; waiting"):
        check_scans(planned, given.to_json(), out)
        given.combine(out / "luna16")
        settings = settings_of(planned[0].config.data)
        accept = functools.partial(check_runs, planned) if any(map(_made, planned)) else None
        prepare(out / "luna16", out / "data", settings, accept=accept)
    failed = run_all(planned, ablation.base, out, given.names)
    print(_write_table(planned, out, given.names))
    if failed:
        raise InputError(f"{len(failed)} of {len(planned)} runs failed, each is told above")


def run_all(
    planned: list[Run], config_file: str, out: pathlib.Path, tested: Sequence[str] = ()
) -> list[Run]:
    """Does what is not done and that no other process does; returns those that failed. `tested` are
    the names of what the rotations are tested on.

    Raises:
      Stopped: this process, or a run, was told to end.
    """
    bases = {run.key: run for run in planned if run.change == BASE}
    failed = []
    for number, run in enumerate(planned, 1):
        with held(run.workdir.with_suffix(".lock")) as ours:
            done = finished(run)
            if not ours:
                state = "running in another process"
            else:
                state = "done before" if done else f"running, see {run.log}"
            print(f"{number} of {len(planned)}: {run}: {state}")
            if ours and not done:
                try:
                    execute(run, bases[run.key], config_file)
                except Stopped:
                    raise
                except InputError as error:
                    print(f"{run}: failed: {error}")
                    failed.append(run)
                try:
                    _write_table(planned, out, tested)
                except InputError as error:  # the last table says it again
                    print(f"no table: {error}")
    return failed


def _write_table(planned: list[Run], out: pathlib.Path, tested: Sequence[str]) -> str:
    from lung_unet.evaluation.changes import write_table

    done: dict[str, dict[tuple[int, int], pathlib.Path]] = {}
    for run in filter(finished, planned):
        done.setdefault(run.change, {})[run.key] = run.workdir
    return write_table(done, BASE, out, tested, _unnamed(out / "data"))


def _unnamed(data: pathlib.Path) -> str:
    """A line where it is not known of all scans whose they are, so that nobody could check it."""
    scans = Dataset(data, None, shards=False).scans(ALL)
    unnamed = sum(entry.get("patient") is None for entry in scans)
    if not unnamed:
        return ""
    return (
        f"{unnamed} of the {len(scans)} scans name no patient (patients.csv): that no patient is "
        "in two splits was not checked for them."
    )


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to write to.")
    flags.DEFINE_string("lidc_xml", None, "Folder of LIDC's XML, unless each folder holds its own.")
    split_flags.define()
    command.define_config("configs/ablation.py")
    command.run(main)
