"""Keeps memory that XLA's CPU backend frees, instead of giving it back to the kernel each step.

XLA allocates its temporaries anew for every run, and glibc maps and unmaps pieces that large, so
that a step spends more time in page faults than in some of its layers. Kept, they are reused.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Tunes glibc's malloc for this process; does nothing with another C library."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 256 << 20)
