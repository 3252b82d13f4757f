"""Where a run's numbers go: metrics.jsonl, TensorBoard, and a progress bar."""

import contextlib
import json
import math
import os
import pathlib
import socket
import struct
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from lung_unet.files import write_text

JSONL = "metrics.jsonl"
NOWHERE = pathlib.Path(os.devnull)
BUFFER = 1 << 24  # bytes of rows that wait while the disk is full


class Writer:
    """Logs rows of numbers by step; use as a context manager.

    A resumed run takes back the rows after `step`, so that metrics.jsonl holds each step once.
    Where the disk is full, rows wait in memory. Of the processes of a job one writes; the others,
    made with `writes` false, know the same.
    """

    def __init__(self, workdir: pathlib.Path, step: int, steps: int, writes: bool = True):
        path = workdir / JSONL
        rows = [row for row in read_rows(path) if row["step"] <= step]
        self._written = {(row["step"], name) for row in rows for name in row}
        if writes:
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = _Growing(path if writes else NOWHERE)
        self._board = _Board(_events(workdir / "tensorboard") if writes else NOWHERE, step + 1)
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
        self._file.append((json.dumps({"step": step, **finite}) + "\n").encode())
        self._written |= {(step, name) for name in values}
        self.draw(step, values)
        if text:
            self._bar.console.print(f"step {step:>6}  {text}", highlight=False)

    def draw(self, step: int, values: dict[str, float]) -> None:
        """Writes to TensorBoard alone."""
        self._board.add(step, values)

    def holds(self, step: int, name: str) -> bool:
        """Whether a value of that name was written for a step."""
        return (step, name) in self._written

    def progress(self, step: int, text: str = "") -> None:
        self._bar.update(self._task, completed=step, description=text)


class _Board:
    """A TensorBoard event file, each event written at once.

    tensorboardX's own writer has a queue and a thread; a full disk ends the thread, and then the
    queue blocks for ever.
    """

    def __init__(self, path: pathlib.Path, first: int):
        """Takes back what earlier files hold from step `first` on."""
        self._file = _Growing(path)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._add(Event(step=step, summary=scalar(name, value)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.append(length + crcs[0] + data + crcs[1])

    def close(self) -> None:
        self._file.close()


def _events(folder: pathlib.Path) -> pathlib.Path:
    """A new event file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))  # readers sort by name, and the host's clock may jump
    return folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}"


class _Growing:
    """A file to append to; what a full disk has no place for waits in memory."""

    def __init__(self, path: pathlib.Path):
        self._file = open(path, "ab", buffering=BUFFER)  # noqa: SIM115 (it has a close)
        self._full = False

    def append(self, data: bytes) -> None:
        """Writes at once if it can, and says so where it cannot."""
        self._file.write(data)
        try:
            self._file.flush()
            self._full = False
        except OSError as error:
            if not self._full:
                print(f"{self._file.name}: {error.strerror}; trying again")
            self._full = True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


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
