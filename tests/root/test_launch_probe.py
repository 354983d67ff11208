"""The probe against a real namespace with stand-ins for resolver and proxy, and nft as the bottle's layer; BPF is left
out, so the probe must say that it is missing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agentmon.launch.client import Spawner
from agentmon.launch.spec import ProbeResult, ProbeSpec

pytestmark = pytest.mark.root
_SERIAL = itertools.count()
SERVICES = r"""
import socket, struct, threading
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); dns.bind(("198.51.100.53", 53))
web = socket.socket(); web.setsockopt(1, 2, 1); web.bind(("198.51.100.80", 80)); web.listen()
def answer():
    while True:
        q, peer = dns.recvfrom(1500)
        rr = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + bytes([198, 51, 100, 80])
        dns.sendto(q[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + q[12:] + rr, peer)
threading.Thread(target=answer, daemon=True).start()
print("up", flush=True)
while True:
    c, _ = web.accept()
    head = c.recv(4096)
    good = head.startswith(b"GET /healthz HTTP/1.1\r\nHost: agentmon.internal\r\n")
    c.sendall(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % (b"200 OK" if good else b"400 Bad"))
    c.close()
"""
REJECT = """table inet t {
  chain o {
    type filter hook output priority 0;
    ip daddr != 198.18.0.1 accept
    ip6 daddr != 2001:2::1 accept
    meta l4proto tcp reject with tcp reset
    reject with icmpx type admin-prohibited
  }
}
"""
DROP = """table inet t {
  chain o {
    type filter hook output priority 0;
    ip daddr 198.18.0.1 drop
  }
}
"""


def _cgroup2() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if tail.split()[0] == "cgroup2":
            return Path(head.split()[4])
    pytest.fail("cgroup v2 is not mounted")


def run(*argv: str, text: str | None = None) -> None:
    subprocess.run(argv, input=text, text=True, check=True)


class Place:
    def __init__(self, tmp: Path) -> None:
        self.name = f"agentmon-test-{os.getpid()}-p{next(_SERIAL)}"
        self.leaf = _cgroup2() / self.name
        self.socket = tmp / "spawner.sock"

    def spec(self, **changes: object) -> ProbeSpec:
        spec = ProbeSpec(
            slot=16,
            netns=self.name,
            cgroup=str(self.leaf),
            resolver="198.51.100.53",
            proxy="198.51.100.80",
            timeout_ms=300,
            mac_host="02:61:6d:01:00:10",
            mac_bottle="02:61:6d:00:00:10",
            addr4="198.51.100.1",
        )
        return msgspec.structs.replace(spec, **changes)

    def nft(self, rules: str) -> None:
        run("ip", "netns", "exec", self.name, "nft", "-f", "-", text=rules)

    def probe(self, spec: ProbeSpec) -> ProbeResult:
        async def main() -> ProbeResult:
            spawner = Spawner(self.socket)
            await spawner.start()
            try:
                return await asyncio.wait_for(spawner.probe(spec), 10)
            finally:
                await spawner.close()

        return asyncio.run(main())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.leaf.mkdir()
    run("ip", "netns", "add", place.name)
    with contextlib.ExitStack() as stack:
        stack.callback(run, "ip", "netns", "del", place.name)
        stack.callback(_remove, place.leaf)
        ip = ("ip", "-n", place.name)
        run(*ip, "link", "set", "lo", "up")
        run(*ip, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
        run(*ip, "link", "set", "peer0", "up")
        run(*ip, "addr", "add", "198.51.100.1/24", "dev", "eth0")
        run(*ip, "addr", "add", "198.51.100.53/32", "dev", "lo")
        run(*ip, "addr", "add", "198.51.100.80/32", "dev", "lo")
        run(*ip, "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
        run(*ip, "link", "set", "eth0", "up")
        run(*ip, "route", "add", "default", "dev", "eth0")
        run(*ip, "-6", "route", "add", "default", "dev", "eth0")
        services = subprocess.Popen(
            ["ip", "netns", "exec", place.name, sys.executable, "-c", SERVICES], stdout=subprocess.PIPE
        )
        stack.callback(services.wait)
        stack.callback(services.kill)
        assert services.stdout is not None
        assert services.stdout.readline() == b"up\n"
        stack.callback(services.stdout.close)
        yield place


def _remove(leaf: Path) -> None:
    deadline = time.monotonic() + 5
    while (leaf / "cgroup.procs").read_text() and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    leaf.rmdir()


def test_what_works_and_what_each_layer_does_is_seen(place: Place) -> None:
    place.nft(REJECT)
    result = place.probe(place.spec())
    assert (result.dns, result.http, result.frame) == ("198.51.100.80", "200", "sent")
    assert (result.nft4, result.nft6) == ("ECONNREFUSED", "ECONNREFUSED")
    assert result.bpf4 == "ECONNREFUSED"  # no program here: the packet came as far as nft
    assert len(result.problems) == 2 and all(p.startswith("bpf did not refuse") for p in result.problems)
    assert not result.ok
    assert result.elapsed_us < 150_000


def test_a_silent_drop_is_a_fault(place: Place) -> None:
    place.nft(DROP)
    result = place.probe(place.spec(forbidden6=""))
    assert result.nft4 == "timeout"
    assert any("bottle-nft did not refuse a connection to 198.18.0.1: timeout" in p for p in result.problems)


def test_an_open_path_is_a_fault(place: Place) -> None:
    run("ip", "-n", place.name, "addr", "add", "198.18.0.1/32", "dev", "lo")
    result = place.probe(place.spec(forbidden6=""))
    assert result.nft4 == "open"  # although the connect itself is refused: by the closed port over there
    assert any(p.startswith("bottle-nft did not refuse") for p in result.problems)


def test_services_that_are_away_are_named(place: Place) -> None:
    place.nft(REJECT)
    result = place.probe(place.spec(resolver="198.51.100.54", proxy="198.51.100.81", timeout_ms=100))
    assert any(p.startswith("the resolver at 198.51.100.54 did not answer") for p in result.problems)
    assert any(p.startswith("the proxy at 198.51.100.81 did not answer") for p in result.problems)


def test_a_probe_that_cannot_run_says_why(place: Place) -> None:
    assert "No such file" in place.probe(place.spec(netns="agentmon-no-such")).problems[0]
    assert "could not run" in place.probe(place.spec(cgroup="/sys/nowhere")).problems[0]
