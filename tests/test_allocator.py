"""Freed memory stays with the process until it is released."""

import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from lung_unet.allocator import keep_freed_memory, release_freed_memory

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

keep_freed_memory()
arrays = [np.ones(4_000_000, np.uint8) for _ in range(60)]
full = resident_mb()
del arrays[:-1]  # the last one keeps the heap's end where it is
kept = resident_mb()
release_freed_memory()
print(full, kept, resident_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tunes glibc, and reads /proc")
def test_freed_memory_is_kept_then_released():
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    ).stdout
    full, kept, released = map(float, output.split())
    assert kept > full - 20 and released < full - 200
