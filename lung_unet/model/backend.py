"""Which formulation of an operation a program takes: the CPU's, or that of accelerators."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from jax import lax

_EVERYWHERE = contextvars.ContextVar("_EVERYWHERE", default=False)


@contextlib.contextmanager
def accelerator_formulations() -> Iterator[None]:
    """What is traced within takes the accelerators' formulations on the CPU as well.

    To count their work there, and to test it: XLA counts the loops of the CPU's formulation once.
    """
    token = _EVERYWHERE.set(True)
    try:
        yield
    finally:
        _EVERYWHERE.reset(token)


def by_backend(*arguments: Any, cpu: Callable, default: Callable) -> Any:
    """cpu(*arguments) where the program is compiled for the CPU, default(*arguments) elsewhere.

    It is the platform that the program is lowered for that counts, not the one JAX runs on.
    """
    return lax.platform_dependent(
        *arguments, cpu=default if _EVERYWHERE.get() else cpu, default=default
    )
