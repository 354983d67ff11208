"""The techniques by name, and what they share: words for an outcome, addresses, calls of the C library. Stdlib only."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
SECRET = b"agentmon-secret-payload"
WAIT_S = float(os.environ.get("ATTEMPT_WAIT_S", "0.4"))  # for an answer
TABLE: dict[str, Callable[..., object]] = {}


class Refused(Exception):
    """No, in whatever words."""


def attempt(function: Callable[..., object]) -> Callable[..., object]:
    TABLE[function.__name__] = function
    return function


def family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def sockaddr(host: str, port: int) -> bytes:
    if family(host) == socket.AF_INET:
        return struct.pack("<H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    packed = socket.inet_pton(socket.AF_INET6, host)
    return struct.pack("<H", socket.AF_INET6) + struct.pack("!HI", port, 0) + packed + bytes(4)


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def heard(sock: socket.socket) -> None:
    """Something came back within a moment, else Refused."""
    if not select.select([sock], [], [], WAIT_S)[0] or not sock.recv(4096):
        raise Refused


def talk(sock: socket.socket) -> None:
    sock.settimeout(WAIT_S)
    sock.sendall(SECRET)
    heard(sock)
