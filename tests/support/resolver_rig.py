"""A resolver as a process between bottles and a DNS server, with the daemon's side of its control socket."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from tests.support import names
from tests.support.names import Daemon, DnsServer, World

A, B = 16, 17  # bottles
RULES = ("direct.example:8080", "alias.example:8080", "evil.example:8080", "gone.example:8080")
BOTH = ("web.example", *RULES)  # a held name beside direct ones is looked up ahead: there the servers are asked


@contextlib.contextmanager
def resolving(**config: Any) -> Iterator[SimpleNamespace]:
    """A resolver in a world with names, its DNS server and its daemon; `config` replaces parts of the ordinary one."""
    world = World()
    server = DnsServer(world)
    server.records |= {
        ("direct.example", "A"): [names.WEB, names.WEB2],
        ("direct.example", "AAAA"): [names.WEB6],
        ("web.example", "A"): [names.WEB],
        ("web.example", "AAAA"): [names.WEB6],
        ("alias.example", "CNAME"): ["direct.example."],
        ("private.example", "A"): ["10.1.2.3"],
        ("a.private.example", "A"): ["10.1.2.3"],
        ("evil.example", "A"): ["127.0.0.1", "169.254.169.254", "10.213.0.17", "192.0.2.2", names.WEB],
        ("gone.example", "A"): ["127.0.0.1"],
        ("four.example", "A"): [names.WEB],
        ("big.example", "A"): [f"203.0.113.{i}" for i in range(1, 61)],
    }
    try:
        with (
            names.directory() as directory,
            names.service(world, "resolver", names.resolver_config(directory, **config), directory) as process,
        ):
            daemon = Daemon(directory / "resolver.sock")
            try:
                yield SimpleNamespace(world=world, dns=server, daemon=daemon, dir=directory, process=process)
            finally:
                daemon.close()
    finally:
        server.close()
        world.close()
