"""Score a trained model, or the mean of several, on a split; gather folds; compare two runs.

    python -m lung_unet.evaluate --workdir=DIR [--split=test] [--data=DIR] [--output=DIR]
                                 [--classifier=DIR]
    python -m lung_unet.evaluate --workdir=A,B,C --output=DIR [--split=test] [--data=DIR]
    python -m lung_unet.evaluate --workdir=DIR --data=NEW --split=all --output=DIR
    python -m lung_unet.evaluate --gather FOLD0 FOLD1 … --output=DIR [--split=test]
    python -m lung_unet.evaluate --compare A B [--split=test] [--json=FILE]

Uses the checkpoint of the best validation Dice, and thresholds chosen on the validation split
(operating_point.json), unless the configuration gives numbers: main's command once more, with
--config.evaluation.threshold=0.3 and the like, stores them and scores anew. Scans that are scored
are kept in evaluation/, so that an interrupted run goes on where it was. Writes to --output, which
is the workdir unless it is given, or of another split than test to a folder of the split's name in
it. A workdir that is being trained in is scored with an --output of its own.

    metrics.json         every metric, with 95 % intervals over resamples of the scans
    scans.csv            nodules.csv: a row each
    candidates.csv       the marks as LUNA16 wants a submission; lung_unet.froc scores them against
                         the files in froc/
    report.html          and its figures, in figures/

Of several workdirs the probabilities are averaged, each network with its own windows, mirrors and
intensities; their spacing, margin and truth must be the same. Runs of one fold (other seeds, other
networks) are scored on its splits. Runs of several folds are scored on new scans: what is a test
scan to one the others were trained on. --data=DIR names a prepared dataset of such scans, for one
run too; its validation split chooses the thresholds, and a scan that a run was trained or
validated on, or another of its patient, is refused.

--split=all is external validation: all scans of --data are scored, whatever their subsets, with the
thresholds that the run chose on its own validation split. Those of several runs are where they were
scored together before: --thresholds=DIR, as of predict.

--gather takes the folders of scored folds, each a run's or an ensemble's, and scores all their
scans together: LUNA16's cross-validation, with the FROC of the union of their marks.
--compare takes two folders that were scored on the same scans: of runs, ensembles, or gathered.

With --classifier, the workdir of a run of configs/classifier3d.py, both stages decide what is a
finding of the mask, and metrics and report also have the FROC of the same marks as both score them;
candidates_second_stage.csv lists these. --output keeps the scores of the segmentation alone.
"""

import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from lung_unet import command
from lung_unet.data.manifest import ALL, SPLITS, Dataset
from lung_unet.errors import InputError
from lung_unet.files import LOCK, held, write_text
from lung_unet.workdir import Run

if TYPE_CHECKING:
    from lung_unet.evaluation.judge import SecondStage

USES = {  # of the flags, beside --split
    "compare": ("json",),
    "gather": ("output",),
    "workdir": ("data", "output", "classifier", "thresholds"),
}


def evaluate(
    runs: Sequence[Run],
    dataset: Dataset,
    split: str,
    output: pathlib.Path,
    second: "SecondStage | None" = None,
    thresholds: pathlib.Path | None = None,
) -> dict:
    """Scores the best checkpoint of a run, or the mean of several, on a split of a dataset, also
    with a second stage if one is given.

    The split "all" is an external validation: its thresholds are those that were chosen in the
    folder `thresholds`, by default the workdir of a single run. Writes to the output folder as
    `evaluate_split` does, and returns what metrics.json there holds.
    """
    from lung_unet.evaluation.resume import member
    from lung_unet.evaluation.split import evaluate_split
    from lung_unet.external import external_validation
    from lung_unet.restore import restore_runs

    predictor, steps = restore_runs(runs)
    members = [member(run, step) for run, step in zip(runs, steps, strict=True)]
    external = external_validation(runs, steps, dataset, thresholds) if split == ALL else None
    return evaluate_split(
        predictor, runs[0].config, dataset, split, output, members, second, external=external
    )


def print_metrics(metrics: dict) -> None:
    """Prints the metrics, with their intervals, as a small table."""
    from rich.console import Console
    from rich.table import Table

    def shown(value: float | list | None) -> str:
        if isinstance(value, list):
            return ", ".join(map(shown, value))
        return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    def row(name: str, value: float | list | None, ends: list[float] | None = None) -> None:
        table.add_row(name, shown(value), f"{ends[0]:.3f} – {ends[1]:.3f}" if ends else "")

    steps = str(metrics["step"]).replace("[", "").replace("]", "")
    external = metrics.get("external_validation")
    what = f"external validation on {external['data']}" if external else f"{metrics['split']} split"
    table = Table(
        title=f"{what}, checkpoint of step {steps}",
        caption=f"intervals over resamples of the {metrics['resampled']}",
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    intervals = metrics["intervals"]
    for name, value in metrics.items():
        if isinstance(value, int | float | None) and name != "step":
            row(name, value, intervals.get(name))
    for rate, value in metrics["sensitivity"].items():
        row(f"sensitivity at {rate} false positives a scan", value, intervals["sensitivity"][rate])
    for name, value in metrics["thresholds"].items():
        row(name, value)
    second = metrics.get("second_stage", {})
    for name, value in second.items():
        if isinstance(value, int | float | None):
            row(f"second stage, {name}", value, second["intervals"].get(name))
    Console().print(table)
    for line in external["said"] if external else ():
        print(line)


def _compare(first: str, rest: tuple[str, ...]) -> None:
    from lung_unet.evaluation.compare import compare, print_comparison

    workdirs = [first, *rest] if rest else first.split(",")
    if len(workdirs) > 2:
        raise InputError(f"unexpected argument {workdirs[2]!r}; see --help")
    if len(workdirs) != 2:
        raise InputError("--compare takes two workdirs, as --compare A B; see --help")
    comparison = compare(pathlib.Path(workdirs[0]), pathlib.Path(workdirs[1]), flags.FLAGS.split)
    print_comparison(comparison)
    if path := flags.FLAGS.json:
        try:
            write_text(path, json.dumps(comparison, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); choose another"
            ) from error


def _gather(first: str, rest: tuple[str, ...]) -> None:
    from lung_unet.evaluation.gather import gather

    folders = [first, *rest] if rest else first.split(",")
    output = pathlib.Path(command.required("output"))
    with _alone_in(output):
        _show(gather([pathlib.Path(f) for f in folders], flags.FLAGS.split, output), output)


def _evaluate() -> None:
    command.set_up_jax()
    from lung_unet import workdir as runs
    from lung_unet.members import check_together, dataset_to_score
    from lung_unet.second_stage import open_second_stage

    workdirs = command.workdirs()
    members = [runs.load(workdir) for workdir in workdirs]
    check_together(members)
    dataset = dataset_to_score(members, flags.FLAGS.data, flags.FLAGS.split)
    output = pathlib.Path(flags.FLAGS.output or workdirs[0])
    alone = len(members) == 1 and runs.identity(dataset) == members[0].data
    if not (alone or flags.FLAGS.output):
        raise InputError(
            "--output is missing: where several runs, or one on other data, leave their scores"
        )
    if (output / runs.NAME).exists() and not (alone and output.samefile(workdirs[0])):
        raise InputError(f"{output}: is the workdir of a run; choose another --output")
    classifier = flags.FLAGS.classifier
    second = open_second_stage(pathlib.Path(classifier), members[0]) if classifier else None
    thresholds = flags.FLAGS.thresholds and pathlib.Path(flags.FLAGS.thresholds)
    split = flags.FLAGS.split
    if thresholds and split != ALL:
        raise InputError(
            f"--thresholds: is not used with --split={split}, whose dataset chooses them; leave it "
            "out"
        )
    with _alone_in(output):
        _check_output(output, split)
        _show(evaluate(members, dataset, split, output, second, thresholds), output)


def _check_output(output: pathlib.Path, split: str) -> None:
    """Returns where no external validation would replace a test split's results, nor the reverse.

    Raises:
      InputError: it would.
    """
    path = output / "metrics.json"
    if split not in ("test", ALL) or not path.exists():
        return
    with contextlib.suppress(ValueError, KeyError, TypeError):
        other = json.loads(path.read_text(encoding="utf-8"))["split"]
        if (other == ALL) != (split == ALL):
            raise InputError(f"{path}: is of --split={other}; choose another --output")


@contextlib.contextmanager
def _alone_in(output: pathlib.Path) -> Iterator[None]:
    """No other process trains or evaluates in a folder meanwhile.

    Raises:
      InputError: one does.
    """
    with held(output / LOCK) as ours:
        if not ours:
            raise InputError(
                f"{output}: another process trains or evaluates in it; give another folder as "
                "--output, or wait for its end"
            )
        yield


def _show(metrics: dict, output: pathlib.Path) -> None:
    from lung_unet.evaluation.resume import results_of

    folder = results_of(output, flags.FLAGS.split)
    print_metrics(metrics)
    print(f"metrics  {folder / 'metrics.json'}")
    print(f"report   {folder / 'report.html'}")


def _mode() -> str:
    """--compare, --gather or --workdir: which of them is given.

    Raises:
      InputError: so is a flag that it does not use.
    """
    given = [name for name in USES if flags.FLAGS[name].value is not None]
    mode = given[0] if given else "workdir"
    for name in (*USES, *(name for names in USES.values() for name in names)):
        if flags.FLAGS[name].value is not None and name not in (mode, *USES[mode]):
            raise InputError(f"--{name}: is not used with --{mode}; leave it out")
    return mode


def _main(*rest: str) -> None:
    if flags.FLAGS.split not in (*SPLITS, ALL):
        raise InputError(f"--split={flags.FLAGS.split}: choose one of {', '.join((*SPLITS, ALL))}")
    mode = _mode()
    if mode == "compare":
        return _compare(flags.FLAGS.compare, rest)
    if mode == "gather" and flags.FLAGS.split == ALL:
        raise InputError(
            f"--split={ALL}: is not used with --gather, which takes folds; leave it out"
        )
    if mode == "gather":
        return _gather(flags.FLAGS.gather, rest)
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; see --help")
    return _evaluate()


if __name__ == "__main__":
    flags.DEFINE_multi_string("workdir", None, "Folder of a training run; several as A,B,C.")
    flags.DEFINE_string(
        "split", "test", f"One of {', '.join(SPLITS)}; or {ALL}: external validation on --data."
    )
    flags.DEFINE_string(
        "data",
        None,
        "The prepared dataset, where it has moved since; or one of new scans, in three "
        "subsets or splits, whose validation split chooses the thresholds.",
    )
    flags.DEFINE_string(
        "thresholds", None, f"Folder that several runs were scored in before, for --split={ALL}."
    )
    flags.DEFINE_string("classifier", None, "Folder of the second stage's training run.")
    flags.DEFINE_string("output", None, "Folder to write to, in place of the workdir.")
    flags.DEFINE_string("gather", None, "Folders of scored folds: --gather FOLD0 FOLD1 …")
    flags.DEFINE_string("compare", None, "Folders of two scored runs: --compare A B.")
    flags.DEFINE_string("json", None, "File to write the comparison to.")
    command.run(_main, positionals=sys.maxsize)
