"""Files that are whole or not there, and folders of which nothing is overlooked."""

import contextlib
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterator

from lung_unet.errors import InputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` that takes its name if the block ends without error.

    The temporary name keeps the suffixes (writers choose a format by them) and starts with a dot,
    by which `remove_leftovers` knows what an interrupted run left.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
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
) -> list[pathlib.Path]:
    """A folder and all below it that hold files, sorted, linked ones too, each once.

    `note` is told of what cannot be read; `but` is left out, with what is below it.
    """
    found = []
    seen = {but.resolve()} if but else set()
    for path, below, files in os.walk(root, onerror=note, followlinks=True):
        folder = pathlib.Path(path)
        if folder.resolve() in seen:  # a link to where it was already, or to above itself
            below.clear()
            continue
        seen.add(folder.resolve())
        below.sort(key=lambda name: (os.path.islink(os.path.join(path, name)), name))
        if files:
            found.append(folder)
    return sorted(found)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what processes that were killed within `atomic_path` left in a folder."""
    for path in folder.iterdir():
        if re.match(r"\.[0-9a-f]{8}\.", path.name):
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
