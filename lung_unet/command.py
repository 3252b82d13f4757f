"""What every command shares: flags, the configuration, and errors in one line."""

import contextlib
import errno
import io
import logging as standard_logging
import os
import pathlib
import runpy
import select
import signal
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lung_unet.allocator import keep_freed_memory
from lung_unet.errors import InputError, Stopped, out_of_memory

NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
INTERRUPTED = 130  # exit code, as a shell's for ctrl-C

flags.disclaim_key_flags()  # --config is the command's flag, so that its --help lists it


def run(main: Callable[..., None], positionals: int = 0) -> None:
    """Parses the flags and runs `main`; a user's mistake becomes one line and exit code 1.

    `main` is called with the arguments that are no flags, of which so many are allowed.
    """

    def guarded(argv: list[str]) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Line by line: a log file shows progress too. Escapes: a locale without an en dash, or
            # a file name that is no UTF-8, must not end a command.
            sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
        # As ctrl-C, so that nothing half written is left behind.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        logging.set_verbosity(logging.FATAL)  # the libraries' chatter; what matters they raise
        backends = standard_logging.getLogger("jax._src.xla_bridge")
        backends.setLevel("WARNING")  # that there is a GPU, which JAX will not use
        standard_logging.getLogger("matplotlib").setLevel("ERROR")  # that its cache is temporary
        try:
            _find_temporary_folder()
            _, *rest = argv
            if len(rest) > positionals:
                raise InputError(f"unexpected argument {rest[positionals]!r}; see --help")
            main(*rest)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            _leave(INTERRUPTED)
        except InputError as error:
            sys.exit(f"error: {error}")
        except RuntimeError as error:  # XLA's; JAX is not imported here
            told = out_of_memory(error)
            if told is None:
                raise
            sys.exit(f"error: {told}")
        except BrokenPipeError:
            if not _nobody_reads(sys.stdout.fileno()):
                raise  # another pipe's
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            if error.errno not in NO_PLACE:
                raise
            where = error.filename2 or error.filename or "a file"
            denied = error.errno in (errno.EACCES, errno.EPERM)
            sys.exit(
                f"error: {where}: cannot be {'read or ' * denied}written ({error.strerror}); put "
                "that right and run the same command again, what was saved is kept"
            )
        except KeyboardInterrupt:
            told = "interrupted; run the same command again, what was saved is kept"
            print(told, file=sys.stderr)
            _leave(INTERRUPTED)

    app.run(guarded, flags_parser=_parse)


def _leave(code: int) -> NoReturn:
    """Ends the process as it is. What was begun is undone by now; as Python itself ends, it meets
    threads of XLA that still compile, or write what they compiled, and dies of a signal."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def _nobody_reads(pipe: int) -> bool:
    """Whether the other end of what is written to is closed, as by `| head`."""
    poll = select.poll()
    poll.register(pipe, 0)  # errors alone
    return bool(poll.poll(0))


def _parse(argv: list[str]) -> list[str]:
    with _told():
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS["config"].value, "keys", None)  # raises if there is no such file
        return rest


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns what absl and ml_collections raise for a wrong flag into one line and exit code 1, and
    so whatever a configuration file raises."""
    try:
        try:
            yield
        except (ValueError, flags.Error):
            raise  # a value that a configuration refuses, in its own words
        except Exception as error:
            if told := _raised_by_config(error):
                sys.exit(f"error: --config: {told}")
            raise
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: --config has no field {_reason(error)}; see configs/")
    except flags.Error as error:
        sys.exit(f"error: {_reason(error)}; see --help")
    except (ValueError, TypeError, OSError, ImportError, SyntaxError) as error:
        sys.exit(f"error: --config: {_reason(error)}; see configs/")


def _raised_by_config(error: BaseException | None) -> str | None:
    """Where in a configuration file, or in what it imports, an error came up, and which; None where
    it is of a flag."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    ours = str(pathlib.Path(__file__).parent)
    others = [pathlib.Path(folder).resolve() for folder in (*libraries, ours)]
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            path = pathlib.Path(frame.filename)
            if path.is_file() and not any(path.resolve().is_relative_to(o) for o in others):
                said = " ".join(str(error).split())
                return f"{path}, line {frame.lineno}: {type(error).__name__}: {said}"
        error = error.__cause__ or error.__context__
    return None


def _reason(error: Exception) -> str:
    """The message in one line, without the exceptions and tracebacks that libraries put into it."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
    if "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    elif isinstance(error, OSError):
        text = text.splitlines()[-1].partition("] ")[2] or text
    return " ".join(text.split())


def define_config(default: str | None = None) -> flags.FlagHolder:
    """The --config flag: a file of configs/, with a variant after a colon."""
    with _told():  # the overrides of a default are read here
        return config_flags.DEFINE_config_file(
            "config", default, "Configuration file, as configs/unet3d.py:smoke.", lock_config=True
        )


def read_config(given: str, given_as: str) -> ConfigDict:
    """The configuration of a file of configs/, with a variant after a colon.

    Raises:
      InputError: there is none; `given_as` is what it was given as.
    """
    path, _, variant = given.partition(":")
    try:
        return runpy.run_path(path)["get_config"](*[variant] * bool(variant)).lock()
    except Exception as error:  # whatever the file does
        told = _raised_by_config(error) or error
        raise InputError(f"{given_as} = {given}: cannot be read ({told})") from error


def stop_preempted() -> NoReturn:
    """Ends the process with code 0, from any thread: a cluster takes the machine back."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        print("preempted: nothing to save; run the same command again to go on", flush=True)
    os._exit(0)


def required(name: str) -> str:
    """The value of a flag that a command needs.

    Raises:
      InputError: it was not given.
    """
    value = flags.FLAGS[name].value
    if value is None or value == "" or value == []:
        raise InputError(f"--{name} is missing; see --help")
    return value


def workdirs() -> list[pathlib.Path]:
    """The folders of --workdir, which may be given several times or hold several after commas.

    Raises:
      InputError: there is none, or one is given twice.
    """
    given = [[text] if os.path.isdir(text) else text.split(",") for text in required("workdir")]
    paths = [pathlib.Path(text) for texts in given for text in texts]
    for path in paths:
        if sum(path.resolve() == other.resolve() for other in paths) > 1:
            raise InputError(f"--workdir={path}: is given twice; give each run once")
    return paths


def set_up_jax() -> None:
    """Keeps compiled programs on disk, so that a restart compiles nothing again, and freed memory.

    Call it before the first computation.
    """
    import jax

    keep_freed_memory()

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        if cache := cache_folder():
            jax.config.update("jax_compilation_cache_dir", str(cache / "jax"))
        else:
            print(
                "compiled programs are not kept, as there is no home folder to write to; set "
                "JAX_COMPILATION_CACHE_DIR to a folder, and the next start is faster",
                file=sys.stderr,
            )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cache_folder() -> pathlib.Path | None:
    """The user's folder for what lung_unet can make again.

    None where it cannot be written, or where the user has no home: a container that runs as a
    user without a passwd entry.
    """
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(caches, "lung_unet")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: pathlib finds no home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _find_temporary_folder() -> None:
    """Makes sure that there is one: libraries end with a traceback where there is none.

    Raises:
      InputError: no usual place can be written.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        memory = "/dev/shm"  # which a container with read-only folders has
        if not os.access(memory, os.W_OK | os.X_OK):
            raise InputError(
                "no folder for temporary files can be written; set TMPDIR to one"
            ) from None
        os.environ["TMPDIR"] = tempfile.tempdir = memory


def frozen(config: ConfigDict) -> dict:
    """The configuration as plain JSON-able data."""

    def plain(value: Any) -> Any:
        if isinstance(value, ConfigDict):
            return frozen(value)
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return {key: plain(value) for key, value in config.items()}


def flattened(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Values of a nested dict by their keys, joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= flattened(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
