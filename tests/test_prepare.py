"""The command prepares a folder, says what it did, and starts fast."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = [
    "--config.data.spacing_mm=4", "--config.data.margin_mm=8", "--config.data.block=(20,20,20)",
    "--config.data.nodule_blocks=2",
]  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """What is prepared; not inputs.json, which is of the files that it was prepared from."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "inputs.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_prepares_a_folder(luna16, prepared, tmp_path):
    out = tmp_path / "out"
    done = run(
        "-m", "lung_unet.prepare", f"--luna16={luna16}", f"--out={out}", "--workers=1", *FLAGS
    )
    assert done.returncode == 0, done.stderr
    assert "4/4" in done.stdout  # progress
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        "4 scans, 4 nodules (4 without an outline, as spheres), 0 findings ignored"
    )
    assert last.endswith(str(out / "manifest.json"))
    assert contents(out) == contents(prepared)


def test_help_names_every_flag():
    done = run("-m", "lung_unet.prepare", "--help")
    assert "Prepare a LUNA16 folder" in done.stdout
    names = "config", "luna16", "lidc_xml", "out", "workers", "engine", "pseudonym_key"
    for flag in names:
        assert f"  --{flag}: " in done.stdout
    assert "Traceback" not in done.stderr


def test_imports_no_jax():
    """Reader processes start with what this imports."""
    code = (
        "import sys, lung_unet.prepare, lung_unet.data.datasets, lung_unet.data.preparation\n"
        "print(sorted({'jax', 'flax', 'grain'} & set(sys.modules)))"
    )
    done = run("-c", code)
    assert done.stdout.strip() == "[]", done.stderr
