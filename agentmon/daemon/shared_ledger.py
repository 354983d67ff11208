"""A ledger in PostgreSQL: what of the settings its process is told, and the way there from the service namespace.

The name is looked up here, in the host's namespace: the ledger's process can reach that address and port, nothing
else. The password is not looked at: the process reads it as root before it drops.
"""

from __future__ import annotations

import socket
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from agentmon.credentials import sources
from agentmon.errors import BadInput, HostLacks
from agentmon.policy.settings import Settings

CREDENTIAL = "ledger"
_PORT = 5432

Address = IPv4Address | IPv6Address


def config(settings: Settings) -> dict[str, Any]:
    """{"database": …} of the ledger's CONFIG; {} for a file. `password_file` changes when the credential does, so that
    a starting daemon replaces a ledger that has an old one.

    :raises BadInput: the URL names an address that cannot be reached from there. :raises HostLacks: it has none now.
    """
    if not settings.ledger_is_shared:
        return {}
    found = _address(settings.ledger)
    command = settings.credentials.get(CREDENTIAL)
    return {
        "database": {
            "url": settings.ledger, "hostaddr": str(found[0]) if found else "",
            "command": list(command) if command else None,
            "password_file": sources.store(settings.credentials).signature(CREDENTIAL),
        }
    }  # fmt: skip


def dials(settings: Settings) -> tuple[tuple[Address, int], ...]:
    """What the service namespace must reach over TCP for it: the database, unless that is at a unix socket."""
    found = _address(settings.ledger) if settings.ledger_is_shared else None
    return (found,) if found else ()


@cache
def _address(url: str) -> tuple[Address, int] | None:
    """None: a unix socket."""
    parts, hint = urlsplit(url), "a unix socket is reached: postgresql:///NAME?host=/run/postgresql"
    query = parse_qs(parts.query)
    host = unquote(parts.hostname or "") or query.get("hostaddr", query.get("host", [""]))[0]
    if not host or host.startswith("/"):
        return None
    if "," in parts.netloc or "," in host:
        raise BadInput("ledger: names several hosts; agentmon knows one", "name one that follows the primary")
    port = parts.port or int(query.get("port", [str(_PORT)])[0])
    try:
        addresses = [ip_address(a[4][0]) for a in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as e:
        raise HostLacks(f"ledger: host {host!r} of the database has no address: {e}", "see the host's DNS") from e
    if addresses[0].is_loopback:
        raise BadInput(f"ledger: {host} is not reached from the ledger's namespace", hint)
    return addresses[0], port
