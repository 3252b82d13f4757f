"""Another command as a process of its own, so that its memory is its own."""

import pathlib
import signal
import subprocess
from collections.abc import Sequence

from lung_unet.errors import InputError


def run_logged(arguments: Sequence[str], log: pathlib.Path) -> None:
    """Runs a command; what it prints goes to `log`, which is written anew.

    It does not outlive this process: SIGTERM is passed on to it, and waits for its end.

    Raises:
      InputError: it failed, and its last line says why, or a signal ended it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file, subprocess.Popen(arguments, stdout=file, stderr=file) as child:
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    if code < 0:
        raise InputError(
            f"{log}: was ended by {signal.Signals(-code).name}; run the same command again"
        )
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        raise InputError(f"{log}: {reason}; put that right and run the same command again")
