"""The kernel's cookie of a network namespace (SO_NETNS_COOKIE, "net: introduce SO_NETNS_COOKIE", v5.14): what
bpf_get_netns_cookie returns to a program. Needs CAP_SYS_ADMIN to look into another namespace."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71


def netns_cookie(path: str) -> int:
    """Cookie of the namespace bound at `path`. Enters it in a thread of its own: no thread of ours is ever left there.

    :raises OSError: no such namespace, or no privilege.
    """
    result: list[int | OSError] = []

    def enter() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(fd, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns: {path}")
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
                result.append(struct.unpack("=Q", raw)[0])
            finally:
                os.close(fd)
        except OSError as e:
            result.append(e)

    thread = threading.Thread(target=enter, name="netns-cookie")
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]
