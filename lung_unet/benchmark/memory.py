"""How much memory this process holds."""

import pathlib


def rss_mb() -> float:
    """Resident memory of this process now."""
    return _status("VmRSS")


def peak_rss_mb() -> float:
    """The most resident memory that this process has had."""
    return _status("VmHWM")


def _status(field: str) -> float:
    # Not getrusage: its maximum survives exec, and so counts what the parent process had.
    lines = pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6
