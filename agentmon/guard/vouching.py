"""Telling the kernel: this socket may go there, the guard has seen it. Private socket options, three of them.

    setsockopt(fd, AM_SOL, REGISTER,   "=Q"        token)                           this process is guarded until exec
    setsockopt(fd, AM_SOL, UNREGISTER, "=Q"        token)
    setsockopt(fd, AM_SOL, VOUCH,      "=16sHBxI"  addr16, port, protocol, 0)       before each connect and send

A cgroup program of agentmon swallows them (ebpf/bpf); a kernel without it answers ENOPROTOOPT (EOPNOTSUPP for the
AF_UNIX socket that registers), and then nothing is asked again in this process. EPERM means that vouching is active,
and this one refused. Any other error (a closed socket, no descriptor left) is that call's own: the next one is asked
again. Forked children stay registered; exec ends it. A socket keeps its last four destinations.
"""

from __future__ import annotations

import _socket
import struct
from errno import ENOPROTOOPT, EOPNOTSUPP, EPERM
from os import urandom

from agentmon.guard.targets import NUMBERS, addr16

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentmon.guard.targets import Address

AM_SOL = 24941
REGISTER, UNREGISTER, VOUCH = 1, 2, 3
MAX_DESTINATIONS = 4
_setsockopt = _socket.socket.setsockopt
_pack_vouch = struct.Struct("=16sHBxI").pack

UNASKED, INACTIVE, ACTIVE, REFUSED = "unasked", "inactive", "active", "refused"


def value_of(address: Address, port: int, proto: str) -> bytes:
    """The 24 bytes of one destination."""
    return _pack_vouch(addr16(address), port, NUMBERS[proto], 0)


class Voucher:
    """This process's registration. `status`: unasked · inactive (no such kernel program) · active · refused."""

    __slots__ = ("_token", "failed", "status")

    def __init__(self) -> None:
        self._token = struct.pack("=Q", int.from_bytes(urandom(8), "little") | 1)
        self.status = UNASKED
        self.failed = 0

    def register(self) -> None:
        """Once for each process; only where the kernel knows nothing of it is nothing ever asked again."""
        if self.status == INACTIVE:
            return
        self.status = self._ask(REGISTER)

    def unregister(self) -> None:
        if self.status == ACTIVE:
            self._ask(UNREGISTER)
            self.status = UNASKED

    def vouch(self, sock: _socket.socket, values: tuple[bytes, ...]) -> None:
        """Mark `sock` for these destinations. A refusal by the kernel is its own to enforce: the call goes on."""
        if self.status == UNASKED:  # registering failed for want of a descriptor, say
            self.register()
        if self.status != ACTIVE:
            return
        for value in values:
            try:
                _setsockopt(sock, AM_SOL, VOUCH, value)
            except OSError as e:
                self.failed += 1
                if e.errno == ENOPROTOOPT:
                    self.status = INACTIVE
                    return

    def _ask(self, option: int) -> str:
        try:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        except OSError:
            return self._missed()
        try:
            _setsockopt(sock, AM_SOL, option, self._token)
        except OSError as e:
            if e.errno in (ENOPROTOOPT, EOPNOTSUPP):
                return INACTIVE
            return REFUSED if e.errno == EPERM else self._missed()
        finally:
            sock.close()
        return ACTIVE

    def _missed(self) -> str:
        self.failed += 1
        return UNASKED
