"""A command in a process of its own."""

import os
import signal
import sys

import pytest

from lung_unet.child import Stopped, run_logged
from lung_unet.errors import InputError


def test_what_a_command_prints_is_kept_and_its_last_line_says_why_it_failed(tmp_path):
    log = tmp_path / "folder" / "run.log"
    run_logged([sys.executable, "-c", "print('done')"], log)
    assert log.read_text(encoding="utf-8") == "done\n"
    script = "import sys; print('some'); sys.exit('error: scan 7 is broken')"
    with pytest.raises(InputError, match=r"run\.log: scan 7 is broken; put that right"):
        run_logged([sys.executable, "-c", script], log)
    with pytest.raises(InputError, match="exit code 3"):
        run_logged([sys.executable, "-c", "import os; os._exit(3)"], log)


def test_a_signal_that_ends_a_command_is_told(tmp_path):
    def run(script):
        run_logged([sys.executable, "-c", f"import os, signal; {script}"], tmp_path / "run.log")

    with pytest.raises(InputError, match="was ended by SIGKILL, out of memory perhaps") as killed:
        run("os.kill(os.getpid(), signal.SIGKILL)")
    assert not isinstance(killed.value, Stopped)  # it would be killed again
    for script in ("os.kill(os.getpid(), signal.SIGTERM)", "os._exit(130)"):
        with pytest.raises(Stopped, match="was stopped; run the same command again"):
            run(script)


def test_sigterm_ends_the_command_too(tmp_path):
    log, before = tmp_path / "run.log", signal.getsignal(signal.SIGTERM)
    terminate = f"import os, signal; os.kill({os.getpid()}, signal.SIGTERM)"
    script = f"{terminate}; import time; time.sleep(60); print('outlived')"
    with pytest.raises(Stopped, match="was stopped; run the same command again"):
        run_logged([sys.executable, "-c", script], log)
    assert log.read_text(encoding="utf-8") == ""
    assert signal.getsignal(signal.SIGTERM) is before
