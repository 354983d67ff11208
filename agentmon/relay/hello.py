"""The server name in a TLS ClientHello: an incremental parser that takes bytes as they come and decides strictly.

    record    = type 22, version 3.x, length (1 … 2^14), fragment          RFC 8446, 5.1 (fragments may split a message)
    message   = type 1, length (24 bits), ClientHello                      RFC 8446, 4
    hello     = version, random[32], session_id<0..32>, ciphers<2..>, compression<1..255>, extensions<0..>
    extension = type, data; type 0: list of (name_type, name<1..>)         RFC 6066, 3

Whatever a server might read differently from us is refused: two names, two extensions of a type, lengths that do
not add up, bytes after the hello within its record, a name that is not in canonical form or is an address.
"""

from __future__ import annotations

from agentmon.policy.rules import RuleError, canonical_host

MAX_BYTES = 16 << 10  # of the raw stream up to the end of the hello

ALERT_UNEXPECTED = 10
ALERT_DECODE = 50
ALERT_NO_EXTENSION = 109
ALERT_UNRECOGNIZED_NAME = 112
ALERT_ACCESS_DENIED = 49
ALERT_INTERNAL = 80

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0


class BadHello(Exception):
    """`reason` is the event's (not-tls, no-sni, bad-sni); `alert` the TLS alert to send, 0: not TLS."""

    def __init__(self, reason: str, alert: int, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.alert = alert


def alert_record(description: int) -> bytes:
    """A fatal alert as a client of any TLS version reads it before the handshake."""
    return bytes((21, 3, 3, 0, 2, 2, description))


class HelloReader:
    """feed() everything that arrives; it returns the server name (lower case) once the hello is complete, None before.

    `raw` holds every byte fed: what must be sent upstream first.
    """

    def __init__(self) -> None:
        self.raw = bytearray()
        self._at = 0  # start of the first record not yet taken
        self._message = bytearray()

    def feed(self, data: bytes) -> str | None:
        """:raises BadHello: this connection is not to be relayed."""
        self.raw += data
        while self._take_record():
            if len(self._message) >= 4:
                if self._message[0] != _CLIENT_HELLO:
                    raise BadHello("not-tls", ALERT_UNEXPECTED, "the first handshake message is no ClientHello")
                length = int.from_bytes(self._message[1:4], "big")
                if length > MAX_BYTES:
                    raise _malformed(f"a ClientHello of {length} bytes")
                if len(self._message) > 4 + length:
                    raise _malformed("bytes after the ClientHello in its record")
                if len(self._message) == 4 + length:
                    return server_name(bytes(self._message[4:]))
        if len(self.raw) > MAX_BYTES:
            raise _malformed(f"no complete ClientHello within {MAX_BYTES} bytes")
        return None

    def _take_record(self) -> bool:
        """Append one whole record's fragment to the message; False if it is not there yet."""
        head = self.raw[self._at : self._at + 5]
        if head and head[0] != _HANDSHAKE:
            raise BadHello("not-tls", 0 if self._at == 0 else ALERT_UNEXPECTED, "no TLS handshake record")
        if len(head) > 1 and head[1] != 3:
            raise BadHello("not-tls", 0, "no TLS record version")
        if len(head) < 5:
            return False
        length = int.from_bytes(head[3:5], "big")
        if not 1 <= length <= 1 << 14:
            raise _malformed(f"a record of {length} bytes")
        end = self._at + 5 + length
        if end > MAX_BYTES:
            raise _malformed(f"no complete ClientHello within {MAX_BYTES} bytes")
        if len(self.raw) < end:
            return False
        self._message += self.raw[self._at + 5 : end]
        self._at = end
        return True


def _malformed(text: str) -> BadHello:
    return BadHello("not-tls", ALERT_DECODE, text)


class _Cursor:
    """Reads fields of fixed and counted length; :raises BadHello: when the data ends early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _malformed("a length in the ClientHello points past its end")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def counted(self, width: int, least: int, most: int) -> bytes:
        """A field preceded by its length."""
        length = self.number(width)
        if not least <= length <= most:
            raise _malformed(f"a field of {length} bytes where {least} to {most} are allowed")
        return self.take(length)


def server_name(hello: bytes) -> str:
    """The one host name in a ClientHello's body.

    :raises BadHello: there is none, or not exactly one that can be compared.
    """
    body = _Cursor(hello)
    if body.take(2)[0] != 3:
        raise _malformed("a ClientHello of an unknown version")
    body.take(32)
    body.counted(1, 0, 32)
    if len(body.counted(2, 2, 0xFFFE)) % 2:
        raise _malformed("an odd list of cipher suites")
    body.counted(1, 1, 255)
    extensions = _Cursor(body.counted(2, 0, 0xFFFF) if body.left else b"")
    if body.left:
        raise _malformed("bytes after the extensions")
    found: bytes | None = None
    seen: set[int] = set()
    while extensions.left:
        kind = extensions.number(2)
        data = extensions.counted(2, 0, 0xFFFF)
        if kind in seen:
            raise _malformed(f"extension {kind} twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            found = data
    if found is None:
        raise BadHello("no-sni", ALERT_NO_EXTENSION, "the ClientHello names no server")
    return _host_name(found)


def _host_name(extension: bytes) -> str:
    outer = _Cursor(extension)
    names = _Cursor(outer.counted(2, 1, 0xFFFF))
    if outer.left:
        raise _malformed("bytes after the server name list")
    kind = names.number(1)
    name = names.counted(2, 1, 0xFFFF)
    if kind != _HOST_NAME or names.left:
        raise _bad_name("the server name list does not hold exactly one host name")
    try:
        text = name.decode("ascii").lower()
        canonical = canonical_host(text)
    except UnicodeDecodeError:
        raise _bad_name("the server name is no host name") from None
    except RuleError as e:
        raise _bad_name(e.message) from None
    if canonical != text:
        raise _bad_name("the server name is not in canonical form")
    return canonical


def _bad_name(text: str) -> BadHello:
    return BadHello("bad-sni", ALERT_UNRECOGNIZED_NAME, text)
