"""Another command as a process of its own, so that its memory is its own."""

import pathlib
import signal
import subprocess
from collections.abc import Sequence

from lung_unet.command import INTERRUPTED
from lung_unet.errors import InputError, Stopped

TOLD_TO_END = (INTERRUPTED, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)  # exit codes


def run_logged(arguments: Sequence[str], log: pathlib.Path) -> None:
    """Runs a command; what it prints goes to `log`, which is written anew.

    SIGTERM is passed on to it, and its end is waited for.

    Raises:
      InputError: it failed; its last line says why. `Stopped` where it, or this, was told to end.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    child: subprocess.Popen | None = None
    stopped = False

    def stop(*_) -> None:
        nonlocal stopped
        stopped = True
        if child:
            child.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with open(log, "w", encoding="utf-8") as file:
            child = subprocess.Popen(arguments, stdout=file, stderr=file)
            if stopped:
                child.terminate()
            code = child.wait()
    except BaseException:
        if child:
            child.kill()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped or code in TOLD_TO_END:
        raise Stopped(f"{log}: was stopped; run the same command again")
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", out of memory perhaps" if code == -signal.SIGKILL else ""
        raise InputError(f"{log}: was ended by {name}{memory}; run the same command again")
    if code:
        told = log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in told.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        raise InputError(f"{log}: {reason}; put that right and run the same command again")
