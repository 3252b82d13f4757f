"""A command in a process of its own."""

import sys

import pytest

from lung_unet.child import run_logged
from lung_unet.errors import InputError


def test_what_a_command_prints_is_kept_and_its_last_line_says_why_it_failed(tmp_path):
    log = tmp_path / "folder" / "run.log"
    run_logged([sys.executable, "-c", "print('done')"], log)
    assert log.read_text() == "done\n"
    script = "import sys; print('some'); sys.exit('error: scan 7 is broken')"
    with pytest.raises(InputError, match=r"run\.log: scan 7 is broken; put that right"):
        run_logged([sys.executable, "-c", script], log)
    with pytest.raises(InputError, match="exit code 3"):
        run_logged([sys.executable, "-c", "import os; os._exit(3)"], log)
