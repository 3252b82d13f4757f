"""Keeps memory that XLA's CPU backend frees, instead of giving it back to the kernel each step.

XLA allocates its temporaries anew for every run, and glibc maps and unmaps pieces that large, so
that a step spends more time in page faults than in some of its layers. Kept, they are reused.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Tunes glibc's malloc for this process; does nothing with another C library."""
    if libc := _glibc():
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 256 << 20)


def release_freed_memory() -> None:
    """Gives back to the kernel what is free now: after compilation, hundreds of megabytes."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except (OSError, TypeError):
        return None
