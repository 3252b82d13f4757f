"""Goodput: what a run's wall time went into, over all its restarts."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator

from lung_unet.files import write_text

NAME = "goodput.json"
KINDS = ("start", "compilation", "steps", "input", "evaluation", "checkpoints", "lost")


class Goodput:
    """Seconds by kind, kept in the workdir; each second belongs to one kind.

    - start: up to the first compilation, of the first start; of a restart, lost
    - input: waiting for a batch, though the device may still have been busy with the last step
    - checkpoints: while a save blocks the loop; writing goes on beside the steps
    - lost: what was done after the checkpoint that a restart or a rollback began from

    What a killed process did after its last `write` is nowhere, since no clock but the host's
    outlives a process, and that one jumps.
    """

    def __init__(self, workdir: pathlib.Path, since: float | None = None, writes: bool = True):
        """`since`: when the process started, by time.perf_counter.

        Of the processes of a job one `writes`.
        """
        self._path, self._writes = workdir / NAME, writes
        found = self._read()
        self.starts = found["starts"] + 1
        self._seconds: dict[str, float] = found["seconds"]
        self._saved: dict[str, dict[str, float]] = found["saved"]
        self._kind = "start" if self.starts == 1 else "lost"
        self._since = time.perf_counter() if since is None else since

    def _read(self) -> dict:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            kept = [found["seconds"], *found["saved"].values()]
            if isinstance(found["starts"], int) and all(k.keys() == set(KINDS) for k in kept):
                return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {"starts": 0, "seconds": dict.fromkeys(KINDS, 0.0), "saved": {}}

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Counts the time within as `kind`, and then again as what it was before."""
        before = self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, kind: str) -> str:
        """Counts the time from now on as `kind`; returns what it was until now."""
        now = time.perf_counter()
        self._seconds[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    def restored(self, step: int) -> None:
        """Training goes on from `step`: what was done after it was saved is lost."""
        self.switch(self._kind)
        kept = self._saved.get(str(step))
        if kept is None:
            once = ("start", "compilation") if self.starts == 1 else ()  # not done again
            kept = {kind: self._seconds[kind] if kind in once else 0.0 for kind in KINDS}
        lost = sum(self._seconds.values()) - sum(kept.values())
        self._seconds = {**kept, "lost": kept["lost"] + lost}

    def saved(self, step: int) -> None:
        """What was done until now is in the checkpoint of `step`."""
        self.switch(self._kind)
        self._saved[str(step)] = dict(self._seconds)
        self.write()

    def write(self) -> None:
        """Keeps the figures until now; where the disk is full, those from before stay."""
        self.switch(self._kind)
        if not self._writes:
            return
        content = {"starts": self.starts, "seconds": self._seconds, "saved": self._saved}
        with contextlib.suppress(OSError):
            write_text(self._path, json.dumps({**content, "shares": self.shares()}, indent=1))

    def shares(self) -> dict[str, float]:
        """The share of wall time of each kind; they add up to 1."""
        total = sum(self._seconds.values())
        return {kind: s / total if total else 0.0 for kind, s in self._seconds.items()}

    def summary(self) -> str:
        """The shares in a line."""
        self.switch(self._kind)
        shares = ", ".join(f"{kind} {100 * s:.1f}%" for kind, s in self.shares().items())
        again = f", {self.starts - 1} restarts" if self.starts > 1 else ""
        return f"{sum(self._seconds.values()):.0f} s{again}: {shares}"
