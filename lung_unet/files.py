"""Files that are whole or not there, folders of which nothing is overlooked or deleted unasked."""

import contextlib
import errno
import fcntl
import math
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator

from lung_unet.errors import InputError

OURS = ".made_by_lung_unet"  # marks a folder that may be deleted to be made anew
# flock's, of file systems that have no locks: there nothing is held
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
POLL_S = 0.5
LOCK = ".lock"
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.(.+)")
LEASE_S = 120  # how long NFS may keep the lock of a machine that died, and a little more


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """One beside `path` that nothing has, by which `remove_leftovers` knows it."""
    return path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` that takes its name if the block ends without error.

    The temporary name keeps the suffixes: writers choose a format by them.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder, sorted, but for hidden ones (macOS has `._NAME` beside each NAME).

    Raises:
      InputError: it cannot be read; what is not seen would be left out in silence.
    """
    try:
        return sorted(p for p in folder.iterdir() if not (p.is_dir() or p.name.startswith(".")))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); put that right") from error


def folders_below(
    root: pathlib.Path,
    note: Callable[[OSError], None] | None = None,
    but: pathlib.Path | None = None,
) -> Iterator[pathlib.Path]:
    """A folder and all below it that hold files, linked ones too, each once.

    `note` is told of what cannot be read; `but` is left out, with what is below it.
    """
    seen = {but.resolve()} if but else set()
    for path, below, files in os.walk(root, onerror=note, followlinks=True):
        folder = pathlib.Path(path)
        if folder.resolve() in seen:  # a link to where it was already, or to above itself
            below.clear()
            continue
        seen.add(folder.resolve())
        below.sort(key=lambda name: (os.path.islink(os.path.join(path, name)), name))
        if files:
            yield folder


def make_anew(folder: pathlib.Path) -> None:
    """Makes a folder, empty but for its mark, in the place of one that an earlier call made.

    Raises:
      InputError: there is one that no call of this made, and it is not empty; or it cannot be made.
    """
    folder = folder.resolve()  # through a link to another disk
    if folder.exists() and any(folder.iterdir()) and not (folder / OURS).exists():
        raise InputError(f"{folder}: is there already, and not of this command; give another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            os.replace(folder, temporary_name(folder))  # in one step
        remove_leftovers(folder.parent, folder.name)
        folder.mkdir()
        (folder / OURS).touch()
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); put that right, or give another --out"
        ) from error


@contextlib.contextmanager
def held(path: pathlib.Path, wait: str = "", seconds: float = math.inf) -> Iterator[bool]:
    """Holds the lock of a file, which is made, against other processes; False if another does.

    With `wait`, says that and waits for it, for so long. A process that dies lets go.

    Raises:
      InputError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        ours, until = _locked(descriptor), time.monotonic() + seconds
        if wait and not ours:
            print(wait, flush=True)
            while not (ours := _locked(descriptor)) and time.monotonic() < until:
                time.sleep(POLL_S)
        yield ours
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


@contextlib.contextmanager
def alone_in(folder: pathlib.Path, busy: str, remedy: str) -> Iterator[None]:
    """No other process that asks for it works in a folder meanwhile; one that does is waited for,
    as long as it may be of a machine that died.

    Raises:
      InputError: it works on; `busy` says so, `remedy` what to do.
    """
    waiting = f"{folder}: {busy}; waiting for its end for {LEASE_S} s"
    with held(folder / LOCK, waiting, LEASE_S) as ours:
        if not ours:
            raise InputError(f"{folder}: {busy}; {remedy}")
        yield


def remove_leftovers(folder: pathlib.Path, name: str | None = None) -> None:
    """Removes what processes that were killed left in a folder under a temporary name, or under
    one for `name` alone."""
    for path in folder.iterdir():
        left = TEMPORARY.fullmatch(path.name)
        if left and name in (None, left[1]):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
