"""Where a run's numbers go: metrics.jsonl, TensorBoard, and a progress bar."""

import json
import math
import pathlib

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from lung_unet.files import write_text

JSONL = "metrics.jsonl"


class Writer:
    """Logs rows of numbers by step; use as a context manager.

    A resumed run takes back the rows after `step`, so that metrics.jsonl holds each step once.
    """

    def __init__(self, workdir: pathlib.Path, step: int, steps: int):
        path = workdir / JSONL
        rows = [row for row in read_rows(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed on exit)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("", total=steps, completed=step)

    def __enter__(self) -> "Writer":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()
        self._file.close()
        self._board.close()

    def write(self, step: int, values: dict[str, float], text: str | None = None) -> None:
        """Writes a row; `text` is what the console shows of it."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if text:
            self._bar.console.print(f"step {step:>6}  {text}", highlight=False)

    def progress(self, step: int, text: str = "") -> None:
        self._bar.update(self._task, completed=step, description=text)


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics.jsonl, less a last line that was cut off."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows
