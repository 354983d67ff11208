"""What the kernel tells of programs that begin, at once: the process connector (edge: netlink, CAP_NET_ADMIN).

Layouts: linux/connector.h (struct cn_msg), linux/cn_proc.h (struct proc_event), behind a netlink(7) header. It is told
in the host's own user and PID namespaces only, and not on every kernel (CONFIG_PROC_EVENTS).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import NamedTuple

_CONNECTOR = 11  # NETLINK_CONNECTOR
_PROC = 1  # CN_IDX_PROC and CN_VAL_PROC
_LISTEN = 1  # PROC_CN_MCAST_LISTEN
_EXEC = 0x2  # PROC_EVENT_EXEC
_DONE = 3  # NLMSG_DONE
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_MESSAGE = struct.Struct("=IIIIHH")  # idx, val, seq, ack, len, flags
_EVENT = struct.Struct("=IIQII")  # what, cpu, timestamp_ns (CLOCK_MONOTONIC), pid, tgid of an exec
_BEFORE = _HEADER.size + _MESSAGE.size
_ROOM = 1 << 20
_MOST = 1000  # messages in one go


class Exec(NamedTuple):
    """A process runs another program since `at_ns` (CLOCK_REALTIME)."""

    pid: int
    at_ns: int


class Execs:
    """:raises OSError: this kernel, or this place, does not tell."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _CONNECTOR)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
            self._socket.bind((0, _PROC))
            body = _MESSAGE.pack(_PROC, _PROC, 0, 0, 4, 0) + struct.pack("=I", _LISTEN)
            self._socket.send(_HEADER.pack(_HEADER.size + len(body), _DONE, 0, 0, os.getpid()) + body)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when something was told."""
        return self._socket.fileno()

    def read(self) -> list[Exec]:
        """What waits. What found no room is lost: whoever asks looks from time to time, too."""
        to_real_ns = time.time_ns() - time.monotonic_ns()
        found = []
        for _ in range(_MOST):
            try:
                data, (sender, _groups) = self._socket.recvfrom(4096)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: some were lost
                continue
            with contextlib.suppress(struct.error):
                what, _cpu, at_ns, _pid, tgid = _EVENT.unpack_from(data, _BEFORE)
                if sender == 0 and what == _EXEC:
                    found.append(Exec(tgid, at_ns + to_real_ns))
        return found

    def close(self) -> None:
        self._socket.close()
