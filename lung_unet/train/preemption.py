"""SIGTERM, which a cluster sends before it takes a machine back: save, then exit 0."""

import contextlib
import itertools
import signal
import socket
import threading
from collections.abc import Iterator

import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

from lung_unet.command import stop_preempted
from lung_unet.parallel.distributed import stop_all

_asked = itertools.count(1)  # all processes ask equally often, so this is a clock they share


class Preemption:
    """Answers SIGTERM while it is entered; a context manager for the main thread.

    The process exits 0 at once, whatever it is doing, unless it is within `holding`: there, work
    would be lost, and `requested` tells of the signal.

    Where jax.distributed runs, JAX answers the signal: it has all processes see `requested` at the
    same call, so they must all make the same calls, and an exit has to wait for one. Where only one
    process works and the others wait for it, they are `alone`: whichever gets the signal, all exit.
    Where jax.distributed begins within it, the signal is left to JAX from then on.
    """

    def __init__(self, alone: bool = False) -> None:
        self._received = threading.Event()
        self._held = False
        self._lock = threading.Lock()
        self._joined = jax.distributed.is_initialized()
        self._distributed = self._joined and not alone

    def __enter__(self) -> "Preemption":
        if not self._distributed:
            # A Python handler would wait for the main thread, which may be compiling for minutes;
            # the wake-up descriptor is written to at once, and a thread reads it.
            self._ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self._theirs = theirs
            self._old_handler = signal.signal(signal.SIGTERM, lambda *_: None)
            self._old_descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            self._watcher = threading.Thread(target=self._watch, name="preemption", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        if not self._distributed:
            signal.set_wakeup_fd(self._old_descriptor)
            if jax.distributed.is_initialized() == self._joined:  # else the handler is JAX's now
                signal.signal(signal.SIGTERM, self._old_handler)
            self._theirs.close()  # which ends the watcher
            self._watcher.join()
            self._ours.close()

    def _watch(self) -> None:
        while number := self._ours.recv(1):
            if number[0] == signal.SIGTERM:
                with self._lock:
                    self._received.set()
                    if not self._held:
                        if self._joined:  # else there are no others, or they are not met yet
                            stop_all()
                        stop_preempted()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Within it SIGTERM does not end the process."""
        with self._lock:
            self._held = True
        try:
            yield
        finally:
            with self._lock:
                self._held = False

    def requested(self) -> bool:
        """Whether to save and stop now."""
        told = self._received.is_set()
        if self._distributed and not told and reached_preemption_sync_point(next(_asked)):
            self._received.set()  # JAX says so once
        return self._received.is_set()
