"""TCP sockets of one namespace: listed by inet_diag, ended by SOCK_DESTROY. Needs CAP_NET_ADMIN.

Formats: linux/inet_diag.h, sock_diag(7). Owners of a destroyed socket see ECONNABORTED at once.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AF_INET, AF_INET6, IPPROTO_TCP

from pyroute2.netlink.diag import (
    SOCK_DESTROY,
    SOCK_DIAG_BY_FAMILY,
    SS_ALL,
    SS_CLOSE,
    SS_LISTEN,
    inet_diag_req,
)

from netfilter.netns.wire import ACK, HEADER, REQUEST, SOCK_DIAG, Netlink, Request, message
from netfilter.spec import Address

_REQUEST = struct.Struct("=BBBxI")  # family, protocol, ext, states
_ID = slice(4, 52)  # struct inet_diag_sockid in struct inet_diag_msg
_STATES = SS_ALL & ~(1 << SS_LISTEN) & ~(1 << SS_CLOSE)


class Sockets:
    """The TCP sockets of the namespace of the thread that made it."""

    def __init__(self) -> None:
        self._wire = Netlink(SOCK_DIAG)

    def destroy(self, ends: Callable[[Address, int], bool]) -> int:
        """Kill each connected socket for whose peer `ends(address, port)` says so; loopback is left alone. How many."""
        return self._destroy(lambda a, port: not a.is_loopback and not a.is_unspecified and ends(a, port))

    def destroy_at(self, address: str, port: int) -> int:
        """Kill the sockets connected to this one peer, loopback or not. How many."""
        return self._destroy(lambda a, p: (str(a), p) == (address, port))

    def _destroy(self, ends: Callable[[Address, int], bool]) -> int:
        requests = []
        for family in (AF_INET, AF_INET6):
            for body in self._wire.dump(_listing(family)):
                if body[0] == family and ends(*_peer(family, body[_ID])):
                    requests.append(_destroying(family, body[_ID]))
        return self._wire.run(requests)

    def close(self) -> None:
        self._wire.close()


def _listing(family: int) -> Request:
    absent = (errno.ENOENT, errno.EAFNOSUPPORT, errno.EINVAL)  # no such family here
    return message(
        inet_diag_req, SOCK_DIAG_BY_FAMILY, 0, "list sockets", absent,
        sdiag_family=family, sdiag_protocol=IPPROTO_TCP, idiag_states=_STATES, idiag_src=0, idiag_dst=0,
    )  # fmt: skip


def _peer(family: int, ident: bytes) -> tuple[Address, int]:
    (port,) = struct.unpack_from(">H", ident, 2)
    if family == AF_INET:
        return IPv4Address(ident[20:24]), port
    six = IPv6Address(ident[20:36])
    return (ip_address(six.ipv4_mapped) if six.ipv4_mapped is not None else six), port


def _destroying(family: int, ident: bytes) -> Request:
    body = _REQUEST.pack(family, IPPROTO_TCP, 0, _STATES) + ident
    data = HEADER.pack(HEADER.size + len(body), SOCK_DESTROY, REQUEST | ACK, 0, 0) + body
    return Request("destroy socket", data, (errno.ENOENT, errno.EINVAL))
