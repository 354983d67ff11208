"""What native code does behind the guard of its own process: reported with the library that did it, refused where the
policy says strict. The guard is the real one, the clients are unmodified packages, the programs are on the kernel."""

from __future__ import annotations

import errno
import os
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from ebpf.spec import Event, Guard
from tests.support.bpf_lab import Bottle, Lab, entry, until
from tests.support.bypass_clients import build

pytestmark = pytest.mark.root
KNOWN, SIX = "198.51.100.7", "2001:db8::7"
ROOT = Path(__file__).parents[2]
RULES = [f"{p}://{h}:443" for p in ("tcp", "udp") for h in (KNOWN, f"[{SIX}]")]
LIBFFI = r"libffi[\w.-]*\.so[\d.]*|_ctypes[\w.-]*\.so"

# way of the client → the library that events name (a pattern for its file), and the system call
WAYS = {  # test_bpf_culprits.py has more of them
    "ctypes": (LIBFFI, "connect"),
    "library:uring": (r"libbypass\.so", "io_uring"),
    "uvloop": (r"loop[\w.-]*\.so", "connect"),
    "pycurl": (r"libcurl[\w.-]*\.so[\d.]*|pycurl[\w.-]*\.so", "connect"),
    "grpc": (r"cygrpc[\w.-]*\.so", "connect"),
    "psycopg2": (r"libpq[\w.-]*\.so[\d.]*", "connect"),
}


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    assert bpf_lab.programs.features() >= {"vouch", "origin"}, bpf_lab.programs.left_out
    return bpf_lab


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> build.Built:
    return build.build(tmp_path_factory.mktemp("native"))


ALLOW = tuple(entry(n, 443, proto=p) for p in ("tcp", "udp") for n in (f"{KNOWN}/32", f"{SIX}/128"))


class Ran(NamedTuple):
    """A client that has ended: what it printed, and the bypasses that were read while it lived or afterwards."""

    status: int
    bypasses: list[Event]


def run(lab: Lab, bottle: Bottle, native: build.Built, module: str, *argv: str, watched: bool = True) -> Ran:
    """A client in the bottle's cgroup and the lab's namespace; `watched`: events are read while it lives."""
    enter = 'echo $$ > "$0" && exec nsenter --net="$1" "$2" -m "$3" "${@:4}"'
    command = ["bash", "-c", enter, str(bottle.directory / "cgroup.procs"), lab.netns, sys.executable, module, *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BYPASS_NATIVE": str(native.library.parent)}
    found: list[Event] = []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as client:
        assert client.stdout is not None and client.stdin is not None and client.stderr is not None
        status = client.stdout.readline()
        while watched and select.select([lab.programs.fileno()], [], [], 0.2)[0]:
            found += lab.programs.read()
        client.stdin.close()
        said = client.stderr.read()
        assert status.strip().isdigit(), said
        client.wait(60)
    found += lab.programs.read()
    return Ran(int(status), [e for e in found if e.kind == "bypass"])


def guarded(lab: Lab, bottle: Bottle, native: build.Built, way: str, host: str = KNOWN, *, watched: bool = True) -> Ran:
    module = "tests.support.bypass_clients.guarded"
    return run(lab, bottle, native, module, way, host, "443", *RULES, watched=watched)


@pytest.mark.parametrize("host", [KNOWN, SIX])
@pytest.mark.parametrize("way", ["socket", "asyncio", "thread", "fork", "sendto", "gevent", "gevent:patched"])
def test_bypass_the_python_ways_are_vouched_for(
    lab: Lab, bottle: Bottle, native: build.Built, way: str, host: str
) -> None:
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    assert guarded(lab, bottle, native, way, host) == Ran(0, [])
    assert set(until(lab.received)) == {f"{'udp' if way == 'sendto' else 'tcp'} {host} 443"}


@pytest.mark.parametrize("way", ["gevent", "gevent:patched", "socket"])
def test_bypass_what_the_guard_sees_it_refuses_itself(lab: Lab, bottle: Bottle, native: build.Built, way: str) -> None:
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    assert guarded(lab, bottle, native, way, "198.51.100.8") == Ran(100, [])  # EgressViolation, and no system call
    assert lab.received() == []


@pytest.mark.parametrize("guard", [Guard.OBSERVE, Guard.STRICT])
def test_bypass_a_resolver_in_c(lab: Lab, bottle: Bottle, native: build.Built, guard: Guard) -> None:
    """gevent connects through Python's sockets; its c-ares resolver asks name servers by itself."""
    bottle.apply(allow=ALLOW, guard=guard)
    ran = guarded(lab, bottle, native, "gevent:ares")
    event = ran.bypasses[0]
    verdict = "observed" if guard is Guard.OBSERVE else "refused"
    assert (event.verdict, event.reason, event.proto, str(event.dst)) == (verdict, "unvouched", "udp", KNOWN)
    assert re.fullmatch(r"cares[\w.-]*\.so", Path(event.library).name), event
    if guard is Guard.STRICT:
        assert lab.received() == []


@pytest.mark.parametrize("way", WAYS)
def test_bypass_is_reported_with_its_library(lab: Lab, bottle: Bottle, native: build.Built, way: str) -> None:
    bottle.apply(allow=ALLOW, guard=Guard.OBSERVE)
    ran = guarded(lab, bottle, native, way)
    assert ran.status in (0, errno.ETIMEDOUT)  # nobody speaks there: a client may wait for an answer in vain
    assert f"tcp {KNOWN} 443" in until(lab.received)  # reported only: it got there
    assert ran.bypasses, "no bypass was reported"
    event = ran.bypasses[0]
    library, syscall = WAYS[way]
    assert (event.verdict, event.reason, str(event.dst), event.port) == ("observed", "unvouched", KNOWN, 443)
    assert (event.guarded, event.syscall) == (True, syscall)
    assert re.fullmatch(library, Path(event.library).name), (event.library, event.evidence)
    assert event.evidence.startswith(("ip", "stack") if library else "no-stack")
    assert "bypass_clients.guarded" in event.cmdline
    assert event.exe == os.path.realpath(sys.executable)


@pytest.mark.parametrize("way", WAYS)
def test_bypass_is_refused_where_the_policy_is_strict(lab: Lab, bottle: Bottle, native: build.Built, way: str) -> None:
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    ran = guarded(lab, bottle, native, way)
    if way != "grpc":  # it tells no reason
        assert ran.status in (errno.EPERM, errno.ECANCELED)
    assert lab.received() == []
    assert {(e.verdict, e.reason, str(e.dst)) for e in ran.bypasses} == {("refused", "unvouched", KNOWN)}


@pytest.mark.parametrize("way", ["ctypes", "pycurl"])
def test_bypass_over_ipv6(lab: Lab, bottle: Bottle, native: build.Built, way: str) -> None:
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    ran = guarded(lab, bottle, native, way, SIX)
    assert ran.status != 0
    assert lab.received() == []
    assert {str(e.dst) for e in ran.bypasses} == {SIX}


def test_bypass_a_process_that_has_gone_is_said_to_be(lab: Lab, bottle: Bottle, native: build.Built) -> None:
    """The event comes from the kernel; what only /proc knows is missing, and the event says so."""
    bottle.apply(allow=(), guard=Guard.OBSERVE)
    ran = guarded(lab, bottle, native, "ctypes", watched=False)
    assert ran.status == errno.EPERM
    (event,) = ran.bypasses
    assert (event.evidence, event.library, event.exe) == ("gone", "", "")
    assert (event.verdict, event.syscall) == ("refused", "connect")
