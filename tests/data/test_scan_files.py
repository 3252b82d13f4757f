"""A scan is known by the content of its files; their sizes and times only save reading them."""

import os
import pathlib
import random
import shutil
import time

import pytest

from lung_unet.data import scan_files
from lung_unet.data.scan_files import ScanFiles, Seen, look
from lung_unet.errors import InputError

CLOCK_STEP_S = 0.011  # of a file system's clock, as Linux has it, and a little more


class Folder:
    """A scan's files in a folder, its rows, and what an oracle knows of them."""

    def __init__(self, root: pathlib.Path):
        self.path, self.rows, self.copies = root / "0", [[1.0, 2.0]], 0
        self.path.mkdir(parents=True)
        self.names = {"image": ["a.mhd", "a.raw"], "lungs": ["m.mhd"], "outlines": []}
        for name in ("a.mhd", "a.raw", "m.mhd"):
            (self.path / name).write_bytes(name.encode() * 3)

    @property
    def files(self) -> ScanFiles:
        named = {k: tuple(self.path / n for n in names) for k, names in self.names.items()}
        return ScanFiles(named, self.rows)

    def truth(self):
        """All that decides whether it is the same scan."""
        held = {k: sorted((self.path / n).read_bytes() for n in v) for k, v in self.names.items()}
        return held, [list(row) for row in self.rows]

    def any_file(self, rng: random.Random) -> tuple[str, int, pathlib.Path]:
        kind = rng.choice([kind for kind, names in self.names.items() if names])
        number = rng.randrange(len(self.names[kind]))
        return kind, number, self.path / self.names[kind][number]


def copy(folder: Folder, rng: random.Random) -> None:
    folder.copies += 1
    new = folder.path.with_name(str(folder.copies))
    keep = rng.random() < 0.5  # cp -a, or cp -r
    shutil.copytree(folder.path, new, copy_function=shutil.copy2 if keep else shutil.copy)
    folder.path = new


def move(folder: Folder, rng: random.Random) -> None:
    folder.copies += 1
    folder.path = folder.path.rename(folder.path.with_name(str(folder.copies)))


def touch(folder: Folder, rng: random.Random) -> None:
    os.utime(folder.any_file(rng)[2], ns=(0, rng.randrange(2**60)))


def rename(folder: Folder, rng: random.Random) -> None:
    kind, number, path = folder.any_file(rng)
    name = f"{rng.randrange(10**9)}{path.suffix}"
    path.rename(path.with_name(name))
    folder.names[kind][number] = name


def change_a_byte(folder: Folder, rng: random.Random) -> None:
    """In half of the cases with the same time, as rsync --times has it."""
    path = folder.any_file(rng)[2]
    data, found = bytearray(path.read_bytes()), path.stat()
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    if rng.random() < 0.5:
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def swap(folder: Folder, rng: random.Random) -> None:
    """Two files change their names."""
    a, b = (folder.any_file(rng)[2] for _ in range(2))
    if a != b:
        kept = a.read_bytes(), b.read_bytes()
        b.write_bytes(kept[0]), a.write_bytes(kept[1])


def change_a_row(folder: Folder, rng: random.Random) -> None:
    folder.rows = [[float(rng.randrange(3)), 2.0]]


OPERATIONS = (copy, move, touch, rename, change_a_byte, swap, change_a_row)


@pytest.mark.parametrize(
    ("seeds", "recent_ns", "pause_s"),
    [(range(900), scan_files.RECENT_NS, 0), (range(900, 1000), 0, CLOCK_STEP_S)],
    ids=["at once", "with time between"],
)
def test_what_is_seen_is_what_is_there(tmp_path, monkeypatch, seeds, recent_ns, pause_s):
    """Equal content where, and only where, bytes and rows are equal; whatever was done between.

    At once, files are too new for their times to be trusted; with time between, these are.
    """
    monkeypatch.setattr(scan_files, "RECENT_NS", recent_ns)
    for seed in seeds:
        rng = random.Random(seed)
        folder = Folder(tmp_path / str(seed))
        history = [(folder.truth(), look(folder.files, None))]
        for _ in range(rng.randrange(1, 6)):
            time.sleep(pause_s)
            rng.choice(OPERATIONS)(folder, rng)
            history.append((folder.truth(), look(folder.files, history[-1][1])))
        truth, seen = history[-1]
        for before, known in history:
            assert (known.content == seen.content) == (before == truth), seed
        shutil.rmtree(tmp_path / str(seed))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    monkeypatch.setattr(scan_files, "RECENT_NS", 0)
    return Folder(tmp_path)


def test_files_that_nobody_wrote_to_are_not_read_again(folder, monkeypatch):
    first = look(folder.files, None)
    monkeypatch.setattr(scan_files, "_digest", None)  # what calls it fails
    assert look(folder.files, first) is first
    with pytest.raises(TypeError):
        look(folder.files, Seen(first.content, "another state"))


def test_files_so_new_that_they_may_change_unseen_are_read_again(folder, monkeypatch):
    monkeypatch.setattr(scan_files, "RECENT_NS", 10**12)
    assert look(folder.files, None).state is None


def test_what_is_hidden_is_hidden(folder):
    plain = look(folder.files, None)
    hidden = look(folder.files, None, lambda text: f"hidden {text}")
    assert hidden == Seen(f"hidden {plain.content}", f"hidden {plain.state}")
    assert look(folder.files, hidden, lambda text: f"hidden {text}") is hidden


def test_a_file_that_is_not_there_is_named(folder):
    (folder.path / "a.raw").unlink()
    with pytest.raises(InputError, match=r"a\.raw: cannot be read"):
        folder.files.state()
    with pytest.raises(InputError, match=r"a\.raw: cannot be read"):
        folder.files.content()
