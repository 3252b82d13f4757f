"""The way to process 0 of a job: a local port, so that this process learns first what breaks.

JAX's client ends its process with a stack trace as soon as its connection does, and takes no other
instruction (jaxlib cannot pass an error to a Python callback). Through the tunnel its connection
never breaks; ours does.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

RETRY_S = 0.1
CHUNK = 1 << 16


class Tunnel:
    """Connects each client of `address`, a port of this host, with `target`, a host:port.

    `broken` is called, in a thread, where the other side ends a connection, or acknowledges nothing
    for `timeout_s`; the client still sees a live connection then.
    """

    def __init__(self, target: str, timeout_s: float, broken: Callable[[], None]):
        host, _, port = target.rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self._timeout_s, self._broken = timeout_s, broken
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, function: Callable[..., None], *arguments) -> None:
        threading.Thread(target=function, args=arguments, name="tunnel", daemon=True).start()

    def _accept(self) -> None:
        while True:
            self._start(self._carry, self._listener.accept()[0])

    def _connect(self) -> socket.socket:
        """A connection to the target, which may start to listen later than this."""
        while True:
            try:
                server = socket.create_connection(self._target, timeout=self._timeout_s)
                break
            except OSError:
                time.sleep(RETRY_S)
        server.settimeout(None)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere JAX's heartbeats end the job
            server.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._timeout_s * 1000)
            )
        return server

    def _carry(self, client: socket.socket) -> None:
        with client, self._connect() as server:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            left = threading.Event()  # the client has ended it
            self._start(_send, client, server, left)
            while data := _received(server):
                try:
                    client.sendall(data)
                except OSError:
                    left.set()
            if not left.is_set():
                self._broken()


def _send(client: socket.socket, server: socket.socket, left: threading.Event) -> None:
    with contextlib.suppress(OSError):  # the server's end, which its reader meets as well
        while data := _received(client):
            server.sendall(data)
        left.set()
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)


def _received(source: socket.socket) -> bytes:
    """What came, b"" at the end of the connection, whatever ended it."""
    try:
        return source.recv(CHUNK)
    except OSError:
        return b""
