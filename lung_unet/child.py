"""Another command as a process of its own, so that its memory is its own."""

import pathlib
import subprocess
from collections.abc import Sequence

from lung_unet.errors import InputError


def run_logged(arguments: Sequence[str], log: pathlib.Path) -> None:
    """Runs a command; what it prints goes to `log`, which is written anew.

    Raises:
      InputError: it failed; its last line says why.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        code = subprocess.run(arguments, stdout=file, stderr=file).returncode
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        raise InputError(f"{log}: {reason}; put that right and run the same command again")
