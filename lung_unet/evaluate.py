"""Score a trained model on a split of the data that it was trained on.

    python -m lung_unet.evaluate --workdir=DIR [--split=test] [--data=DIR]

Uses the checkpoint of the best validation Dice; writes metrics.json, scans.csv, nodules.csv and
report.html to the workdir.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from lung_unet import command
from lung_unet.data.manifest import SPLITS, Dataset
from lung_unet.errors import InputError


def evaluate(workdir: pathlib.Path, config: ConfigDict, dataset: Dataset, split: str) -> dict:
    """Scores the workdir's best checkpoint on a split and returns what metrics.json holds."""
    from lung_unet.evaluation.scoring import evaluate_split
    from lung_unet.restore import restore_predictor

    predictor, step = restore_predictor(workdir, config)
    return evaluate_split(predictor, config, dataset, split, workdir, step)


def print_metrics(metrics: dict) -> None:
    """Prints the metrics as a small table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{metrics['split']} split, checkpoint of step {metrics['step']}")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        if name not in ("split", "step"):
            shown = "–" if value is None else f"{value:.3f}" if isinstance(value, float) else value
            table.add_row(name, str(shown))
    Console().print(table)


def _main() -> None:
    command.set_up_jax()
    from lung_unet import workdir as runs

    if flags.FLAGS.split not in SPLITS:
        raise InputError(f"--split={flags.FLAGS.split}: choose one of {', '.join(SPLITS)}")
    workdir = pathlib.Path(command.required("workdir"))
    run = runs.load(workdir)
    dataset = Dataset(flags.FLAGS.data or run.dataset, run.config.data.fold)
    if runs.identity(dataset) != run.data:
        raise InputError(
            f"{dataset.folder}: is not the dataset, or the version of it, that {workdir} was "
            "trained on; its test scans may have been trained on"
        )
    print_metrics(evaluate(workdir, run.config, dataset, flags.FLAGS.split))
    print(f"metrics  {workdir / 'metrics.json'}")
    print(f"report   {workdir / 'report.html'}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("split", "test", f"One of {', '.join(SPLITS)}.")
    flags.DEFINE_string("data", None, "The prepared dataset, where it has moved since.")
    command.run(_main)
