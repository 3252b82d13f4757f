"""Whatever is wrong with a command, the user sees one line, and the exit code tells."""

import json
import os
import pathlib
import subprocess
import sys
from subprocess import PIPE

import pytest

from lung_unet import command
from lung_unet.command import frozen
from lung_unet.errors import InputError, out_of_memory

ROOT = pathlib.Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["--config.data.nonsense=1"], "--config has no field 'nonsense'"),
        (["--config.data.spacingmm=1"], 'Did you mean "spacing_mm"'),
        (["--config.data.spacing_mm=wide"], "--config.data.spacing_mm=wide: could not convert"),
        (["--config=configs/unet3d.py:giant"], "unknown variant 'giant' of configs/"),
        (["--config=configs/none.py"], "No such file or directory: 'configs/none.py'"),
        (["--nonsense=1"], "Unknown command line flag 'nonsense'"),
        (["--workers=0"], "--workers=0"),
        (["nonsense"], "unexpected argument 'nonsense'"),
        (["--luna16=data"], "--out is missing"),
        (["--luna16=missing", "--out=new"], "missing: no such folder"),
        (["--luna16=.", "--out=new", "--config.data.block=(1,2)"], "config.data.block needs three"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_line_and_no_traceback(arguments, saying):
    done = run("-m", "lung_unet.prepare", *arguments)
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert saying in line
    assert "Traceback" not in line


@pytest.mark.parametrize(
    ("raised", "lines", "code"),
    [
        ("InputError('scan.mhd: broken')", ["error: scan.mhd: broken"], 1),
        ("Stopped('run: was stopped')", ["run: was stopped"], 130),
        (
            "KeyboardInterrupt",
            ["interrupted; run the same command again, what was saved is kept"],
            130,
        ),
    ],
)
def test_what_main_raises(raised, lines, code):
    done = run(
        "-c",
        "from lung_unet import command\nfrom lung_unet.errors import *\n"
        f"def main():\n    print('begun')\n    raise {raised}\ncommand.run(main)",
    )
    assert done.returncode == code
    assert done.stdout.splitlines() == ["begun"]
    assert done.stderr.splitlines() == lines


def test_libraries_are_silent_but_for_a_gpu_that_jax_leaves_out():
    code = (
        "import logging\nfrom lung_unet import command\ndef main():\n"
        "    import jax\n"
        "    logging.getLogger('orbax').error('chatter')\n"
        "    logging.getLogger('jax._src.xla_bridge').warning('Falling back to cpu.')\n"
        "command.run(main)"
    )
    done = run("-c", code)
    assert done.stderr.count("Falling back to cpu.") == 1 and "chatter" not in done.stderr


def test_too_little_memory_on_the_device_is_one_line():
    code = "import jax.numpy as jnp\ncommand.run(lambda: jnp.zeros(2**52).block_until_ready())"
    done = run("-c", f"from lung_unet import command\n{code}")
    assert done.returncode != 0
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: out of memory on the device (")
    assert "config.train.accumulate" in line
    assert "Traceback" not in done.stderr
    told = out_of_memory(RuntimeError("INTERNAL: RESOURCE_EXHAUSTED: "))
    assert told and told.startswith("out of memory")


def test_sigterm_leaves_nothing_half_written(tmp_path):
    script = """
import os, pathlib, signal, sys
from lung_unet.command import run
from lung_unet.files import atomic_path
def main():
    with atomic_path(sys.argv[0]) as path:
        path.touch()
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
sys.argv[:] = [sys.argv[1]]
run(main)
"""
    result = run("-c", script, str(tmp_path / "whole"))
    assert result.returncode == 130 and list(tmp_path.iterdir()) == []
    assert result.stderr.splitlines()[-1].startswith("interrupted; run the same command again")


def test_a_bug_keeps_its_traceback():
    done = run("-c", "from lung_unet import command\ncommand.run(lambda: 1 / 0)")
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr


def test_a_pipe_that_is_not_the_output_keeps_its_traceback():
    code = "def main():\n    print('begun')\n    raise BrokenPipeError(32, 'to a worker')"
    done = run("-c", f"from lung_unet import command\n{code}\ncommand.run(main)")
    assert done.returncode != 0 and done.stdout == "begun\n"
    assert "to a worker" in done.stderr


def test_output_that_nobody_reads_on_ends_the_command_in_silence():
    code = "from lung_unet import command\ncommand.run(lambda: [print(n) for n in range(9**9)])"
    run = [sys.executable, "-c", code]
    with subprocess.Popen(run, cwd=ROOT, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_frozen_configuration_is_json(config):
    config.model.strides = ((1, 2, 2),)
    plain = frozen(config)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["data"]["patch"] == [16, 16, 16]
    assert plain["model"]["strides"] == [[1, 2, 2]]
    assert plain["train"]["steps"] == 4


def test_workdirs_are_given_again_or_after_commas(tmp_path, monkeypatch):
    named = tmp_path / "one, with a comma"
    named.mkdir()
    monkeypatch.setattr(command, "required", lambda name: ["a,b", "c", str(named)])
    assert command.workdirs() == [*map(pathlib.Path, "abc"), named]
    monkeypatch.setattr(command, "required", lambda name: ["a,b", "./a"])
    with pytest.raises(InputError, match="--workdir=a: is given twice"):
        command.workdirs()


# --- Processes without a home, or without a place for temporary files -----------------------------

NO_PASSWD_ENTRY = """
import pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""


def cache_of_a_process(**environment: str) -> tuple[str, str]:
    """(the compilation cache, stderr) of a user without a passwd entry."""
    names = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    program = f"{NO_PASSWD_ENTRY}\nfrom lung_unet import command\ncommand.set_up_jax()\n"
    program += "import jax\nprint(jax.config.jax_compilation_cache_dir)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={k: v for k, v in os.environ.items() if k not in names} | environment,
        cwd=ROOT, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("home", [{}, {"HOME": "/proc/nobody"}, {"XDG_CACHE_HOME": "/proc/x"}])
def test_without_a_home_nothing_is_cached_and_a_line_says_so(home):
    cache, told = cache_of_a_process(**home)
    assert cache == "None"
    assert "JAX_COMPILATION_CACHE_DIR" in told and told.count("\n") == 1


def test_what_is_compiled_is_kept_where_there_is_a_home(tmp_path):
    for name, below in (("HOME", ".cache/"), ("XDG_CACHE_HOME", "")):
        cache, told = cache_of_a_process(**{name: str(tmp_path / name)})
        assert (cache, told) == (f"{tmp_path}/{name}/{below}lung_unet/jax", "")


@pytest.mark.parametrize("shared_memory", [True, False])
def test_without_a_temporary_folder(monkeypatch, shared_memory):
    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(command.tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(command.tempfile, "tempdir", None)
    monkeypatch.setattr(command.os, "access", lambda *_: shared_memory)
    monkeypatch.delenv("TMPDIR", raising=False)
    if not shared_memory:
        with pytest.raises(InputError, match="TMPDIR"):
            command._find_temporary_folder()
        return
    command._find_temporary_folder()
    assert command.tempfile.tempdir == os.environ["TMPDIR"] == "/dev/shm"


# --- How a command ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["KeyboardInterrupt", "Stopped('stopped')"])
def test_a_command_that_is_stopped_ends_without_python_s_own_end(stop):
    """In which threads of XLA that still compile make it die of a signal."""
    code = (
        "import atexit, os, signal\nfrom lung_unet import command\nfrom lung_unet.errors import *\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGSEGV)\n"
        f"def main():\n    print('begun', end='')\n    raise {stop}\ncommand.run(main)"
    )
    done = run("-c", code)
    assert done.returncode == command.INTERRUPTED
    assert done.stdout == "begun" and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("{}['my key']", "KeyError"), ("undefined", "NameError"),
        ("assert False", "AssertionError"), ("config.nofield", "AttributeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_what_a_configuration_file_raises_is_told_with_its_place(tmp_path, statement, error):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import unet3d\ndef get_config():\n    config = unet3d.get_config('smoke')\n"
        f"    {statement}\n    return config\n"
    )
    done = run("-m", "lung_unet.prepare", "--luna16=x", "--out=y", f"--config={path}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{path}, line 4: {error}" in done.stderr and "no field" not in done.stderr
    with pytest.raises(InputError, match=f"mine.py, line 4: {error}"):
        command.read_config(str(path), "base")
