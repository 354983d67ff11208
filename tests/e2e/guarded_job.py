"""What test_guarded_bottle.py runs in a bottle: a guarded Python, its requests, and native code beside its guard.

python guarded_job.py HOST:PORT ADDRESS:PORT      prints what became of each, then waits for a line
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
import urllib.error
import urllib.request

from agentmon.guard import EgressGuard


def request(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.status)
    except OSError as error:
        return repr(error)


def echo(host: str, port: int) -> str:
    with socket.create_connection((host, port), 10) as sock:
        sock.sendall(b"hello")
        return "echoed" if sock.recv(100) else "closed"


def past_the_guard(address: str, port: int) -> str:
    """connect(2) of libc, called through ctypes: Python's audit hook sees none of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket() as sock:
        to = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(address) + bytes(8)
        if libc.connect(sock.fileno(), to, len(to)) == 0:
            return "connected"
        return errno.errorcode[ctypes.get_errno()]


def main(named: str, numeric: str) -> None:
    host, port = named.split(":")
    address, number = numeric.split(":")
    EgressGuard.install(allow=["www.allowed.example:443", named, numeric])
    print("vouching", EgressGuard.status().vouching, flush=True)
    print("https", request("https://www.allowed.example/"), flush=True)
    print("direct", echo(host, int(port)), flush=True)
    print("ctypes", past_the_guard(address, int(number)), flush=True)
    input()


if __name__ == "__main__":
    main(*sys.argv[1:])
