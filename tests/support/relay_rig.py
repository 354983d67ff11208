"""A relay and its resolver as processes between bottles and servers, and both ends of a flow through them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentmon import wire
from tests.support import names
from tests.support.names import Daemon, DnsServer, World

A, B = 16, 17


@contextlib.contextmanager
def between(**relay: object) -> Iterator[SimpleNamespace]:
    """A relay and a resolver in a world with names; `set` tells both of them a bottle's rules.

    :param relay: more of its configuration.
    """
    with contextlib.ExitStack() as stack:
        world = World()
        stack.callback(world.close)
        dns = DnsServer(world)
        stack.callback(dns.close)
        dns.records |= {
            ("web.example", "A"): [names.WEB],
            ("other.example", "A"): [names.WEB],
            ("api.vendor.example", "A"): [names.WEB],
            ("six.example", "AAAA"): [names.WEB6],
            ("half-dead.example", "A"): [names.WEB2],
            ("half-dead.example", "AAAA"): [names.WEB6],
        }
        directory = stack.enter_context(names.directory())
        configs = {
            "resolver": names.resolver_config(directory),
            "relay": names.relay_config(directory, **{"hello_s": 1.0, **relay}),
        }
        pids = {
            module: stack.enter_context(names.service(world, module, config, directory)).pid
            for module, config in configs.items()
        }
        resolver = Daemon(directory / "resolver.sock")
        stack.callback(resolver.close)
        daemon = Daemon(directory / "relay.sock")
        stack.callback(daemon.close)

        def set_both(slot: int, *rules: str, **more: object) -> wire.Ack:
            assert resolver.set(slot, *rules, **more).error == ""
            return daemon.set(slot, *rules, **more)

        yield SimpleNamespace(
            world=world, dns=dns, dir=directory, resolver=resolver, daemon=daemon, set=set_both, pids=pids
        )


class Server:
    """An upstream: one thread per connection runs `talk`."""

    def __init__(self, world: World, address: str, talk: Callable[[socket.socket], None]) -> None:
        self._sock = world.listen(address, 443)
        self._talk = talk
        self._over = False
        self._threads = [threading.Thread(target=self._serve)]
        self.accepted = 0
        self._threads[0].start()

    def _serve(self) -> None:
        self._sock.settimeout(0.2)
        while not self._over:
            with contextlib.suppress(TimeoutError):
                client, _ = self._sock.accept()
                self.accepted += 1
                client.settimeout(20)
                thread = threading.Thread(target=self._one, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _one(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._talk(client)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        self._sock.close()


def tls_server(certificate: Path) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def talk(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as tls:
            while data := tls.recv(65536):
                tls.sendall(data)

    return talk


def hello_of(name: str | None) -> bytes:
    """A real ClientHello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def connect(net: SimpleNamespace, slot: int = A) -> socket.socket:
    return net.world.connect(names.addr4(slot), names.RELAY, 443)


def rest(sock: socket.socket) -> bytes:
    """Everything until the peer closes; b"RESET" if it resets."""
    out = bytearray()
    try:
        while data := sock.recv(65536):
            out += data
    except ConnectionResetError:
        return b"RESET"
    return bytes(out)


def echo(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data)


def established(net: SimpleNamespace, name: str, slot: int = A) -> socket.socket:
    """A flow through the relay to an echo server, the hello already echoed."""
    hello = hello_of(name)
    sock = connect(net, slot)
    sock.sendall(hello)
    got = b""
    while len(got) < len(hello):
        data = sock.recv(65536)
        assert data, got
        got += data
    assert got == hello
    return sock
