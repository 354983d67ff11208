"""`listen:` and `unix:` of a manifest: the ports a bottle may listen on, and the host's sockets that it is given.

Both are kept as texts in one canonical form (`tcp:8000-8100`, `/run/postgresql/`), which is what people are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast

from agentmon.policy import document
from agentmon.policy.document import Node
from agentmon.policy.rules.ports import merged

MAX_PATH = 107  # bytes of sun_path in front of its NUL (unix(7))
MAX_RANGES = 8  # of one protocol, what one element of the kernel's map holds (ebpf.abi.RANGES)
PROTOS = ("tcp", "udp")
_PORTS = re.compile(r"(?:(tcp|udp):)?([0-9]{1,5})(?:-([0-9]{1,5}))?")
# A directory of sockets takes the place of the bottle's own: these are too much at once, or not the host's to give.
_TOO_WIDE = frozenset(
    {
        "/",
        "/run/",
        "/var/",
        "/var/run/",
        "/tmp/",
        "/var/tmp/",
        "/dev/",
        "/dev/shm/",
        "/etc/",
        "/home/",
        "/root/",
        "/usr/",
    }
)
_NOT_GIVEN = ("/proc/", "/sys/", "/run/agentmon/", "/var/run/agentmon/")


class Ports(NamedTuple):
    """lo…hi of `proto`, both included; str() is the canonical text."""

    proto: Literal["tcp", "udp"]
    lo: int
    hi: int

    def __str__(self) -> str:
        return f"{self.proto}:{self.lo}" if self.lo == self.hi else f"{self.proto}:{self.lo}-{self.hi}"


def listen(node: Node) -> tuple[str, ...]:
    """`[8080, 9000-9100, udp:5353]`; a port without a protocol is TCP's. Canonical, overlaps merged.

    :raises BadInput: with file, line and what was expected.
    """
    found = canonical(document.each(node, "a list of ports such as 8080, 9000-9100 or udp:5353", _ports))
    for proto in PROTOS:
        if sum(text.startswith(proto) for text in found) > MAX_RANGES:
            what = f"more than {MAX_RANGES} port ranges of {proto.upper()}"
            raise node.place.error(what, "write fewer or wider ranges")
    return found


def _ports(node: Node) -> Ports:
    written = document.text(node, "a port such as 8080")
    try:
        return ports(written)
    except ValueError:
        hint = "ports are 1 to 65535, the lower one of a range first; without udp: in front, TCP is meant"
        raise node.place.error(f"{written!r}; expected a port, a range, or udp:PORT", hint) from None


def ports(text: str) -> Ports:
    """:raises ValueError: no port, range, or either behind `tcp:` or `udp:`."""
    found = _PORTS.fullmatch(text)
    if not found:
        raise ValueError(text)
    lo = int(found[2])
    hi = int(found[3] or lo)
    if not 1 <= lo <= hi <= 65535:
        raise ValueError(text)
    return Ports(cast(Literal["tcp", "udp"], found[1] or "tcp"), lo, hi)


def canonical(found: Iterable[Ports]) -> tuple[str, ...]:
    """The same ports as texts, TCP first, in order, overlaps merged."""
    kept = tuple(found)
    out = []
    for proto in PROTOS:
        for lo, hi in merged([(p.lo, p.hi) for p in kept if p.proto == proto]):
            out.append(str(Ports(cast(Literal["tcp", "udp"], proto), lo, hi)))
    return tuple(out)


def narrowed(given: Sequence[str] | None, asked: Sequence[str] | None) -> tuple[str, ...] | None:
    """What both let a bottle listen on; None does not limit."""
    if given is None or asked is None:
        only = asked if given is None else given
        return None if only is None else tuple(only)
    pairs = [(ports(a), ports(b)) for a in given for b in asked]
    both = [Ports(a.proto, max(a.lo, b.lo), min(a.hi, b.hi)) for a, b in pairs if a.proto == b.proto]
    return canonical(p for p in both if p.lo <= p.hi)


def unix(node: Node) -> tuple[str, ...]:
    """`[/run/postgresql/.s.PGSQL.5432, /run/nscd/]`: sockets, or directories, which end in "/".

    :raises BadInput: with file, line and what was expected.
    """
    return document.each(node, "a list of socket paths", _unix)


def _unix(node: Node) -> str:
    written = document.text(node, "the path of a socket, or of a directory with / behind it")
    parts = written.removesuffix("/").split("/")[1:]
    if not written.startswith("/") or not all(parts) or any(p == "." or p.startswith("..") for p in parts):
        hint = "the path that programs connect to is compared as text; a directory ends in /"
        raise node.place.error(f"{written!r}; expected an absolute path without //, . and ..", hint)
    if not written.isprintable() or len(written.encode()) > MAX_PATH:
        raise node.place.error(
            f"{written!r} can be no socket's path", f"at most {MAX_PATH} bytes, no control characters"
        )
    if written in _TOO_WIDE or f"{written}/" in _TOO_WIDE:
        hint = "name the socket, or the directory of the one service"
        raise node.place.error(f"{written!r} is the bottle's own, or too much at once", hint)
    if written.startswith(_NOT_GIVEN):
        raise node.place.error(f"{written!r} cannot be given to a bottle", "nothing of /proc, /sys and agentmon's own")
    return written
