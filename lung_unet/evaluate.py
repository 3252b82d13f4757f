"""Score a trained model on a split of the data that it was trained on, or compare two runs.

    python -m lung_unet.evaluate --workdir=DIR [--split=test] [--data=DIR] [--classifier=DIR]
    python -m lung_unet.evaluate --compare A B [--split=test] [--json=FILE]

Uses the checkpoint of the best validation Dice, and thresholds chosen on the validation split
(operating_point.json). Scans that are scored are kept in evaluation/, so that an interrupted run
goes on where it was. Writes to the workdir:

    metrics.json         every metric, with 95 % intervals over resamples of the scans
    scans.csv            nodules.csv: a row each
    candidates.csv       the marks as LUNA16 wants a submission; lung_unet.froc scores them against
                         the files in froc/
    report.html          and its figures, in figures/

With --classifier, the workdir of a run of configs/classifier3d.py, metrics and report also have the
FROC of the same marks as both stages score them; candidates_second_stage.csv lists them.

--compare takes the workdirs of two runs that were scored on the same split.
"""

import json
import pathlib
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from lung_unet import command
from lung_unet.data.manifest import SPLITS, Dataset
from lung_unet.errors import InputError
from lung_unet.files import write_text

if TYPE_CHECKING:
    from lung_unet.evaluation.judge import SecondStage


def evaluate(
    workdir: pathlib.Path,
    config: ConfigDict,
    dataset: Dataset,
    split: str,
    second: "SecondStage | None" = None,
) -> dict:
    """Scores the workdir's best checkpoint on a split, also with a second stage if one is given,
    and returns what metrics.json holds."""
    from lung_unet.evaluation.split import evaluate_split
    from lung_unet.restore import restore_predictor

    predictor, step = restore_predictor(workdir, config)
    return evaluate_split(predictor, config, dataset, split, workdir, step, second)


def print_metrics(metrics: dict) -> None:
    """Prints the metrics, with their intervals, as a small table."""
    from rich.console import Console
    from rich.table import Table

    def row(name: str, value: float | None, ends: list[float] | None = None) -> None:
        shown = "–" if value is None else f"{value:.3f}" if isinstance(value, float) else value
        table.add_row(name, str(shown), f"{ends[0]:.3f} – {ends[1]:.3f}" if ends else "")

    table = Table(title=f"{metrics['split']} split, checkpoint of step {metrics['step']}")
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


def _compare(first: str, rest: tuple[str, ...]) -> None:
    from lung_unet.evaluation.compare import compare, print_comparison

    workdirs = [first, *rest] if rest else first.split(",")
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


def _main(*rest: str) -> None:
    if flags.FLAGS.split not in SPLITS:
        raise InputError(f"--split={flags.FLAGS.split}: choose one of {', '.join(SPLITS)}")
    if flags.FLAGS.compare is not None:
        return _compare(flags.FLAGS.compare, rest)
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; see --help")
    command.set_up_jax()
    from lung_unet import workdir as runs
    from lung_unet.evaluation.judge import open_second_stage

    workdir = pathlib.Path(command.required("workdir"))
    run = runs.load(workdir)
    dataset = Dataset(flags.FLAGS.data or run.dataset, run.config.data.fold)
    if runs.identity(dataset) != run.data:
        raise InputError(
            f"{dataset.folder}: is not the dataset, or the version of it, that {workdir} was "
            "trained on; its test scans may have been trained on"
        )
    second = None
    if flags.FLAGS.classifier:
        second = open_second_stage(pathlib.Path(flags.FLAGS.classifier), run)
    print_metrics(evaluate(workdir, run.config, dataset, flags.FLAGS.split, second))
    print(f"metrics  {workdir / 'metrics.json'}")
    print(f"report   {workdir / 'report.html'}")
    return None


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("split", "test", f"One of {', '.join(SPLITS)}.")
    flags.DEFINE_string("data", None, "The prepared dataset, where it has moved since.")
    flags.DEFINE_string("classifier", None, "Folder of the second stage's training run.")
    flags.DEFINE_string("compare", None, "Workdirs of two scored runs: --compare A B.")
    flags.DEFINE_string("json", None, "File to write the comparison to.")
    command.run(_main, positionals=1)
