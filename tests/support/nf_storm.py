"""Somebody in a namespace who never stops trying, and a tap that says when each try was made and when it arrived."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.support.nf_lab import OTHER4, OTHER6, RUN, Lab

# Datagrams by the routes that there are, frames past every hook for sockets, and connections; each with the time.
_TRIES = """
import socket, struct, sys, time
four, six, mine, mac = sys.argv[1:5]
def packet(data):
    udp = struct.pack(">HHHH", 4444, 443, 8 + len(data), 0) + data
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    head += socket.inet_aton(mine) + socket.inet_aton(four)
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:] + udp
def quietly(work):
    try:
        work()
    except OSError:
        pass
def datagram(family, to):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"storm:s" + struct.pack(">Q", time.time_ns()), (to, 443))
def frame():
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        sock.sendto(packet(b"storm:f" + struct.pack(">Q", time.time_ns())), ("eth0", 0x0800, 0, 0, bytes.fromhex(mac)))
def connection(family, to):
    with socket.socket(family) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.connect((to, 443))
while True:
    for family, to in ((socket.AF_INET, four), (socket.AF_INET6, six)):
        quietly(lambda: datagram(family, to))
        quietly(lambda: connection(family, to))
    quietly(frame)
    time.sleep(0.001)
"""
_HOW = {b"storm:s": "socket", b"storm:f": "frame"}
_BUSY = "while True: pass"
_TIMESTAMPNS = 35  # socket(7): SO_TIMESTAMPNS, struct timespec
_RECEIVE_BYTES = 1 << 24


class Arrival(NamedTuple):
    """A packet to a host that nobody may reach. Times are ns since the epoch; `tried_ns` 0: it carries none. `how` a
    datagram was tried: by a socket, or as a frame past it. `ports`: source and destination; `flags` of TCP."""

    arrived_ns: int
    tried_ns: int
    how: str
    source: str
    to: str
    proto: int
    ports: tuple[int, int]
    flags: int


class Tap:
    """Every packet that device `device` of the calling thread's namespace receives for `wanted`, until `close`."""

    def __init__(self, device: str, wanted: Iterable[str]) -> None:
        self.arrivals: list[Arrival] = []
        self._wanted = frozenset(wanted)
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        self._sock.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        self._sock.bind((device, 3))
        self._sock.settimeout(0.1)
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                data, more, _, (_, ethertype, kind, *_) = self._sock.recvmsg(1 << 16, 256)
                if kind != socket.PACKET_OUTGOING and ethertype in {0x0800, 0x86DD}:
                    seconds, ns = struct.unpack_from("=qq", more[0][2])
                    self._note(data, seconds * 1_000_000_000 + ns)

    def _note(self, data: bytes, arrived_ns: int) -> None:
        if data[0] >> 4 == 4:
            source, to, proto, rest = data[12:16], data[16:20], data[9], data[(data[0] & 15) * 4 :]
        else:
            source, to, proto, rest = data[8:24], data[24:40], data[6], data[40:]
        family = socket.AF_INET if len(to) == 4 else socket.AF_INET6
        if (name := socket.inet_ntop(family, to)) not in self._wanted:
            return
        ports = struct.unpack_from(">HH", rest)
        flags = rest[13] if proto == socket.IPPROTO_TCP else 0
        how = _HOW.get(rest[8:15], "") if proto == socket.IPPROTO_UDP else ""
        tried = struct.unpack_from(">Q", rest, 15)[0] if how else 0
        self.arrivals.append(
            Arrival(arrived_ns, tried, how, socket.inet_ntop(family, source), name, proto, ports, flags)
        )

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._sock.close()


@contextlib.contextmanager
def storm(lab: Lab, name: str, address: str, gateway: str) -> Iterator[None]:
    """Tries from namespace `name`, which has IPv4 `address`, while this lasts; frames go to device `gateway` of the
    host."""
    (device,) = json.loads(lab.shell("ip", "-j", "link", "show", gateway))
    mac = device["address"].replace(":", "")
    argv = ["nsenter", f"--net={RUN / name}", sys.executable, "-c", _TRIES, OTHER4, OTHER6, address, mac]
    with _running(lab.run(lambda: subprocess.Popen(argv, stderr=subprocess.PIPE, text=True))) as process:
        yield
        assert process.poll() is None, process.communicate()[1]


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processors that have something else to do."""
    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            stack.enter_context(_running(subprocess.Popen([sys.executable, "-c", _BUSY])))
        yield


@contextlib.contextmanager
def _running(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process  # type: ignore[misc]
    finally:
        process.kill()
        process.communicate()
