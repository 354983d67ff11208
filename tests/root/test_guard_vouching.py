"""The guard and the kernel's programs together, in strict mode: what Python itself connects or sends is vouched for.

On every Python present; what a process does behind its guard is test_bpf_bypass.py.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ebpf.spec import Guard
from tests.support import guarded
from tests.support.bpf_lab import Bottle, Lab, entry, until

pytestmark = pytest.mark.root
PYTHONS = guarded.versions()
ONE, TWO, MANY, SIX = "198.51.100.7", "198.51.100.8", "203.0.113.5", "2001:db8::7"
HOSTS = f"""{ONE} one.example.com both.example.com
{TWO} two.example.com both.example.com agentmon.internal
{SIX} six.example.com
"""
NETS = ("198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
ALLOW = tuple(entry(n, 443, 80, proto=p) for n in NETS for p in ("tcp", "udp"))
RULES = ["198.51.100.0/24:443", "udp://198.51.100.0/24:443,80", "udp://203.0.113.0/24:443", "[2001:db8::]/32:443",
         "udp://[2001:db8::]/32:443", "tcp://*.example.com:443", "udp://*.example.com:443"]  # fmt: skip


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    assert "vouch" in bpf_lab.programs.features(), bpf_lab.programs.left_out
    return bpf_lab


@pytest.fixture
def bottle(bottle: Bottle) -> Bottle:
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    return bottle


def run(lab: Lab, bottle: Bottle, version: str | None, body: str, hosts: Path, *, install: bool = True) -> Any:
    """The JSON that `body` prints, from a guarded process in the bottle."""
    hosts.write_text(HOSTS)
    enter = (
        'echo $$ > "$0" && mount --bind "$2" /etc/hosts && exec nsenter --net="$1" "${@:3}"'  # its own mount namespace
    )
    inside = ("unshare", "-m", "bash", "-c", enter, str(bottle.directory / "cgroup.procs"), lab.netns, str(hosts))
    prelude = f"EgressGuard.install({RULES!r})\n" if install else ""
    return guarded.answer(prelude + body, version, inside=inside)


def bypasses(lab: Lab) -> list[str]:
    return [f"{e.kind} {e.verdict} {e.dst}:{e.port}" for e in lab.programs.read() if e.kind == "bypass"]


WAYS = """
import asyncio, os
out = {"status": EgressGuard.status().vouching}
out["connect"] = connect("198.51.100.7", 443)
with socket.socket() as s: s.settimeout(5); out["connect_ex"] = attempt(s.connect_ex, ("198.51.100.7", 443))
out["create_connection"] = attempt(socket.create_connection, ("one.example.com", 443), 5)
with socket.socket() as s: s.settimeout(5); out["by name"] = attempt(s.connect, ("one.example.com", 443))
with socket.socket() as s: s.settimeout(5); out["by a name of two"] = attempt(s.connect, ("both.example.com", 443))
for way, host in (("ipv6", "2001:db8::7"), ("ipv6 by name", "six.example.com"), ("mapped", "::ffff:198.51.100.7")):
    with socket.socket(socket.AF_INET6) as s:
        s.settimeout(5)
        out[way] = attempt(s.connect, (host, 443))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    out["sendto"] = attempt(s.sendto, b"x", ("198.51.100.7", 443))
    out["sendmsg"] = attempt(s.sendmsg, [b"x"], [], 0, ("198.51.100.8", 443))
    out["sendto by name"] = attempt(s.sendto, b"x", ("one.example.com", 443))
    for i in range(12):
        there = [("198.51.100.7", 443), ("198.51.100.8", 443), ("198.51.100.7", 80), ("198.51.100.8", 80),
                 ("203.0.113.5", 443), ("203.0.113.77", 443)][i % 6]
        out[f"many {i}"] = attempt(s.sendto, b"x", there)
    out["connect, send"] = [attempt(s.connect, ("203.0.113.5", 443)), attempt(s.send, b"x"), attempt(s.sendmsg, [b"x"])]
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    out["sendto ipv6"] = attempt(s.sendto, b"x", ("2001:db8::7", 443))
    out["sendto mapped"] = attempt(s.sendto, b"x", ("::ffff:198.51.100.7", 443))
try:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as s:
        s.settimeout(5); out["mptcp"] = attempt(s.connect, ("198.51.100.7", 443))
except OSError: pass
with socket.socket() as s: out["fast open"] = attempt(s.sendto, b"x", 0x20000000, ("198.51.100.7", 443))
async def main():
    _, writer = await asyncio.open_connection("one.example.com", 443)
    writer.close()
out["asyncio"] = attempt(asyncio.run, main())
r, w = os.pipe()
if os.fork() == 0:
    os.write(w, json.dumps(connect("198.51.100.7", 443)).encode()); os._exit(0)
out["forked"] = json.loads(os.read(r, 9999)); os.wait()
out["refused"] = EgressGuard.status().vouches_refused
print(json.dumps(out))
"""


@pytest.mark.parametrize("version", PYTHONS)
def test_everything_python_does_is_vouched_for(lab: Lab, bottle: Bottle, version: str, tmp_path: Path) -> None:
    found = run(lab, bottle, version, WAYS, tmp_path / "hosts")
    assert found.pop("status") == "active" and found.pop("refused") == 0
    flat = {f"{k} {i}": r for k, v in found.items() for i, r in enumerate(v if isinstance(v, list) else [v])}
    # A lab address nobody listens on, or a non-blocking connect under way, is no refusal; EPERM would be one.
    assert {k: r for k, r in flat.items() if "ok" not in r and r["error"] not in ("BlockingIOError",)} == {}
    assert bypasses(lab) == []
    assert f"tcp {ONE} 443" in lab.received()


@pytest.mark.parametrize("version", PYTHONS)
def test_what_the_guard_never_saw_is_a_bypass(lab: Lab, bottle: Bottle, version: str, tmp_path: Path) -> None:
    body = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def native(sock, host):
    address = struct.pack("=HH4s8x", 2, socket.htons(443), socket.inet_aton(host))
    return ctypes.get_errno() if libc.connect(sock.fileno(), address, 16) else 0
s, u = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.sendto(b"x", ("198.51.100.7", 443))
out = [native(s, "198.51.100.7"), native(u, "198.51.100.8"), native(u, "198.51.100.7")]
EgressGuard.uninstall()
out.append(native(socket.socket(), "198.51.100.7"))
print(json.dumps([out, EgressGuard.status().vouching]))
"""
    (tcp, other, vouched, after), status = run(lab, bottle, version, body, tmp_path / "hosts")
    assert (tcp, other) == (1, 1)  # EPERM
    assert vouched == 0  # a socket keeps what was vouched for
    assert (after, status) == (0, "unasked")  # no longer guarded: the policy alone
    assert bypasses(lab) == [f"bypass refused {ONE}:443", f"bypass refused {TWO}:443"]


def test_a_child_of_exec_registers_anew(lab: Lab, bottle: Bottle, tmp_path: Path) -> None:
    body = """
import subprocess
code = '''import json, socket
from agentmon.guard import EgressGuard
s = socket.socket(); s.settimeout(5); s.connect(("198.51.100.7", 443))
print(json.dumps([EgressGuard.status().vouching, EgressGuard.status().installed]))'''
def child(env): return json.loads(subprocess.run([sys.executable, "-c", code], env=env, stdout=-1, check=True).stdout)
print(json.dumps([child(EgressGuard.child_env()), child(None)]))
"""
    given, plain = run(lab, bottle, None, body, tmp_path / "hosts")
    assert given == ["active", True]
    assert plain == ["unasked", False]
    assert bypasses(lab) == []


def test_the_bottles_own_page_is_open(lab: Lab, bottle: Bottle, tmp_path: Path) -> None:
    body = """
with socket.socket() as s: s.settimeout(5); by_name = attempt(s.connect, ("agentmon.internal", 80))
out = [attempt(socket.create_connection, ("agentmon.internal", 80), 5), by_name, connect("198.51.100.8", 80)]
out.append(attempt(socket.create_connection, ("agentmon.internal", 443), 5))
out.append(attempt(socket.getaddrinfo, "x.agentmon.internal", 80))
EgressGuard.uninstall()
print(json.dumps(out))
"""
    created, by_name, by_address, other_port, below = run(lab, bottle, None, body, tmp_path / "hosts")
    assert "ok" in created and "ok" in by_name
    assert "ok" in by_address or by_address["error"] == "BlockingIOError"
    assert other_port.get("refused") in (None, "default") and below["refused"] == "protected"


def test_where_the_policy_does_not_ask_nothing_is_asked_again(lab: Lab, bottle: Bottle, tmp_path: Path) -> None:
    bottle.apply(allow=ALLOW, guard=Guard.OFF)
    body = """
first, connected, after = EgressGuard.status(), connect("198.51.100.7", 443), EgressGuard.status()
print(json.dumps([first.vouching, connected, after.vouching, after.vouches_refused]))
"""
    first, connected, after, refused = run(lab, bottle, None, body, tmp_path / "hosts")
    assert (first, after, refused) == ("inactive", "inactive", 0)
    assert "ok" in connected or connected["error"] == "BlockingIOError"


def test_what_the_kernel_refuses_to_register(lab: Lab, bottle: Bottle, tmp_path: Path) -> None:
    """Another token came first: this process is guarded, and not by this guard. Each connect is then a bypass."""
    body = f"""
import struct
socket.socket(socket.AF_UNIX).setsockopt(24941, 1, struct.pack("=Q", 7))
EgressGuard.install({RULES!r})
print(json.dumps([EgressGuard.status().vouching, connect("198.51.100.7", 443)]))
"""
    status, connected = run(lab, bottle, None, body, tmp_path / "hosts", install=False)
    assert status == "refused" and connected["error"] == "PermissionError"
    assert bypasses(lab) == [f"bypass refused {ONE}:443"]


def test_a_refused_vouch_is_counted_and_the_call_goes_on(lab: Lab, bottle: Bottle, tmp_path: Path) -> None:
    body = """
import agentmon.guard
token = agentmon.guard._control.voucher._token
socket.socket(socket.AF_UNIX).setsockopt(24941, 2, token)
out = [udp("198.51.100.7", 443), EgressGuard.status().vouching, EgressGuard.status().vouches_refused]
print(json.dumps(out))
"""
    connected, status, refused = run(lab, bottle, None, body, tmp_path / "hosts")
    assert "ok" in connected  # not guarded any more, so that the policy alone decides
    assert (status, refused) == ("active", 1)


def test_an_error_of_one_call_does_not_turn_vouching_off(lab: Lab, bottle: Bottle, tmp_path: Path) -> None:
    """A closed socket, and a process without descriptors: the next call is vouched for all the same."""
    body = f"""
import resource
closed = socket.socket(); closed.close()
out = [attempt(closed.connect, ("198.51.100.7", 443)), EgressGuard.status().vouching]
out += [udp("198.51.100.7", 443), EgressGuard.status().vouches_refused]
EgressGuard.uninstall()
ready = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
EgressGuard.install({RULES!r})
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
out += [EgressGuard.status().vouching, attempt(ready.connect, ("198.51.100.7", 443)), EgressGuard.status().vouching]
print(json.dumps(out))
"""
    closed, status, good, failed, without, later, at_last = run(lab, bottle, None, body, tmp_path / "hosts")
    assert closed["error"] == "OSError" and "Bad file descriptor" in closed["text"]
    assert (status, failed) == ("active", 1) and "ok" in good
    assert (without, at_last) == ("unasked", "active") and "ok" in later
    assert bypasses(lab) == []


def test_a_policy_that_stops_asking_is_noticed(lab: Lab, bottle: Bottle, tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def turn_off() -> None:
        until(ready.exists, 30)
        bottle.apply(allow=ALLOW, guard=Guard.OFF)

    thread = threading.Thread(target=turn_off)
    thread.start()
    body = f"""
import select, time
first = EgressGuard.status().vouching
open({str(ready)!r}, "w").close()
deadline = time.monotonic() + 30
while EgressGuard.status().vouching == "active" and time.monotonic() < deadline:
    udp("198.51.100.7", 443)
    select.select([], [], [], 0.01)
connected, now = udp("198.51.100.7", 443), EgressGuard.status()
print(json.dumps([first, now.vouching, connected, now.vouches_refused]))
"""
    first, after, connected, refused = run(lab, bottle, None, body, tmp_path / "hosts")
    thread.join()
    assert (first, after, refused) == ("active", "inactive", 1)
    assert "ok" in connected


def test_a_vouch_is_the_documented_24_bytes() -> None:
    from ipaddress import ip_address

    from agentmon.guard.vouching import value_of
    from ebpf import abi

    value = value_of(ip_address(ONE), 443, "tcp")
    mapped = b"\0" * 10 + b"\xff\xff" + bytes([198, 51, 100, 7])
    assert value == mapped + (443).to_bytes(2, "little") + b"\x06" + b"\0" * 5
    assert len(value) == abi.ctypes.sizeof(abi.Vouch) == 24
    assert value_of(ip_address(SIX), 53, "udp")[:16] == ip_address(SIX).packed


def test_the_constants_are_the_kernels() -> None:
    from agentmon.guard import vouching
    from ebpf import abi

    assert (
        abi.C["AM_SOL"], abi.C["AM_SO_REGISTER"], abi.C["AM_SO_UNREGISTER"], abi.C["AM_SO_VOUCH"],
    ) == (vouching.AM_SOL, vouching.REGISTER, vouching.UNREGISTER, vouching.VOUCH)  # fmt: skip
    assert abi.C["AM_VOUCHES"] == vouching.MAX_DESTINATIONS
