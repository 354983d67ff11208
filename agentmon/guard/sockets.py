"""Inet sockets that are connected when the guard is installed: it never saw where they went, so it says so."""

from __future__ import annotations

import _socket
import os

from agentmon.guard.errors import EgressWarning
from agentmon.guard.targets import INET

_FDS = "/proc/self/fd"
before: tuple[str, ...] = ()


def connected() -> tuple[str, ...]:
    """`fd N to ADDRESS:PORT` of each open socket that has a peer; nothing where /proc is not mounted."""
    found = []
    try:
        fds = os.listdir(_FDS)
    except OSError:
        return ()
    for name in fds:
        try:
            if not os.readlink(f"{_FDS}/{name}").startswith("socket:"):
                continue
            sock = _socket.socket(fileno=int(name))
        except OSError:
            continue
        try:
            if sock.family in INET:
                host, port = sock.getpeername()[:2]
                found.append(f"fd {name} to {f'[{host}]' if ':' in host else host}:{port}")
        except OSError:
            pass  # not connected
        finally:
            sock.detach()
    return tuple(found)


def report(found: tuple[str, ...]) -> None:
    """Warn once for each install; the sockets stay as they are."""
    global before
    before = found
    if found:
        from warnings import warn

        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        warn(f"connected before the guard was installed, ignoring: {shown}", EgressWarning, stacklevel=3)
