"""A guarded process connects by ways that its guard does not see: each is a bypass, with the module that did it, and
refused in strict mode. Unmodified wheels, ctypes, C, io_uring, 32-bit calls, pages without a file.
"""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ebpf.spec import Event, Guard
from tests.support.bpf_lab import Bottle, Lab, entry, until
from tests.support.bypass_clients import build

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
TO, PORT = "198.51.100.7", 8050
X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 instructions")

ENTER = """
import ctypes, os, socket, struct, sys
procs, netns, how, *rest = sys.argv[1:]
fd = os.open(netns, os.O_RDONLY)
assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
open(procs, "w").write(str(os.getpid()))
if how == "guarded":
    with socket.socket() as s: s.setsockopt(24941, 1, struct.pack("=Q", 7))
if how == "exec": os.execv(rest[0], rest)
from tests.support.bypass_clients import client
print(client.main(rest[0], rest[1], int(rest[2])), flush=True)
sys.stdin.read()
"""


class Seen(NamedTuple):
    error: int
    events: list[Event]
    received: list[str]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> build.Built:
    if build.compiler() is None:
        pytest.skip("needs a C compiler: apt-get install gcc libc6-dev linux-libc-dev")
    return build.build(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    return bpf_lab


@pytest.fixture(scope="module")
def bottles(lab: Lab) -> Iterator[dict[Guard, Bottle]]:
    made = {guard: lab.bottle() for guard in (Guard.OBSERVE, Guard.STRICT)}
    for guard, bottle in made.items():
        bottle.apply(allow=(entry(f"{TO}/32", PORT), entry("198.51.100.0/24", PORT, proto="udp")), guard=guard)
    yield made
    lab.end_processes()
    for bottle in made.values():
        lab.programs.delete_bottle(bottle.slot)
    lab.remove_bottles()
    lab.received()
    lab.programs.read()


def attempt(lab: Lab, native: build.Built, bottle: Bottle, how: str, *rest: str, hosts: Path | None = None) -> Seen:
    """One client in a process of its own, which stays until its events are read. `hosts` stands in for /etc/hosts."""
    argv = [sys.executable, "-c", ENTER, str(bottle.directory / "cgroup.procs"), lab.netns, how, *rest]
    if hosts is not None:
        argv = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts), *argv]
    env = {**os.environ, "BYPASS_NATIVE": str(native.library.parent), "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    lab.programs.read()
    lab.received()
    events: list[Event] = []
    received: list[str] = []
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None

    def ended() -> bool:
        events.extend(e for e in lab.programs.read() if e.tgid == process.pid)
        received.extend(lab.received())  # hangs up, which ends a client that waits for an answer
        return bool(select.select([process.stdout], [], [], 0)[0])

    try:
        until(ended, 30)
        said = process.stdout.readline()
        ended()
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
    return Seen(int(said) if said else process.returncode, events, received + lab.received())


CASES = [
    ("ctypes", "_ctypes|libffi", "connect"),
    ("syscall", "_ctypes|libffi", "connect"),
    ("library:connect", "libbypass.so", "connect"),
    ("library:uring", "libbypass.so", "io_uring"),
    pytest.param("library:int80", "libbypass.so", "i386:socketcall", marks=X86),
    pytest.param("library:instruction", "libbypass.so", "connect", marks=X86),
    ("deleted:connect", "/libgone.so (deleted)", "connect"),
    ("memfd:connect", "memfd:bypass", "connect"),
    pytest.param("jit", "anonymous", "connect", marks=X86),
    ("extension:connect", "bypass_extension.", "connect"),
    ("uvloop", "uvloop/loop.", "connect"),
    ("pycurl", "pycurl.libs/libcurl-", "connect"),
    ("grpc", "grpc/_cython/cygrpc.", "connect"),
    ("psycopg2", "psycopg2_binary.libs/libpq-", "connect"),
    ("library:uring-worker", "", "io_uring"),
    ("library:uring-sqpoll", "", "io_uring"),
]


@pytest.mark.parametrize("guard", [Guard.OBSERVE, Guard.STRICT])
@pytest.mark.parametrize(("method", "file", "syscall"), CASES)
def test_bpf_culprits_are_named(
    lab: Lab, native: build.Built, bottles: dict[Guard, Bottle], guard: Guard, method: str, file: str, syscall: str
) -> None:
    if method.startswith("extension") and native.extension is None:
        pytest.skip("needs Python.h: apt-get install python3-dev")
    seen = attempt(lab, native, bottles[guard], "guarded", method, TO, str(PORT))
    (event,) = seen.events
    assert (event.kind, event.reason, event.proto, str(event.dst), event.port) == (
        "bypass",
        "unvouched",
        "tcp",
        TO,
        PORT,
    )
    assert event.syscall == syscall
    assert any(part in event.library for part in file.split("|")), event
    assert event.exe == os.path.realpath(sys.executable)
    assert event.cmdline.endswith(f"{method} {TO} {PORT}")
    assert event.ppid == os.getpid()
    if not file:
        assert (event.library, event.evidence) == ("", "no-stack"), "a thread of the kernel made it"
    if guard is Guard.STRICT:
        assert (event.verdict, seen.error, seen.received) == ("refused", errno.EPERM, [])
    else:
        assert (event.verdict, seen.error) == ("observed", 0)
        assert f"tcp {TO} {PORT}" in seen.received


@pytest.mark.parametrize("method", ["getaddrinfo", "getaddrinfo:ctypes"])
@pytest.mark.parametrize("guard", [Guard.OBSERVE, Guard.STRICT])
def test_bpf_culprits_address_sorting_is_silent(
    lab: Lab, native: build.Built, bottles: dict[Guard, Bottle], tmp_path: Path, guard: Guard, method: str
) -> None:
    """libc connects UDP sockets to both; the same by anybody else is a bypass."""
    hosts = tmp_path / "hosts"
    hosts.write_text("198.51.100.7 two.test\n198.51.100.8 two.test\n")
    seen = attempt(lab, native, bottles[guard], "guarded", method, "two.test", str(PORT), hosts=hosts)
    assert seen == Seen(0, [], [])
    other = attempt(lab, native, bottles[guard], "guarded", "ctypes:udp", "198.51.100.8", str(PORT))
    assert [(e.kind, e.proto, str(e.dst)) for e in other.events] == [("bypass", "udp", "198.51.100.8")]


@pytest.mark.parametrize("method", ["ctypes", "uvloop"])
def test_bpf_culprits_unguarded_process_is_no_bypass(
    lab: Lab, native: build.Built, bottles: dict[Guard, Bottle], method: str
) -> None:
    """Policy alone judges it; what it refuses says who."""
    seen = attempt(lab, native, bottles[Guard.STRICT], "plain", method, TO, str(PORT))
    assert (seen.error, seen.events, seen.received) == (0, [], [f"tcp {TO} {PORT}"])
    refused = attempt(lab, native, bottles[Guard.STRICT], "plain", method, "203.0.113.77", "443")
    (event,) = refused.events
    assert (event.kind, event.verdict, event.reason, refused.error) == ("connect", "refused", "default", errno.EPERM)
    assert event.library
    assert refused.received == []


def test_bpf_culprits_gone_process_leaves_the_fields_empty(
    lab: Lab, native: build.Built, bottles: dict[Guard, Bottle]
) -> None:
    """A program that ends at once: the event stays, with what the kernel knows."""
    directory = bottles[Guard.STRICT].directory / "cgroup.procs"
    argv = [sys.executable, "-c", ENTER, str(directory), lab.netns, "exec"]
    process = subprocess.Popen([*argv, str(native.program), "connect", "203.0.113.77", "443"], cwd=ROOT)
    assert process.wait(20) == errno.EPERM
    (event,) = [e for e in lab.programs.read() if e.tgid == process.pid]
    assert (event.kind, event.verdict, event.syscall, event.comm) == ("connect", "refused", "connect", "bypass_static")
    assert (event.library, event.evidence, event.exe, event.cmdline, event.ppid) == ("", "gone", "", "", 0)
