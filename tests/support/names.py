"""A private network namespace with bottles' source addresses, a small DNS server, and the daemon's side of a control
socket, for tests of resolver and relay as the processes they are."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

from agentmon import wire
from agentmon.addresses import Pool
from agentmon.channel import BlockingChannel

T = TypeVar("T")
POOL = Pool()
RESOLVER, RESOLVER6 = (str(a) for a in POOL.resolver.all())
RELAY, RELAY6 = (str(a) for a in POOL.relay.all())
PROXY, PROXY6 = (str(a) for a in POOL.proxy(0).all())
OUTSIDE_DNS = "198.51.100.53"
OUTSIDE_DNS2 = "198.51.100.54"
CORP_DNS = "198.51.100.55"
WEB = "203.0.113.10"
WEB2 = "203.0.113.11"
WEB6 = "2001:db8::10"
STRANGER = "198.51.100.99"
_CLONE_NEWNET = 0x40000000


def addr4(slot: int) -> str:
    return str(POOL.at(slot).v4)


def addr6(slot: int) -> str:
    return str(POOL.at(slot).v6)


def until(what: Callable[[], T | None], seconds: float = 10.0) -> T:
    """Poll until `what` returns something true."""
    deadline = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)


class World:
    """One namespace that holds every address on its loopback device."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        mine = os.stat("/proc/self/ns/net").st_ino
        self.holder = self._holder.pid  # a process inside
        self._ns = f"/proc/{self.holder}/ns/net"
        until(lambda: os.stat(self._ns).st_ino != mine)
        slots = [str(a) for slot in range(2, 24) for a in POOL.at(slot).all()]
        addresses = [*slots, OUTSIDE_DNS, OUTSIDE_DNS2, CORP_DNS, WEB, WEB2, WEB6, STRANGER]
        lines = ["link set lo up"]
        lines += [f"addr add {a}/{128 if ':' in a else 32} dev lo{' nodad' if ':' in a else ''}" for a in addresses]
        self.command(["ip", "-batch", "-"], input="\n".join(lines) + "\n")

    def command(self, argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        argv = ["nsenter", f"--net={self._ns}", *argv]
        return subprocess.run(argv, check=True, text=True, capture_output=True, **options)

    def start(self, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(["nsenter", f"--net={self._ns}", *argv], **options)

    def inside(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread of the namespace; sockets it makes stay there."""

        def run() -> T:
            with open(self._ns) as ns:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(ns.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(run).result()

    def udp(self, address: str, port: int = 0) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((address, port))
            return sock

        return self.inside(make)

    def listen(self, address: str, port: int) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(64)
            return sock

        return self.inside(make)

    def connect(self, source: str, address: str, port: int, timeout: float = 10.0) -> socket.socket:
        return self.inside(lambda: socket.create_connection((address, port), timeout, (source, 0)))

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class DnsServer:
    """Answers from `records` {(name, type): [texts]}; names in `broken` are dropped, refused, cut short, or forged."""

    def __init__(self, world: World, address: str = OUTSIDE_DNS, ttl: int = 60) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.broken: dict[str, str] = {}
        self.ttls: dict[str, int] = {}
        self.asked: list[tuple[str, str, str]] = []  # (name, type, udp | tcp)
        self._ttl = ttl
        self._udp = world.udp(address, 53)
        self._tcp = world.listen(address, 53)
        self._threads = [threading.Thread(target=f) for f in (self._serve_udp, self._serve_tcp)]
        self._over = False
        for sock in (self._udp, self._tcp):
            sock.settimeout(0.2)
        for thread in self._threads:
            thread.start()

    def names(self) -> list[str]:
        return [name for name, _, _ in self.asked]

    def _serve_udp(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                data, peer = self._udp.recvfrom(4096)
                for reply in self._replies(data, "udp"):
                    self._udp.sendto(reply, peer)

    def _serve_tcp(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError, OSError):
                client, _ = self._tcp.accept()
                with client:
                    client.settimeout(5)
                    length = int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big")
                    for reply in self._replies(client.recv(length, socket.MSG_WAITALL), "tcp"):
                        client.sendall(len(reply).to_bytes(2, "big") + reply)

    def _replies(self, data: bytes, how: str) -> list[bytes]:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, how))
        broken = self.broken.get(name, "")
        reply = dns.message.make_response(query)
        if broken == "drop":
            return []
        if broken == "servfail":
            reply.set_rcode(dns.rcode.SERVFAIL)
            return [reply.to_wire()]
        if broken == "lie" and how == "tcp":
            return [dns.message.make_response(dns.message.make_query("wrong.example", "A")).to_wire()]
        if broken == "junk" and how == "tcp":
            return [b"junk"]
        if broken in {"truncate", "lie", "junk"} and how == "udp":
            reply.flags |= dns.flags.TC
            return [reply.to_wire()]
        self._fill(reply, name, kind)
        if broken == "forge":  # before the true answer: another id, another question, junk
            other = dns.message.from_wire(reply.to_wire())
            other.id ^= 1
            other.answer = [dns.rrset.from_text(question.name, 60, "IN", "A", "203.0.113.66")]
            wrong = dns.message.make_response(dns.message.make_query("wrong.example", "A", id=query.id))
            wrong.answer = [dns.rrset.from_text("wrong.example.", 60, "IN", "A", "203.0.113.66")]
            return [other.to_wire(), wrong.to_wire(), b"junk", reply.to_wire()]
        return [reply.to_wire()]

    def _fill(self, reply: dns.message.Message, name: str, kind: str) -> None:
        ttl = self.ttls.get(name, self._ttl)
        for _ in range(20):
            if alias := self.records.get((name, "CNAME")):
                reply.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", "CNAME", alias[0]))
                name = alias[0].rstrip(".")
                continue
            if texts := self.records.get((name, kind)):
                reply.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", kind, *texts))
            elif not any(n == name for n, _ in self.records) and not reply.answer:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            break
        if not reply.answer:
            reply.authority.append(dns.rrset.from_text("example.", 5, "IN", "SOA", "ns. root. 1 60 60 60 5"))

    def close(self) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()


class Daemon:
    """The daemon's side of one control connection: pushes views, answers commits, collects reports."""

    def __init__(self, path: Path) -> None:
        self.reports: list[dict[str, Any]] = []
        self.commits: list[wire.Commit] = []
        self.decide: Callable[[wire.Commit], wire.Committed | None] = lambda c: wire.Committed(c.id, c.addresses)
        self._answers: dict[int, Any] = {}
        self._channel = until(lambda: self._try(path))
        self.ready: wire.Ready = self._channel.recv()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @staticmethod
    def _try(path: Path) -> BlockingChannel | None:
        try:
            return BlockingChannel.connect(str(path))
        except OSError:
            return None

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                match self._channel.recv():
                    case wire.Report() as report:
                        self.reports.append(report.event)
                        if report.id:
                            self._channel.send(wire.Ack(report.id))
                    case wire.Commit() as commit:
                        self.commits.append(commit)
                        answer = self.decide(commit)
                        if answer is not None:
                            self._channel.send(answer)
                    case message:
                        self._answers[message.id] = message

    def tell(self, kind: type[Any], *args: Any) -> wire.Ack:
        number = self._channel.next_id()
        self._channel.send(kind(number, *args))
        return until(lambda: self._answers.pop(number, None))

    def view(self, slot: int, *rules: str, **more: Any) -> wire.BottleView:
        """The view of a bottle called `b<slot>`."""
        return wire.BottleView(
            slot=slot,
            bottle=f"b{slot}",
            run=f"r{slot}",
            addr4=addr4(slot),
            addr6=addr6(slot),
            rules=rules,
            relay=(RELAY, RELAY6),
            proxy=(PROXY, PROXY6),
            **{"epoch": 1, **more},
        )

    def set(self, slot: int, *rules: str, **more: Any) -> wire.Ack:
        return self.tell(wire.SetBottle, self.view(slot, *rules, **more))

    def report(self, **fields: Any) -> dict[str, Any]:
        """The first report with these fields; waits for it."""
        return until(lambda: next((r for r in self.reports if fields.items() <= r.items()), None))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._channel.close()


@contextlib.contextmanager
def service(world: World, module: str, config: dict[str, Any], directory: Path) -> Iterator[subprocess.Popen[str]]:
    """The service process, as the daemon starts it; fails the test if it leaves anything on stderr."""
    path = directory / f"{module}.json"
    path.write_text(json.dumps(config))
    log = directory / f"{module}.log"
    with log.open("w") as stderr:
        process = world.start([sys.executable, "-m", f"agentmon.{module}", str(path)], stderr=stderr, text=True)
    try:
        yield process
        assert process.poll() is None, log.read_text()
    except BaseException as e:
        e.add_note(f"stderr of {module}: {log.read_text()!r}, status {process.poll()}")
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        status = process.wait(10)
    assert log.read_text() == "", log.read_text()
    assert status == 0


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """For sockets that an unprivileged service must reach: pytest's own directories are 0700."""
    with tempfile.TemporaryDirectory(prefix="agentmon-test-") as path:
        os.chmod(path, 0o711)
        yield Path(path)


def resolver_config(directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "socket": str(directory / "resolver.sock"),
        "lookup_socket": str(directory / "lookup.sock"),
        "user": "nobody",
        "listen": [RESOLVER, RESOLVER6],
        "pool4": str(POOL.v4),
        "pool6": str(POOL.v6),
        "upstream": {"servers": [[OUTSIDE_DNS, 53]], "suffixes": {"corp.example": [[CORP_DNS, 53]]}},
        "strip": ["192.0.2.2"],
        "internal": {"agentmon.internal": "proxy"},
        "lookup_group": "nogroup",
        "lookup_users": ["nobody", "no-such-user"],
        **more,
    }


def relay_config(directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "socket": str(directory / "relay.sock"),
        "lookup_socket": str(directory / "lookup.sock"),
        "user": "nobody",
        "listen": [RELAY, RELAY6],
        "port": 443,
        "pool4": str(POOL.v4),
        "pool6": str(POOL.v6),
        **more,
    }


def ask(world: World, slot: int, name: str, kind: str = "A", *, v6: bool = False, timeout: float = 8.0) -> Any:
    """A bottle's query over UDP."""
    return exchange(world, slot, dns.message.make_query(name, kind), v6=v6, timeout=timeout)


def exchange(world: World, slot: int, query: dns.message.Message, *, v6: bool = False, timeout: float = 8.0) -> Any:
    with world.udp(addr6(slot) if v6 else addr4(slot)) as sock:
        sock.setblocking(False)  # dnspython waits by itself
        return dns.query.udp(query, RESOLVER6 if v6 else RESOLVER, timeout, sock=sock)


def addresses(message: dns.message.Message) -> list[str]:
    return sorted(str(rdata.address) for rrset in message.answer for rdata in rrset)
