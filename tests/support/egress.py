"""The suite's egress guard: from the host's namespace a test process reaches only loopback and the test nets."""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

ALLOWED = [
    ipaddress.ip_network(net)
    for net in (
        "127.0.0.0/8",
        "::1/128",
        "198.51.100.0/24",  # the stand-in internet
        "203.0.113.0/24",
        "2001:db8::/32",
        "10.213.0.0/16",  # bottles and services
        "fd61:6d6f:6e::/64",
    )
]
LOCAL_NAMES = {"", "localhost", None}


class SuiteEgress(RuntimeError):
    """A test tried to talk to the outside world. Not an OSError: nothing may swallow it as a failed connect."""


def guard() -> None:
    """Refuse, from now on and for good, what would leave this machine."""
    host_netns = os.stat("/proc/self/ns/net").st_ino

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = args[1]
            if isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], str):
                _check(address[0], host_netns)
        elif event == "socket.getaddrinfo":
            _check(args[0], host_netns)

    sys.addaudithook(hook)


def _check(host: Any, host_netns: int) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in LOCAL_NAMES:
        return
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        raise SuiteEgress(f"a test looks up {name!r} with the host's own resolver") from None
    if any(address in net for net in ALLOWED) or address.is_unspecified:
        return
    if os.stat("/proc/thread-self/ns/net").st_ino == host_netns:
        raise SuiteEgress(f"a test talks to {name}, outside the test nets")
