"""What the guard holds in this process, tried on its own hook, and what it cannot see here. Standard library only.

    python -m agentmon.guard check        or, in a program:  from agentmon.guard.selfcheck import report

Destinations are tried by raising the audit event that a connect would raise: the real hook answers, nothing is sent,
no name is looked up. It never asks for loopback's opening.
"""

from __future__ import annotations

import os
import socket
import sys
from importlib import import_module
from ipaddress import ip_address

from agentmon.guard import judge, vouching
from agentmon.guard.children import Child
from agentmon.guard.errors import EgressViolation
from agentmon.guard.imports import NotRead, dynamic_symbols
from agentmon.policy.rules import RuleError, canonical_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

ALWAYS_REFUSED = (
    "127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "0.0.0.0:80", "localhost:80", "169.254.169.254:80",
    "[fe80::1]:80", "224.0.0.1:53",
)  # fmt: skip
# What carries out the calls, or is asked about them: finding connect in these says nothing.
_CARRIERS = ("libc.so", "libc-", "ld-linux", "ld-musl", "libpython", "libm.so", "libdl.so", "libpthread.so", "librt.so",
             "libresolv.so", "libnss_", "libgcc_s.so", "libstdc++.so", "linux-vdso")  # fmt: skip
_HEARD = ("_socket.", "_posixsubprocess.")  # Python's own modules: their calls raise events, or are such
_NAMES = ("connect", "sendto", "sendmsg", "sendmmsg", "syscall", "getaddrinfo", "gethostbyname", "ffi_call",
          "io_uring_queue_init")  # fmt: skip
_OTHER_LOOPS = ("uvloop", "gevent", "eventlet")


def report(destinations: Iterable[str] = ()) -> dict[str, Any]:
    """All of it, as plain values; the keys are those of `--json`.

    :param destinations: `host:port`, tried as well. Each refusal is told to `on_blocked`, as any is.
    :raises RuleError: for one that cannot be read.
    """
    from agentmon.guard import EgressGuard

    asked = [parsed(text) for text in destinations]
    refuses = [tried(*parsed(text)) for text in ALWAYS_REFUSED]
    answers = [tried(host, port) for host, port in asked]
    status = EgressGuard.status()  # afterwards: a check is what notices tampering
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "guard": {
            "installed": status.installed, "mode": status.mode, "rules": list(status.rules), "locked": status.locked,
            "tampered": status.tampered,
        },
        "refuses": refuses,
        "destinations": answers,
        "unseen": {
            "native": loaded_native(),
            "loops": {name: _presence(name) for name in _OTHER_LOOPS},
            "sockets": list(status.sockets_before),
            "interpreters": other_interpreters(),
            "children": [_child(each) for each in status.children if not each.inherits],
        },
        "bottle": {"name": os.environ.get("AGENTMON_BOTTLE", ""), "vouching": _vouching(status.vouching)},
    }  # fmt: skip


def parsed(text: str) -> tuple[str, int]:
    """(host, port) of `host:port`, `address:port` or `[address]:port`.

    :raises RuleError: for anything else.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise RuleError(f"{text!r} is not a destination", "write host:port, as in api.example.com:443")
    try:
        ip_address(host)
    except ValueError:
        canonical_host(host)
    return host, int(port)


def tried(host: str, port: int) -> dict[str, Any]:
    """What the guard says to a TCP connect to it. Addresses go through the hook; names, which the hook would look up
    if they are allowed, are judged by the rules in force."""
    from agentmon.guard import state

    out: dict[str, Any] = {"destination": f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "refused": False}
    now = state.in_force
    try:
        address = ip_address(host)
    except ValueError:
        if now is not None:
            reason = judge.named(now.judge, host, port, "tcp").reason
            relaxed = reason == "default" and now.mode == state.OBSERVE
            out |= {"refused": reason != judge.ALLOW and not relaxed, "reason": reason}
        return out
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as e:
        return out | {"refused": True, "reason": f"this host: {e.strerror}"}
    with sock:
        try:
            sys.audit("socket.connect", sock, (host, port))
        except EgressViolation as e:
            out |= {"refused": True, "reason": e.reason}
    return out


def loaded_native() -> list[dict[str, Any]]:
    """Native modules in this process whose calls raise no event, with the names in them that matter.

    :returns: `path`, `names`; sorted by path. Empty where /proc is not mounted.
    """
    own = os.path.realpath(sys.executable)
    found = []
    for path in sorted(_mapped()):
        base = os.path.basename(path)
        if path == own or base.startswith((*_CARRIERS, *_HEARD)):
            continue
        names = _names_in(path)
        if names:
            found.append({"path": path, "names": names})
    return found


def _mapped() -> set[str]:
    """Files that are mapped executable. proc(5), /proc/pid/maps."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            lines = [line.rstrip("\n").split(None, 5) for line in maps]
    except OSError:
        return set()
    return {parts[5] for parts in lines if len(parts) == 6 and "x" in parts[1] and parts[5].startswith("/")}


def _names_in(path: str) -> list[str]:
    """Of the functions that reach the network: those that the file calls, libffi's also if it is compiled in. `["?"]`
    for a file that is gone or cannot be read."""
    try:
        called, offered = dynamic_symbols(path)
    except (OSError, NotRead):
        return ["?"]
    ffi = any(name.endswith("_ffi_call") for name in offered)
    return [name for name in _NAMES if name in called or (name == "ffi_call" and ffi)]


def other_interpreters() -> int:
    """Interpreters of this process beside the caller's (PEP 554, 684): hooks are per interpreter, so none of them is
    held by the guard of this one."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # Python 3.13 and newer; older
        try:
            return len(import_module(name).list_all()) - 1
        except ImportError:
            continue
    return 0


def _presence(name: str) -> str:
    if name in sys.modules:
        return "loaded"
    from importlib.util import find_spec

    try:
        return "installed" if find_spec(name) is not None else "absent"
    except (ImportError, ValueError):
        return "absent"


def _vouching(status: str) -> str:
    """Without a guard in force nobody has asked the kernel: that is no answer."""
    return "unknown" if status == vouching.UNASKED else status


def _child(child: Child) -> dict[str, str]:
    return {"event": child.event, "command": child.command}
