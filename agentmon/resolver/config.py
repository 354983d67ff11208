"""The resolver's configuration: the JSON file that the daemon wrote (docs/design/seams.md)."""

from __future__ import annotations

import contextlib
import pwd
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import msgspec

from agentmon.addresses import Pool
from agentmon.resolver.upstream import Server


class UpstreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Servers as [address, port], or [address, port, name] over TLS; `suffixes`: split DNS; `ca`: PEM files."""

    servers: tuple[Server, ...] = ()
    suffixes: dict[str, tuple[Server, ...]] = {}
    ca: tuple[str, ...] = ()

    @property
    def over_tls(self) -> bool:
        return any(server.tls for some in (self.servers, *self.suffixes.values()) for server in some)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    socket: str
    lookup_socket: str
    user: str
    listen: tuple[str, ...]
    pool4: str
    pool6: str | None = None
    upstream: UpstreamConfig = UpstreamConfig()
    strip: tuple[str, ...] = ()
    internal: dict[str, str] = msgspec.field(default_factory=lambda: {"agentmon.internal": "proxy"})
    lookup_group: str = "agentmon-svc"
    lookup_users: tuple[str, ...] = ("agentmon-relay", "agentmon-proxy")
    port: int = 53

    @property
    def pool(self) -> Pool:
        return Pool(IPv4Network(self.pool4), IPv6Network(self.pool6) if self.pool6 else None)

    @property
    def own(self) -> tuple[str, ...]:
        """What no answer may carry: the host's addresses and the whole pool."""
        return (*self.strip, self.pool4, *((self.pool6,) if self.pool6 else ()))

    @property
    def lookup_uids(self) -> frozenset[int]:
        """root and those of `lookup_users` that exist on this host."""
        uids = {0}
        for name in self.lookup_users:
            with contextlib.suppress(KeyError):
                uids.add(pwd.getpwnam(name).pw_uid)
        return frozenset(uids)


def convert(config: dict[str, Any]) -> Config:
    """:raises msgspec.ValidationError: naming the key."""
    return msgspec.convert(config, Config)
