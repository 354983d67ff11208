"""Connections of this host to addresses that the stand-in internet takes for itself: their packets would arrive there,
and be counted as if a bottle had sent them.

/proc/net/tcp, proc_net(5): addresses in words of this machine's byte order.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

_PROC = Path("/proc/thread-self/net")
_SILENT = {"06", "07", "0A"}  # TIME_WAIT, CLOSE, LISTEN


def peers(networks: Iterable[str]) -> set[str]:
    """Addresses in these networks that a TCP socket of the calling thread's namespace is connected to."""
    taken, found = [ip_network(n) for n in networks], set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in (_PROC / name).read_text().splitlines()[1:]:
                _, _, remote, state, *_ = line.split()
                address = _address(remote.partition(":")[0])
                if state not in _SILENT and any(address in n for n in taken):
                    found.add(str(address))
    return found


def _address(text: str) -> IPv4Address | IPv6Address:
    words = (int(text[at : at + 8], 16) for at in range(0, len(text), 8))
    raw = b"".join(struct.pack("=I", word) for word in words)
    six = IPv6Address(raw) if len(raw) == 16 else None
    return IPv4Address(raw) if six is None else six.ipv4_mapped or six


def free(networks: tuple[str, ...], within_s: float) -> set[str]:
    """Wait until there is no such connection; the peers that are left after `within_s`."""
    deadline = time.monotonic() + within_s
    while (left := peers(networks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
