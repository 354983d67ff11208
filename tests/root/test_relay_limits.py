"""The relay's patience and its memory: dead peers, upstreams that never answer, many flows that hold bytes back."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import names
from tests.support.names import until
from tests.support.relay_rig import A, B, Server, between, connect, echo, established, hello_of, rest

pytestmark = pytest.mark.root
MB = 1 << 20
SILENCE = "table inet gone {{ chain in {{ type filter hook input priority 0; {} drop; }}; }}"


@pytest.fixture(scope="module")
def net() -> Iterator[SimpleNamespace]:
    with between(keepalive_s=1, half_closed_s=1.0) as made:
        made.set(A, "web.example", limits={"connections": 5000})
        made.set(B, "web.example")
        for way in ("tcp_rmem", "tcp_wmem"):  # so that a receiver who does not read is felt soon
            made.world.command(["sysctl", "-qw", f"net.ipv4.{way}=4096 65536 131072"])
        with Server(made.world, names.WEB, echo):  # the relay has looked a name up: that connection stays
            established(made, "web.example").close()
        yield made


def sockets(net: SimpleNamespace, kind: str = "socket") -> int:
    """Open descriptors of the relay of one kind."""
    found = 0
    for fd in Path(f"/proc/{net.pids['relay']}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(fd).startswith(f"{kind}:")
    return found


def settled(net: SimpleNamespace) -> int:
    """Its sockets once no flow is left: listeners, the daemon, the resolver."""
    return until(lambda: (now := sockets(net)) == 7 and now)


def pipes(net: SimpleNamespace) -> int:
    """Both ends counted."""
    return sockets(net, "pipe")


def anonymous_mb(net: SimpleNamespace) -> float:
    lines = Path(f"/proc/{net.pids['relay']}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


@pytest.mark.parametrize("gone", [f"ip saddr {names.WEB}", f"ip saddr {names.addr4(A)}"], ids=["upstream", "client"])
def test_a_peer_that_is_gone_without_a_word_is_found(net: SimpleNamespace, gone: str) -> None:
    before = settled(net)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(net.world.listen(names.WEB, 443))
        mine, other = (stack.enter_context(connect(net, slot)) for slot in (A, B))
        ends = []
        for sock in (mine, other):
            sock.sendall(hello_of("web.example"))
            ends.append(stack.enter_context(listener.accept()[0]))
        until(lambda: sockets(net) == before + 4)
        net.world.command(["nft", "-f", "-"], input=SILENCE.format(gone))
        try:
            until(lambda: sockets(net) < before + 4, 30)
        finally:
            net.world.command(["nft", "delete", "table", "inet", "gone"])
        if names.WEB not in gone:  # another bottle's flow to the same server has nothing to do with it
            ends[1].sendall(b"alive")
            assert other.recv(5) == b"alive"
    until(lambda: sockets(net) == before, 30)


def test_an_upstream_that_accepts_and_never_answers_costs_only_its_flow(net: SimpleNamespace) -> None:
    before = settled(net)
    listener = net.world.listen(names.WEB, 443)  # the kernel accepts, nobody reads
    with listener:
        with connect(net) as sock:
            sock.sendall(hello_of("web.example"))
            until(lambda: sockets(net) == before + 2)
            with connect(net, B) as refused:
                refused.sendall(hello_of("other.example"))
                assert rest(refused).startswith(b"\x15\x03")
        until(lambda: sockets(net) == before, 20)  # the client has gone; the server has not even noticed


def test_the_second_half_goes_on_as_long_as_it_moves(net: SimpleNamespace) -> None:
    """An answer that comes in pieces, each later than half the patience for a silent one, arrives whole."""

    def talk(client: socket.socket) -> None:
        while client.recv(65536):
            pass
        for _ in range(5):
            threading.Event().wait(0.6)
            client.sendall(b"piece")

    with Server(net.world, names.WEB, talk), connect(net) as sock:
        sock.sendall(hello_of("web.example"))
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == b"piece" * 5


def test_flows_that_hold_bytes_back_keep_them_in_the_kernel(net: SimpleNamespace) -> None:
    """80 receivers that do not read, each before 2 MB: more than the relay's user may have large pipes for. Nothing of
    it is in the relay's memory, nothing is lost, and every pipe is given back."""
    block = os.urandom(2 * MB)

    def talk(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(block)

    _descriptors(4096)
    before = anonymous_mb(net)
    with contextlib.ExitStack() as stack:
        stack.enter_context(Server(net.world, names.WEB, talk))
        socks = [stack.enter_context(connect(net)) for _ in range(80)]
        for sock in socks:
            sock.sendall(hello_of("web.example"))
        until(lambda: pipes(net) >= 2 * len(socks), 30)
        assert anonymous_mb(net) - before < 8
        with connect(net, B) as refused:  # it still listens to others
            refused.sendall(hello_of("other.example"))
            assert rest(refused).startswith(b"\x15\x03")
        for sock in socks:
            assert rest(sock) == block
    until(lambda: pipes(net) <= 2 * 4)  # what is spare
    assert anonymous_mb(net) - before < 8


def test_2000_idle_flows_in_100_mb(net: SimpleNamespace) -> None:
    _descriptors(8192)
    hello = hello_of("web.example")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(net.world.listen(names.WEB, 443))
        for _ in range(2000):
            stack.enter_context(connect(net)).sendall(hello)
            upstream, _ = listener.accept()
            assert stack.enter_context(upstream).recv(65536) == hello
        lines = Path(f"/proc/{net.pids['relay']}/smaps_rollup").read_text().splitlines()
        assert sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) < 100 * 1024


def _descriptors(most: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, hard)), hard))
