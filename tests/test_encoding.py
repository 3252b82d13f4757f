"""Text files are UTF-8 whatever the locale: GDCM leaves a process in locale "C", whose text is
ASCII."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = [p for folder in ("lung_unet", "configs", "launch") for p in (ROOT / folder).rglob("*.py")]


def without_encoding(source: str) -> list[int]:
    """Lines that read or write text in the locale's encoding."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if _is_text(call) and not _has(call, "encoding")]


def _is_text(call: ast.Call) -> bool:
    function = call.func
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    method = isinstance(function, ast.Attribute)
    owner = function.value.id if method and isinstance(function.value, ast.Name) else ""
    if name == "read_text" or (name == "write_text" and method):
        return True
    if name == "open" and owner not in ("os", "tarfile"):
        path_s = method and owner != "gzip"  # path.open(mode), else open(path, mode)
        modes = [k.value for k in call.keywords if k.arg == "mode"] + call.args[not path_s :]
        mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r"
        return "t" in mode if owner == "gzip" else "b" not in mode
    return name in ("run", "Popen", "check_output") and (
        _has(call, "text") or _has(call, "universal_newlines")
    )


def _has(call: ast.Call, keyword: str) -> bool:
    return any(k.arg == keyword for k in call.keywords)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_has_its_encoding(path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("path.read_text()", True), ("path.write_text(text)", True), ("open(path)", True),
        ("open(path, 'w', newline='')", True), ("path.open()", True), ("path.open('a')", True),
        ("open(path, mode='r')", True), ("gzip.open(path, 'rt')", True),
        ("subprocess.run(command, text=True)", True),
        ("path.read_text(encoding='utf-8')", False), ("open(path, 'rb')", False),
        ("path.open('rb')", False), ("os.open(path, os.O_RDWR)", False),
        ("write_text(path, text)", False), ("gzip.open(path)", False),
        ("open(path, 'w', encoding='utf-8')", False),
    ],
)  # fmt: skip
def test_what_has_no_encoding_is_found(text, found):
    assert without_encoding(text) == [1] * found


def test_a_command_works_in_a_locale_without_utf_8(tmp_path):
    """The marks of a scan with a name beyond ASCII are read, scored and written."""
    uid = "CT-köln–1"
    head = "seriesuid,coordX,coordY,coordZ"
    for name, text in {
        "submission.csv": f"{head},probability\n{uid},1,2,3,0.9\n",
        "annotations.csv": f"{head},diameter_mm\n{uid},1,2,3,6\n",
        "excluded.csv": f"{head},diameter_mm\n",
        "uids.txt": f"{uid}\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    flags = [f"--{flag}={tmp_path / name}" for flag, name in (
        ("submission", "submission.csv"), ("annotations", "annotations.csv"),
        ("excluded", "excluded.csv"), ("seriesuids", "uids.txt"),
    )]  # fmt: skip
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "lung_unet.froc", *flags],
        cwd=ROOT, env=os.environ | plain, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
