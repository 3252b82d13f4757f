"""A file is whole or not there."""

import errno
import pathlib
import subprocess
import sys
from subprocess import PIPE

import pytest

from lung_unet.errors import InputError
from lung_unet.files import (
    OURS,
    atomic_path,
    files_in,
    folders_below,
    held,
    make_anew,
    remove_leftovers,
    temporary_name,
    write_text,
)

ROOT = pathlib.Path(__file__).parent.parent


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_finished_file_takes_its_name(tmp_path):
    path = tmp_path / "new" / "folder" / "a.nii.gz"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"voxels")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename, not a copy
        assert temporary.name.endswith(".a.nii.gz")
        assert temporary.name.startswith(".")
    assert path.read_bytes() == b"voxels"
    assert names(path.parent) == ["a.nii.gz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.json"]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_path(path) as one, atomic_path(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text(encoding="utf-8") == "one"  # the outer block ends last
    assert names(tmp_path) == ["a.txt"]


def test_text_is_utf_8(tmp_path):
    write_text(tmp_path / "a.txt", "1 mm³")
    assert (tmp_path / "a.txt").read_bytes() == "1 mm³".encode()


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    kept = ["1.2.scan", "0123abcd.1.2.scan", ".0123abcd", ".hidden", ".gitignore.json"]
    for name in [*kept, ".0123abcd.1.2.scan", ".89abcdef.a.json"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert set(names(tmp_path)) == set(kept)


def test_hidden_files_and_folders_are_no_files(tmp_path):
    for name in ("b.mhd", "a.mhd", "._a.mhd"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert [p.name for p in files_in(tmp_path)] == ["a.mhd", "b.mhd"]


def test_what_is_not_there_behind_a_link_is_not_passed_over(tmp_path):
    """As of git-annex: reading it fails, and tells."""
    (tmp_path / "a.mhd").symlink_to(tmp_path / "gone")
    assert [p.name for p in files_in(tmp_path)] == ["a.mhd"]
    with pytest.raises(InputError, match=r"missing: cannot be read \(No such file"):
        files_in(tmp_path / "missing")


def test_folders_below_are_found_once_through_links_too(tmp_path):
    for name in ("root/a/b", "root/empty", "root/out/c", "elsewhere/d"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("root/a/b/1", "root/out/2", "root/out/c/3", "elsewhere/4", "elsewhere/d/5"):
        (tmp_path / name).touch()
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "link2").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    notes = []
    found = sorted(folders_below(root, notes.append, root / "out"))
    assert [str(f.relative_to(root)) for f in found] == ["a/b", "link", "link/d"] and not notes
    assert list(folders_below(tmp_path / "none", notes.append)) == [] and len(notes) == 1


def test_a_lock_is_waited_for_so_long(tmp_path, capsys):
    with held(tmp_path / "lock"), held(tmp_path / "lock", "waiting", 0.2) as ours:
        assert not ours and capsys.readouterr().out == "waiting\n"
    with held(tmp_path / "lock", "waiting") as ours:
        assert ours and capsys.readouterr().out == ""


def test_folders_too_are_left_over(tmp_path):
    temporary = temporary_name(tmp_path / "seed0")
    (temporary / "checkpoints").mkdir(parents=True)
    (tmp_path / "seed0").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["seed0"]


def test_a_lock_is_one_processes_until_it_ends(tmp_path):
    path = tmp_path / "folder" / "lock"
    code = (
        "import pathlib, sys\n"
        "from lung_unet.files import held\n"
        "with held(pathlib.Path(sys.argv[1])) as ours:\n"
        "    print(ours, flush=True)\n"
        "    input()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, cwd=ROOT, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with held(path) as ours:
            assert not ours
        other.kill()
    with held(path) as ours:
        assert ours


def test_only_a_folder_of_ours_is_made_anew(tmp_path):
    folder = tmp_path / "runs" / "ours"
    for _ in range(2):
        make_anew(folder)
        assert [p.name for p in folder.iterdir()] == [OURS]
        (folder / "old").touch()
    (folder / OURS).unlink()
    with pytest.raises(InputError, match="ours: is there already, and not of this command"):
        make_anew(folder)
    assert (folder / "old").exists() and list(folder.parent.iterdir()) == [folder]


def test_a_file_system_without_locks_holds_nothing(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuses)
    with held(tmp_path / "lock") as ours:
        assert ours
    with pytest.raises(InputError, match="cannot be written"), held(tmp_path / "lock" / "lock"):
        pass
