"""The process behind a bottle's port: the one that asked, and nobody where that is not certain."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from agentmon.daemon import whose
from tests.support.names import World, addr4, addr6

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.mark.parametrize("source", [addr4(16), addr6(16), "0.0.0.0", "::"])
def test_the_holder_is_named_and_a_socket_on_loopback_beside_it_is_not_meant(world: World, source: str) -> None:
    with world.udp(source) as asker:
        port = asker.getsockname()[1]
        found = world.inside(lambda: whose.process([os.getpid()], "udp", port))
        assert found == {}  # this process is in another namespace than its thread
        assert _in_namespace(world, port)["pid"] == os.getpid()
        if source not in {"0.0.0.0", "::"}:
            for loopback in ("127.0.0.9", "::1"):
                with world.udp(loopback, port):
                    assert _in_namespace(world, port)["pid"] == os.getpid()


def test_two_that_share_a_port_are_nobody(world: World) -> None:
    def make() -> tuple[socket.socket, socket.socket]:
        both = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for sock in both:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((addr4(17), 5353))
        return both

    one, two = world.inside(make)
    with one, two:
        assert _in_namespace(world, 5353) == {}
    assert _in_namespace(world, 5353) == {}


def _in_namespace(world: World, port: int) -> dict:
    """Asked with a process of the namespace first, whose /proc/PID/net is the one to look at."""
    return whose.process([world.holder, os.getpid()], "udp", port)
