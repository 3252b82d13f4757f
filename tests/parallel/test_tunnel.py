"""The tunnel carries everything, and tells which side ended a connection."""

import socket
import threading

import pytest

from lung_unet.parallel.tunnel import Tunnel


@pytest.fixture
def ends():
    """(client, server, broken): the two ends of a connection through a tunnel."""
    broken = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tunnel = Tunnel(f"127.0.0.1:{listener.getsockname()[1]}", 5.0, broken.set)
        host, port = tunnel.address.split(":")
        client = socket.create_connection((host, int(port)), timeout=20)
        server = listener.accept()[0]
        server.settimeout(20)
        with client, server:
            yield client, server, broken


def test_both_ways_whatever_the_size(ends):
    client, server, broken = ends
    data = bytes(range(256)) * 20_000
    for source, target in ((client, server), (server, client)):
        threading.Thread(target=source.sendall, args=(data,)).start()
        received = b""
        while len(received) < len(data):
            received += target.recv(1 << 20)
        assert received == data
    assert not broken.is_set()


def test_the_end_of_the_server_is_told_before_the_client_sees_it(ends):
    client, server, broken = ends
    client.sendall(b"x"), server.recv(1), server.close()
    assert broken.wait(20)


def test_the_end_of_the_client_is_not_told(ends):
    client, server, broken = ends
    client.sendall(b"x"), server.recv(1), client.close()
    assert server.recv(1) == b"" and not broken.wait(0.5)
