"""What a socket and an address tuple mean: family, protocol, host, port. Pure; nothing is looked up.

Taken from the C structure and from exact types, never from what a subclass says of itself: CPython's own conversion
has happened before the audit event, so a host that is a `str` subclass, or a port that computes itself anew each time
it is asked, must not show the guard something else.
"""

from __future__ import annotations

import _socket
from ipaddress import AddressValueError, IPv4Address, IPv6Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address

family_of = _socket.socket.family.__get__
type_of = _socket.socket.type.__get__
proto_of = _socket.socket.proto.__get__

AF_UNIX, AF_INET, AF_INET6 = _socket.AF_UNIX, _socket.AF_INET, _socket.AF_INET6
INET = frozenset({AF_INET, AF_INET6})
# Not egress: files of this machine (the file system and the kernel's unix hook hold them), and the kernel itself.
LOCAL = frozenset({AF_UNIX, getattr(_socket, "AF_NETLINK", AF_UNIX), getattr(_socket, "AF_ALG", AF_UNIX)})

TCP, UDP = 6, 17
_MPTCP = 262
_PROTOCOLS = {
    (_socket.SOCK_STREAM, 0): "tcp",
    (_socket.SOCK_STREAM, TCP): "tcp",
    (_socket.SOCK_STREAM, _MPTCP): "tcp",
    (_socket.SOCK_DGRAM, 0): "udp",
    (_socket.SOCK_DGRAM, UDP): "udp",
}
NUMBERS = {"tcp": TCP, "udp": UDP}
_MAPPED = b"\0" * 10 + b"\xff\xff"


class Unreadable(ValueError):
    """An address that cannot be judged as what CPython would make of it; the text says why."""


def protocol(kind: int, proto: int) -> str | None:
    """ "tcp" or "udp"; None for raw, ping, UDP-Lite, SCTP sockets and others."""
    return _PROTOCOLS.get((kind, proto))


def host_text(host: object, family: int) -> str:
    """The host as CPython will look it up: ASCII, IDNA 2003 for what is not; "" is the unspecified address.

    :raises Unreadable: for a host that is no text, or has no such form.
    """
    if isinstance(host, bytes):
        raw = bytes.decode(host, "latin-1").encode("latin-1")  # its own bytes, whatever a subclass makes of them
    elif isinstance(host, str):
        text = host if type(host) is str else _plain(host)
        if text.isascii():
            return text or _unspecified(family)
        try:
            raw = text.encode("idna")
        except UnicodeError:
            raise Unreadable(f"host {text!r} has no ASCII form") from None
    else:
        # bytearray too: another thread may write to it between the check and the call
        raise Unreadable(f"the host is {type(host).__name__}, not text")
    try:
        return raw.decode("ascii") or _unspecified(family)
    except UnicodeDecodeError:
        raise Unreadable(f"host {raw!r} is not ASCII") from None


def _plain(host: str) -> str:
    """The text of a `str` subclass. The idna codec calls its `encode`, so that must be str's own."""
    kind = type(host)
    if kind.encode is not str.encode or kind.__getattribute__ is not str.__getattribute__:
        raise Unreadable(f"the host is {kind.__name__}, which encodes itself")
    return str.__str__(host)


def _unspecified(family: int) -> str:
    return "::" if family == AF_INET6 else "0.0.0.0"


def host_and_port(address: object, family: int) -> tuple[str, int]:
    """From the address of an AF_INET or AF_INET6 socket. :raises Unreadable: for anything but text and a number."""
    if not isinstance(address, tuple) or tuple.__len__(address) < 2:
        raise Unreadable("the address is no (host, port)")
    host, port = tuple.__getitem__(address, 0), tuple.__getitem__(address, 1)
    if not isinstance(port, int):
        raise Unreadable(f"port {port!r} is {type(port).__name__}, not a number")
    text = host_text(host, family)
    return ("255.255.255.255" if text == "<broadcast>" else text), int.__index__(port)


def number(port: object) -> int:
    """A port of getaddrinfo, for messages: a number, its text, or 0 for a service's name and what is no port."""
    if isinstance(port, int):
        value = int.__index__(port)
    else:
        value = (
            int(port) if isinstance(port, str | bytes) and port.isascii() and port.isdigit() and len(port) <= 5 else 0
        )
    return value if 0 <= value <= 65535 else 0


def literal(text: str) -> Address | None:
    """The address that `text` plainly is; a mapped IPv4 address as IPv4. None for names, and for odd spellings."""
    try:
        if ":" not in text:
            return IPv4Address(text)
        address = IPv6Address(text)
    except AddressValueError:
        return None
    return address.ipv4_mapped or address


def addr16(address: Address) -> bytes:
    """Sixteen bytes in network order, IPv4 as ::ffff:a.b.c.d: the kernel's form, and the key of learned names."""
    return _MAPPED + address.packed if address.version == 4 else address.packed
