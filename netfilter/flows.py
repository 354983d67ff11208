"""Live flows: conntrack entries (through pyroute2) and TCP sockets (inet_diag, SOCK_DESTROY). Needs CAP_NET_ADMIN.

Which flows a policy still allows is decided by `permitted`, which is pure.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from netfilter import netns
from netfilter.errors import KernelRefused
from netfilter.spec import EPOCH_MASK, Address, BottleRules, Direct, Mode

_PROTOS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}


@dataclass(frozen=True, slots=True)
class Flow:
    """One conntrack entry by its original direction. `proto` is the number, ports 0 where the protocol has none."""

    source: Address
    destination: Address
    proto: int
    source_port: int
    destination_port: int
    mark: int = 0

    def attributes(self) -> Any:
        ports = {"sport": self.source_port, "dport": self.destination_port} if self.proto in _PROTOS else {}
        return _tuple(self.source, daddr=str(self.destination), proto=self.proto, **ports)


def permitted(flow: Flow, rules: BottleRules) -> bool:
    """Whether a live flow may go on under `rules`; an address learned earlier counts although its time is over."""
    proto = _PROTOS.get(flow.proto)
    if proto is None or rules.mode is Mode.CLOSED:
        return False
    for service in rules.services:
        if (service.address, service.proto, service.port) == (flow.destination, proto, flow.destination_port):
            return service.survives_cut or rules.mode is not Mode.CUT
    if rules.mode is Mode.CUT or _covered(flow, proto, rules.deny):
        return False
    if rules.mode is Mode.OBSERVE or _covered(flow, proto, rules.allow):
        return True
    return any(
        entry.address == flow.destination and entry.proto == proto and _in(flow.destination_port, entry.ports)
        for entry in rules.learned
    )


def _covered(flow: Flow, proto: str, entries: Iterable[Direct]) -> bool:
    return any(
        entry.proto == proto and flow.destination in entry.network and _in(flow.destination_port, entry.ports)
        for entry in entries
        if entry.network.version == flow.destination.version
    )


def _in(port: int, ports: Iterable[tuple[int, int]]) -> bool:
    return any(low <= port <= high for low, high in ports)


class Conntrack:
    """The conntrack table of the namespace of the thread that made it."""

    def __init__(self) -> None:
        self._sockets = {4: NFCTSocket(socket.AF_INET), 6: NFCTSocket(socket.AF_INET6)}

    def from_source(self, address: Address) -> list[Flow]:
        """Every entry whose original source is `address`; the kernel filters (from v5.8)."""
        return self._dump(address.version, tuple_orig=_tuple(address))

    def _dump(self, version: int, **which: Any) -> list[Flow]:
        try:
            return [f for m in self._sockets[version].dump(**which) if (f := _flow(m)) is not None]
        except NetlinkError as e:
            raise KernelRefused(int(e.code or errno.EIO), "list conntrack entries") from e

    def remark(self, flow: Flow, epoch: int) -> bool:
        """Carry `flow` over into `epoch`; False: it has ended meanwhile."""
        return self._change(flow, "set", mark=(flow.mark & ~EPOCH_MASK) | epoch)

    def delete(self, flow: Flow) -> bool:
        """False: it has ended meanwhile."""
        return self._change(flow, "del")

    def _change(self, flow: Flow, verb: str, **values: Any) -> bool:
        sock = self._sockets[flow.source.version]
        try:
            sock.entry(verb, tuple_orig=flow.attributes(), **values)
        except NetlinkError as e:
            if int(e.code or 0) == errno.ENOENT:
                return False
            raise KernelRefused(int(e.code or errno.EIO), f"{verb} conntrack entry {flow}") from e
        return True

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()


def _tuple(source: Address, **rest: Any) -> Any:
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    return NFCTAttrTuple(family=family, saddr=str(source), **rest)


def _flow(message: Any) -> Flow | None:
    original = message.get_attr("CTA_TUPLE_ORIG")
    ip, proto = original.get_attr("CTA_TUPLE_IP"), original.get_attr("CTA_TUPLE_PROTO")
    source = ip.get_attr("CTA_IP_V4_SRC") or ip.get_attr("CTA_IP_V6_SRC")
    destination = ip.get_attr("CTA_IP_V4_DST") or ip.get_attr("CTA_IP_V6_DST")
    if source is None or destination is None or proto is None:
        return None
    return Flow(
        ipaddress.ip_address(source),
        ipaddress.ip_address(destination),
        int(proto.get_attr("CTA_PROTO_NUM") or 0),
        int(proto.get_attr("CTA_PROTO_SRC_PORT") or 0),
        int(proto.get_attr("CTA_PROTO_DST_PORT") or 0),
        int(message.get_attr("CTA_MARK") or 0),
    )


# ── sockets (linux/inet_diag.h, linux/sock_diag.h) ───────────────────────────

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, ext, states
_MESSAGE = struct.Struct("=BBBB")
_ID_BYTES = 48
_STATES = 0xFFFF & ~(1 << 10) & ~(1 << 7)  # all but LISTEN and CLOSE


def destroy_sockets(namespace: str, wanted: Sequence[Flow] | None) -> int:
    """Kill the TCP sockets in `namespace` that belong to `wanted` flows, or all connected ones (None); how many.

    Their owners see ECONNABORTED at once. A namespace that has gone has no sockets.
    """
    ports = None if wanted is None else {(f.destination, f.source_port, f.destination_port) for f in wanted}
    try:
        return netns.inside(namespace, lambda: _destroy(ports))
    except KernelRefused as e:
        if e.errno == errno.ENOENT:
            return 0
        raise


def _destroy(ports: set[tuple[Address, int, int]] | None) -> int:
    killed = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            for raw, remote, source_port, destination_port in _sockets(sock, family):
                if remote.is_loopback:
                    continue
                if ports is None or (remote, source_port, destination_port) in ports:
                    killed += _kill(sock, family, raw)
    return killed


def _sockets(sock: socket.socket, family: int) -> list[tuple[bytes, Address, int, int]]:
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _STATES) + bytes(_ID_BYTES)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    sock.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + body)
    found: list[tuple[bytes, Address, int, int]] = []
    while True:
        data = sock.recv(1 << 18)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if kind != _SOCK_DIAG_BY_FAMILY:
                return found  # NLMSG_DONE, or an error: no such family here
            start = at + _HEADER.size + _MESSAGE.size
            raw = data[start : start + _ID_BYTES]
            sport, dport = struct.unpack_from(">HH", raw)
            packed = raw[20:24] if family == socket.AF_INET else raw[20:36]
            remote = ipaddress.ip_address(packed)
            mapped = getattr(remote, "ipv4_mapped", None)
            found.append((raw, mapped or remote, sport, dport))
            at += (length + 3) & ~3


def _kill(sock: socket.socket, family: int, raw: bytes) -> int:
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _STATES) + raw
    flags = _NLM_F_REQUEST | _NLM_F_ACK
    sock.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DESTROY, flags, 2, 0) + body)
    (number,) = struct.unpack_from("=i", sock.recv(1 << 16), _HEADER.size)
    if number in {0, -errno.ENOENT}:
        return 1 if number == 0 else 0
    raise KernelRefused(-number, "destroy socket")
