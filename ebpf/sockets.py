"""Connected sockets of a cgroup, listed and ended: what is older than the programs and no hook sees any more.

sock_diag(7): each socket tells the cgroup it was made in (INET_DIAG_CGROUP_ID, v5.9, "inet_diag: support for
retrieving cgroup id"). It sees one network namespace, which a thread of its own enters. Privilege: CAP_SYS_ADMIN (to
enter), CAP_NET_ADMIN there (to end).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, cast

from ebpf import cgroup
from ebpf.errors import BpfError
from ebpf.events import address
from ebpf.spec import Address

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DESTROY = 20, 21
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_CGROUP_ID = 21  # INET_DIAG_CGROUP_ID
_CONNECTED = {"tcp": (6, 0b1111 << 1 | 1 << 8 | 1 << 9 | 1 << 11), "udp": (17, 1 << 1)}
_HEADER = struct.Struct("=IHHII")
_REQUEST_V2 = struct.Struct("=BBBxI48s")  # struct inet_diag_req_v2
_MESSAGE = struct.Struct("=BBxx48sIIIII")  # struct inet_diag_msg
_ID = struct.Struct(">HH16s16s")  # the front of struct inet_diag_sockid
_ATTRIBUTE = struct.Struct("=HH")
_CLONE_NEWNET = 0x4000_0000
_MAPPED = b"\0" * 10 + b"\xff\xff"
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


class Connection(NamedTuple):
    """A TCP connection, or a connected UDP socket. `raw` names it to the kernel."""

    proto: Literal["tcp", "udp"]
    source: tuple[Address, int]
    destination: tuple[Address, int]
    uid: int
    inode: int
    cgroup_id: int
    family: int
    raw: bytes


def connected(cgroup_path: str | Path, netns: str | Path) -> list[Connection]:
    """Of sockets made in the cgroup or below it, those that are connected, in one network namespace.

    :param netns: path of the namespace, such as /proc/PID/ns/net.
    :raises BpfError: the namespace cannot be entered, or the kernel does not list sockets.
    """
    wanted = {cgroup.cgroup_id(d) for d in (Path(cgroup_path), *Path(cgroup_path).glob("**/")) if d.is_dir()}
    return [c for c in all_connected(netns) if c.cgroup_id in wanted]


def all_connected(netns: str | Path) -> list[Connection]:
    """The same of every cgroup, those that have been removed included."""
    return _inside(netns, lambda: [c for proto in _CONNECTED for c in _dump(cast(Literal["tcp", "udp"], proto))])


def destroy(connections: list[Connection], netns: str | Path) -> int:
    """End them as ss -K does: the process sees ECONNABORTED. How many were still there.

    :raises BpfError: the kernel was built without CONFIG_INET_DIAG_DESTROY, or the privilege is missing.
    """
    return _inside(netns, lambda: sum(_destroy(c) for c in connections))


def _dump(proto: Literal["tcp", "udp"]) -> Iterator[Connection]:
    number, states = _CONNECTED[proto]
    with _open() as link:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST_V2.pack(family, number, 0, states, bytes(48))
            link.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST | _DUMP, 1, 0) + body)
            for message in _answers(link, f"listing {proto} sockets"):
                yield parse(proto, message)


def parse(proto: Literal["tcp", "udp"], message: bytes) -> Connection:
    """One struct inet_diag_msg with its attributes. Pure."""
    family, _state, raw, _expires, _rqueue, _wqueue, uid, inode = _MESSAGE.unpack_from(message)
    sport, dport, source, destination = _ID.unpack_from(raw)
    return Connection(
        proto,
        (_address(family, source), sport),
        (_address(family, destination), dport),
        uid,
        inode,
        _cgroup_of(message[_MESSAGE.size :]),
        family,
        raw,
    )


def _cgroup_of(attributes: bytes) -> int:
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        size, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if kind == _CGROUP_ID:
            return int(struct.unpack_from("=Q", attributes, at + _ATTRIBUTE.size)[0])
        at += max((size + 3) & ~3, _ATTRIBUTE.size)
    return 0


def _address(family: int, raw: bytes) -> IPv4Address | IPv6Address:
    return address(_MAPPED + raw[:4] if family == socket.AF_INET else raw)


def _destroy(connection: Connection) -> bool:
    number, states = _CONNECTED[connection.proto]
    body = _REQUEST_V2.pack(connection.family, number, 0, states, connection.raw)
    with _open() as link:
        link.send(_HEADER.pack(_HEADER.size + len(body), _DESTROY, _REQUEST | _ACK, 1, 0) + body)
        try:
            for _ in _answers(link, f"ending a {connection.proto} socket"):
                pass
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
    return True


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _SOCK_DIAG)


def _answers(link: socket.socket, operation: str) -> Iterator[bytes]:
    """Payloads up to the end of a dump or the acknowledgement."""
    while True:
        data = link.recv(1 << 18)
        at = 0
        while at + _HEADER.size <= len(data):
            size, kind, *_ = _HEADER.unpack_from(data, at)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (number,) = struct.unpack_from("=i", data, at + _HEADER.size)
                if number:
                    raise BpfError(
                        -number, operation, "use a kernel with CONFIG_INET_DIAG and CONFIG_INET_DIAG_DESTROY"
                    )
                return
            yield data[at + _HEADER.size : at + size]
            at += (size + 3) & ~3


def _inside(netns: str | Path, what: Callable[[], _T]) -> _T:
    """Call `what` in a thread that has entered the namespace, and ends with it."""

    def run() -> _T:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(fd)
        return what()

    with ThreadPoolExecutor(1, "ebpf-netns") as thread:
        try:
            return thread.submit(run).result()
        except BpfError:
            raise
        except OSError as error:
            raise BpfError(error.errno or 0, f"looking into the namespace {netns}") from error
