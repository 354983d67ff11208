"""An upstream DNS server that lies, in a World: what it does is the first label of the name it is asked for."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from tests.support.names import STRANGER, WEB, World

EVIL = "203.0.113.66"
POINTER = b"\xc0\x0c"
MANNERS: dict[str, Callable[..., None]] = {}


def record(owner: bytes, kind: int, data: bytes, ttl: int = 60) -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def address(text: str, owner: bytes = POINTER, ttl: int = 60) -> bytes:
    return record(owner, 1, socket.inet_aton(text), ttl)


def labels(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


class Asked:
    """One query: reply() makes a response to it, the question's letters as they came."""

    def __init__(self, data: bytes, send: Callable[[bytes], None], udp: bool, turn: int) -> None:
        end = 12
        while data[end]:
            end += data[end] + 1
        self.data, self.send, self.udp, self.turn = data, send, udp, turn
        self.section = data[12 : end + 5]
        self.name = ".".join(_labels(self.section)).lower()

    def reply(self, *records: bytes, count: int = -1, flags: int = 0x8180, section: bytes = b"") -> bytes:
        counts = struct.pack(">5H", flags, 1, len(records) if count < 0 else count, 0, 0)
        return self.data[:2] + counts + (section or self.section) + b"".join(records)

    def over_tcp(self) -> bytes:
        return self.reply(flags=0x8380)


def _labels(section: bytes) -> Iterator[str]:
    at = 0
    while section[at]:
        yield section[at + 1 : at + 1 + section[at]].decode()
        at += section[at] + 1


def manner(work: Callable[..., None]) -> Callable[..., None]:
    MANNERS[work.__name__] = work
    return work


class HostileDns:
    """`asked`: names in the order in which they came, `raw`: their queries."""

    def __init__(self, world: World, where: str) -> None:
        self.asked: list[str] = []
        self.raw: list[bytes] = []
        self.turns: Counter[str] = Counter()
        self.elsewhere = world.udp(STRANGER, 53)
        self.other_port = world.udp(where, 5353)
        self._udp, self._tcp = world.udp(where, 53), world.listen(where, 53)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=f) for f in (self._serve_udp, self._serve_tcp)]
        for sock in (self._udp, self._tcp):
            sock.settimeout(0.2)
        for thread in self._threads:
            thread.start()

    def _serve_udp(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                data, peer = self._udp.recvfrom(4096)
                self._one(data, lambda reply, peer=peer: self._udp.sendto(reply, peer), peer)

    def _serve_tcp(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                client, _ = self._tcp.accept()
                thread = threading.Thread(target=self._conversation, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _conversation(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(5)
            size = int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big")
            self._one(client.recv(size, socket.MSG_WAITALL), client.sendall, None)

    def _one(self, data: bytes, send: Callable[[bytes], None], peer: tuple[str, int] | None) -> None:
        if peer is None:
            plain = send
            send = lambda reply: plain(len(reply).to_bytes(2, "big") + reply)  # noqa: E731
        asked = Asked(data, send, peer is not None, 0)
        self.turns[asked.name] += 1
        asked.turn = self.turns[asked.name]
        self.asked.append(asked.name)
        self.raw.append(data)
        first = asked.name.partition(".")[0].partition("-")[0]
        MANNERS.get(first, honest)(self, asked, peer, plain if peer is None else send)

    def count(self, manner: str) -> int:
        """Questions for names of this manner so far."""
        return sum(name.partition(".")[0].partition("-")[0] == manner for name in self.asked.copy())

    def wait(self, seconds: float) -> None:
        self._over.wait(seconds)

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
        for sock in (self._udp, self._tcp, self.elsewhere, self.other_port):
            sock.close()


def honest(server: HostileDns, asked: Asked, *_: object) -> None:
    asked.send(asked.reply(address(WEB)) if asked.section[-4:-2] == b"\0\1" else asked.reply())


@manner
def elsewhere(server: HostileDns, asked: Asked, peer: tuple[str, int], *_: object) -> None:
    """The right question and number, but from another address and another port."""
    forged = asked.reply(address(EVIL))
    for sock in (server.elsewhere, server.other_port):
        sock.sendto(forged, peer)
    server.wait(0.05)
    asked.send(asked.reply(address(WEB)))


@manner
def guess(server: HostileDns, asked: Asked, *_: object) -> None:
    """Everything right but for the letters' case: what one sends who cannot read the question."""
    if asked.udp:
        asked.send(asked.reply(address(EVIL), section=labels(asked.name) + asked.section[-4:]))
    else:
        asked.send(asked.reply(address(WEB)))


@manner
def chain(server: HostileDns, asked: Asked, *_: object) -> None:
    """An alias that leads to the next one, for ever, each to be asked for."""
    number = int(asked.name.partition(".")[0].partition("-")[2])
    asked.send(asked.reply(record(POINTER, 5, labels(f"chain-{number + 1}.hostile.example"))))


@manner
def circle(server: HostileDns, asked: Asked, *_: object) -> None:
    asked.send(asked.reply(record(POINTER, 5, POINTER)))


@manner
def pointers(server: HostileDns, asked: Asked, *_: object) -> None:
    at = 12 + len(asked.section)
    asked.send(asked.reply(struct.pack(">H", 0xC000 | at + 2) + struct.pack(">H", 0xC000 | at) + bytes(20)))


@manner
def extra(server: HostileDns, asked: Asked, *_: object) -> None:
    """Records that nobody asked for, beside a true one."""
    asked.send(asked.reply(address(EVIL, labels("victim.hostile.example")), address(WEB)))


@manner
def stray(server: HostileDns, asked: Asked, *_: object) -> None:
    """An alias to a name that only the bottle could want, with its address."""
    asked.send(
        asked.reply(
            record(POINTER, 5, labels("victim.hostile.example")), address(WEB, labels("victim.hostile.example"))
        )
    )


@manner
def many(server: HostileDns, asked: Asked, *_: object) -> None:
    asked.send(asked.over_tcp() if asked.udp else asked.reply(address(EVIL) * 4000, count=10_000))


@manner
def hundreds(server: HostileDns, asked: Asked, *_: object) -> None:
    addresses = [address(f"203.0.{113 + n // 250}.{n % 250 + 1}") for n in range(500)]
    asked.send(asked.over_tcp() if asked.udp else asked.reply(*addresses))


@manner
def drip(server: HostileDns, asked: Asked, _peer: object, plain: Callable[[bytes], None]) -> None:
    """Over TCP byte by byte, one every tenth of a second."""
    if asked.udp:
        return asked.send(asked.over_tcp())
    data = asked.reply(address(EVIL))
    for byte in len(data).to_bytes(2, "big") + data:
        plain(bytes((byte,)))
        server.wait(0.1)


@manner
def short(server: HostileDns, asked: Asked, _peer: object, plain: Callable[[bytes], None]) -> None:
    """Over TCP a length and nothing more."""
    asked.send(asked.over_tcp()) if asked.udp else plain(b"\xff\xff\0")


@manner
def moving(server: HostileDns, asked: Asked, *_: object) -> None:
    """Another address at every answer, which nobody may keep."""
    asked.send(asked.reply(address(f"203.0.113.{asked.turn}", ttl=0)))


@manner
def forever(server: HostileDns, asked: Asked, *_: object) -> None:
    asked.send(asked.reply(address(WEB, ttl=0x7FFFFFFF)))


@manner
def negative(server: HostileDns, asked: Asked, *_: object) -> None:
    asked.send(asked.reply(address(WEB, ttl=0x80000000)))


@manner
def flood(server: HostileDns, asked: Asked, *_: object) -> None:
    """A thousand wrong ones before the right one."""
    for number in range(1000):
        asked.send(number.to_bytes(2, "big") + asked.reply(address(EVIL))[2:12] + b"\0" * 40)
    asked.send(asked.reply(address(WEB)))


@manner
def silent(*_: object) -> None:
    """Nothing, ever."""
