"""A host of its own for netfilter: a thread in fresh network and mount namespaces, a world behind it, real receivers.

    bottle am-<slot> ── veth ── the lab's host namespace ── up0 │ eth0 ── world (every foreign address, counted)

Nothing of it exists outside the thread: when the thread ends, the kernel takes all of it down.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from netfilter.host import HostNetfilter
from netfilter.spec import BottleNet, BottleRules, Direct, Endpoint, HostSpec, Learned, Mode, Proto

T = TypeVar("T")
RUN = Path("/run/netns")
POOL4, POOL6 = IPv4Network("10.213.0.0/16"), IPv6Network("fd61:6d6f:6e::/64")
DNS, RELAY, PROXY = 2, 3, 4  # offsets
UPLINK4, UPLINK6 = "203.0.113.1", "2001:db8:1::1"
WORLD_LINK4 = "203.0.113.2"
WEB4, WEB6 = "198.51.100.7", "2001:db8::7"
OTHER4, OTHER6 = "198.51.100.8", "2001:db8::8"
METADATA = ("169.254.169.254", "168.63.129.16", "fd00:ec2::254")
WORLD = (WEB4, WEB6, OTHER4, OTHER6, *METADATA, "198.51.100.53", "64:ff9b::a9fe:a9fe")
PORTS = (443, 5432)
HOST_OWN = (UPLINK4, UPLINK6, "192.168.77.1", "fd77::1")
_NEWNET, _NEWNS, _PRIVATE_REC = 0x4000_0000, 0x2_0000, 0x4_4000
_libc = ctypes.CDLL(None, use_errno=True)


def host_spec(*, six: bool = True) -> HostSpec:
    addresses: list[Any] = [POOL4[n] for n in (DNS, RELAY, PROXY)]
    if six:
        addresses += [POOL6[n] for n in (DNS, RELAY, PROXY)]
    return HostSpec(
        pool4=POOL4,
        pool6=POOL6 if six else None,
        gateway4=POOL4[1],
        gateway6=POOL6[1] if six else None,
        service_netns="am-svc",
        service_veth="am-svc",
        service_addresses=tuple(addresses),
        upstream_dns=((ip_address("198.51.100.53"), 53),),
    )


def net(slot: int, *, six: bool = True) -> BottleNet:
    return BottleNet(
        slot=slot,
        netns=f"am-{slot}",
        veth=f"am{slot}",
        mac_host=f"02:61:6d:00:{slot >> 8:02x}:{slot & 255:02x}",
        mac_bottle=f"02:61:6d:80:{slot >> 8:02x}:{slot & 255:02x}",
        addr4=POOL4[slot],
        addr6=POOL6[slot] if six else None,
        gateway4=POOL4[1],
        gateway6=POOL6[1] if six else None,
    )


def services() -> tuple[Endpoint, ...]:
    found = []
    for pool in (POOL4, POOL6):
        found += [Endpoint(pool[DNS], proto, 53, True) for proto in ("udp", "tcp")]
        found += [Endpoint(pool[RELAY], "tcp", 443, False), Endpoint(pool[PROXY], "tcp", 443, True)]
    return tuple(found)


def rules(slot: int, epoch: int, *allow: Direct, mode: Mode = Mode.ENFORCE, **more: Any) -> BottleRules:
    return BottleRules(slot, epoch, mode, **{"services": services(), "allow": allow, **more})


def direct(network: str, proto: Proto = "tcp", *ports: int) -> Direct:
    return Direct(ip_network(network), proto, tuple((p, p) for p in ports) or ((1, 65535),))


def learned(address: str, port: int = 443, timeout_s: int = 60, proto: Proto = "tcp") -> Learned:
    return Learned(ip_address(address), proto, ((port, port),), timeout_s)


def _inside(name: str, work: Callable[[], T]) -> T:
    """In a thread that enters namespace `name` and ends with `work`."""

    def enter() -> T:
        with open(RUN / name) as file:
            if _libc.setns(file.fileno(), _NEWNET):
                raise OSError(ctypes.get_errno(), f"enter {name}")
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter).result()


def until(what: Callable[[], Any], seconds: float = 5.0, why: str = "it did not happen in time") -> Any:
    deadline = time.monotonic() + seconds
    while not (value := what()):
        if time.monotonic() > deadline:
            raise AssertionError(why)
        time.sleep(0.005)
    return value


class Receiver:
    """TCP and UDP echo servers on every address and port given, and a tap on a device; counts what arrives."""

    def __init__(self, addresses: Iterable[str], ports: Iterable[int] = PORTS, tap: str = "") -> None:
        self.bytes: Counter[tuple[str, str, int]] = Counter()
        self.frames: Counter[tuple[str, int]] = Counter()  # (destination, protocol)
        self.sources: Counter[str] = Counter()
        self.accepted: list[socket.socket] = []
        self.resets: list[tuple[str, int, int | None]] = []  # (address, port, errno) of connections that broke
        self._selector = selectors.DefaultSelector()
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for port in ports:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sock = socket.socket(family, kind)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((address, port))
                    if kind == socket.SOCK_STREAM:
                        sock.listen(64)
                    self._watch(sock, self._accept if kind == socket.SOCK_STREAM else self._datagram)
        if tap:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            sock.bind((tap, 3))
            self._watch(sock, self._frame)
        self._wake, stop = socket.socketpair()
        self._watch(stop, lambda _: None)
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _watch(self, sock: socket.socket, what: Callable[[socket.socket], None]) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, what)

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select():
                with contextlib.suppress(BlockingIOError):
                    key.data(key.fileobj)

    def _accept(self, sock: socket.socket) -> None:
        client, _ = sock.accept()
        self.accepted.append(client)
        self._watch(client, self._stream)

    def _stream(self, sock: socket.socket) -> None:
        name = sock.getsockname()
        try:
            data = sock.recv(1 << 16)
            self.bytes["tcp", name[0], name[1]] += len(data)
            if data:
                sock.send(data)
                return
        except BlockingIOError:
            return
        except OSError as e:
            self.resets.append((name[0], name[1], e.errno))
        self._selector.unregister(sock)
        sock.close()

    def _datagram(self, sock: socket.socket) -> None:
        data, peer = sock.recvfrom(1 << 16)
        name = sock.getsockname()
        self.bytes["udp", name[0], name[1]] += len(data)
        with contextlib.suppress(OSError):  # the answer may be refused: that is counted elsewhere
            sock.sendto(data, peer)

    def _frame(self, sock: socket.socket) -> None:
        try:
            data, (_, ethertype, kind, *_) = sock.recvfrom(1 << 16)
        except OSError as e:
            if e.errno == errno.ENETDOWN:  # the bottle and its device have been deleted
                self._selector.unregister(sock)
                sock.close()
            return
        if kind == socket.PACKET_OUTGOING:
            return
        if ethertype == 0x0800:
            self.frames[socket.inet_ntop(socket.AF_INET, data[16:20]), data[9]] += 1
            self.sources[socket.inet_ntop(socket.AF_INET, data[12:16])] += 1
        elif ethertype == 0x86DD:
            self.frames[socket.inet_ntop(socket.AF_INET6, data[24:40]), data[6]] += 1
            self.sources[socket.inet_ntop(socket.AF_INET6, data[8:24])] += 1

    def total(self) -> int:
        return sum(self.bytes.values()) + len(self.accepted)

    def to(self, address: str) -> int:
        """Frames to `address` that the tap saw, and bytes that its servers got."""
        seen = sum(n for (to, _), n in self.frames.items() if to == address)
        return seen + sum(n for (_, to, _), n in self.bytes.items() if to == address)

    def close(self) -> None:
        self._over = True
        self._wake.send(b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._wake.close()
        self._selector.close()


class Lab:
    """One host. `nf` is a HostNetfilter whose every call goes through the lab's thread (`run`)."""

    def __init__(self, *, six: bool = True) -> None:
        self.six = six
        self.spec = host_spec(six=six)
        self._pool = ThreadPoolExecutor(1)
        self._open: list[Any] = []

    def __enter__(self) -> Lab:
        try:
            self.run(self._build)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        os.makedirs(RUN, exist_ok=True)
        for result in (
            _libc.unshare(_NEWNET | _NEWNS),
            _libc.mount(b"none", b"/", None, _PRIVATE_REC, None),
            _libc.mount(b"none", str(RUN).encode(), b"tmpfs", 0, None),
        ):
            if result:
                raise OSError(ctypes.get_errno(), "lab")
        for family in ("ipv4", "ipv6"):  # a new namespace begins with the switches of the machine's own
            Path(f"/proc/sys/net/{family}/conf/all/forwarding").write_text("0")
        self.ip("netns add world", "link set lo up", "link add up0 type veth peer name eth0 netns world")
        own = [f"addr add {a}/{'64' if ':' in a else '24'} dev up0{' nodad' if ':' in a else ''}" for a in HOST_OWN]
        self.ip(
            *own,
            "link set up0 up",
            f"route add default via {WORLD_LINK4}",
            *(["-6 route add default via 2001:db8:1::2 dev up0"] if self.six else []),
        )
        foreign = [f"addr add {a}/{'128' if ':' in a else '32'} dev lo{' nodad' if ':' in a else ''}" for a in WORLD]
        self.ip(
            "link set lo up",
            *foreign,
            f"addr add {WORLD_LINK4}/24 dev eth0",
            "addr add 2001:db8:1::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 203.0.113.1",
            "-6 route add default via 2001:db8:1::1 dev eth0",
            netns="world",
        )
        self.world = _inside("world", lambda: Receiver([a for a in WORLD if a not in METADATA], tap="eth0"))
        self._open.append(self.world)
        self.nf = HostNetfilter()

    def ip(self, *lines: str, netns: str = "") -> None:
        for line in lines:
            self.command("ip", *(["-n", netns] if netns else []), *line.split())

    @staticmethod
    def command(*argv: str) -> str:
        """Only in the lab's thread."""
        done = subprocess.run(argv, text=True, capture_output=True, check=False)
        assert done.returncode == 0, (argv, done.stderr)
        return done.stdout

    def run(self, work: Callable[..., T], *args: Any, **more: Any) -> T:
        return self._pool.submit(work, *args, **more).result(60)

    def shell(self, *argv: str) -> str:
        return self.run(self.command, *argv)

    def inside(self, name: str, work: Callable[[], T]) -> T:
        """In namespace `name`; "" is the lab's host."""
        return self.run(_inside, name, work) if name else self.run(work)

    def receiver(self, name: str, addresses: Iterable[str], ports: Iterable[int] = PORTS, tap: str = "") -> Receiver:
        found = self.inside(name, lambda: Receiver(addresses, ports, tap))
        self._open.append(found)
        return found

    def open(self) -> HostNetfilter:
        self.run(self.nf.open_host, self.spec)
        return self.nf

    def bottle(self, slot: int = 16, *allow: Direct, epoch: int = 0, **more: Any) -> str:
        """A bottle with these rules; its namespace."""
        self.run(self.nf.create_bottle, net(slot, six=self.six))
        self.run(self.nf.apply, rules(slot, epoch or slot, *allow, **more))
        return f"am-{slot}"

    def connect(self, name: str, address: str, port: int = 443, timeout: float = 2.0) -> socket.socket:
        """TCP from namespace `name`, answered by an echo. Raises as connect does."""

        def work() -> socket.socket:
            sock = socket.create_connection((address, port), timeout)
            sock.sendall(b"hello")
            if sock.recv(5) != b"hello":
                sock.close()
                raise ConnectionResetError(errno.ECONNRESET, "no echo")
            return sock

        return self.inside(name, work)

    def udp(self, name: str, address: str, port: int = 443, timeout: float = 2.0) -> None:
        """A datagram and its echo. Raises as recv does."""

        def work() -> None:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(timeout)
                sock.connect((address, port))
                sock.send(b"hello")
                sock.recv(5)

        self.inside(name, work)

    def seen(self) -> None:
        """What arrived in the world until now has been counted: the tap reads in order, up to a datagram for itself."""
        before = self.world.frames[WORLD_LINK4, socket.IPPROTO_UDP]
        with self.inside("", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.sendto(b"seen?", (WORLD_LINK4, 9))
        until(lambda: self.world.frames[WORLD_LINK4, socket.IPPROTO_UDP] > before)

    def frame(self, name: str, *, source: str, to: str, mac: str, gateway_mac: str, port: int = 5432) -> None:
        """An Ethernet frame with a UDP datagram, past every hook for sockets; checksums are the kernel's to ignore."""
        udp = struct.pack(">HHHH", 4444, port, 12, 0) + b"leak"
        if ":" in to:
            head = struct.pack(">IHBB", 0x6000_0000, len(udp), 17, 64)
            packet = head + ip_address(source).packed + ip_address(to).packed + udp
            packet = _with_checksum6(packet)
        else:
            fixed = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
            addresses = ip_address(source).packed + ip_address(to).packed
            total = _sum(fixed + addresses)
            packet = fixed[:10] + struct.pack(">H", total) + addresses + udp
        kind = 0x86DD if ":" in to else 0x0800

        def work() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind(("eth0", 0))
                header = bytes.fromhex(gateway_mac.replace(":", "") + mac.replace(":", "")) + struct.pack(">H", kind)
                sock.send(header + packet)

        self.inside(name, work)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AttributeError):
            self.run(self.nf.close_host)
        for receiver in self._open:
            receiver.close()
        self._pool.shutdown()


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _with_checksum6(packet: bytes) -> bytes:
    body = packet[40:]
    pseudo = packet[8:40] + struct.pack(">II", len(body), 17) + body
    return packet[:46] + struct.pack(">H", _sum(pseudo)) + packet[48:]
