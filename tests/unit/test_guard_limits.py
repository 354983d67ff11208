"""What docs/guard.md says the guard lets pass or does not see, shown to be so, on every Python present."""

from __future__ import annotations

import pytest

from tests.support import guarded

PYTHONS = guarded.versions()


@pytest.mark.parametrize("version", PYTHONS)
def test_sockets_of_the_kernel_itself_pass(version):
    body = """
EgressGuard.install([])
out = []
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s: out.append(attempt(s.connect, (0, 0)))
try:
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as s: out.append(attempt(s.bind, ("hash", "sha256")))
except OSError: pass  # a kernel without it
out.append(connect("198.51.100.1", 80))
print(json.dumps([reason(o) for o in out]))
"""
    *kernel, inet = guarded.answer(body, version)
    assert kernel and set(kernel) <= {"ok", "FileNotFoundError"}  # AF_ALG without that algorithm
    assert inet == "default"


@pytest.mark.parametrize("version", PYTHONS)
def test_a_socket_that_arrives_connected_was_never_seen(version):
    """SCM_RIGHTS from an unguarded process. To connect it anew is judged like any connect."""
    body = """
import array, os, subprocess
ours, theirs = socket.socketpair()
GIVE = '''
import array, socket, sys
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(("127.0.0.1", 53))
to = socket.socket(fileno=int(sys.argv[1]))
to.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [u.fileno()]))])
'''
EgressGuard.install(["198.51.100.1"])
fd = str(theirs.fileno())
subprocess.run([sys.executable, "-c", GIVE, fd], pass_fds=[theirs.fileno()], check=True)
_, ((_, _, data),), *_ = ours.recvmsg(1, 99)
came = socket.socket(fileno=array.array("i", data)[0])
out = [came.getpeername()[0], reason(attempt(came.connect, ("198.51.100.9", 53)))]
print(json.dumps([*out, EgressGuard.status().sockets_before]))
"""
    assert guarded.answer(body, version) == ["127.0.0.1", "default", []]


@pytest.mark.parametrize("version", PYTHONS)
def test_another_interpreter_needs_an_install_of_its_own(version):
    """Audit hooks belong to one interpreter (PEP 578); self-check counts the others."""
    body = """
import os
try: import _interpreters as made
except ImportError: import _xxsubinterpreters as made
r, w = os.pipe()
EgressGuard.install(["udp://198.51.100.1"])
from agentmon.guard import selfcheck
before = selfcheck.other_interpreters()
inner = made.create()
CODE = '''
import os, socket
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try: s.connect(("192.0.2.9", 53)); return b"passed "
        except RuntimeError as e: return e.reason.encode() + b" "
        except OSError: return b"passed "  # no route here: nobody held it
os.write(%d, udp())
from agentmon.guard import EgressGuard
EgressGuard.install(["udp://198.51.100.1"])
os.write(%d, udp())
'''
wrong = (made.exec if hasattr(made, "exec") else made.run_string)(inner, CODE % (w, w))
out = [str(wrong or ""), os.read(r, 99).decode(), reason(udp("192.0.2.9", 53)), before, selfcheck.other_interpreters()]
made.destroy(inner)
print(json.dumps([*out, selfcheck.other_interpreters()]))
"""
    assert guarded.answer(body, version) == ["", "passed default ", "default", 0, 1, 0]


@pytest.mark.parametrize("version", PYTHONS)
def test_happy_eyeballs_may_lose_the_violation_and_on_blocked_hears_of_it(version):
    body = """
import asyncio
told = []
EgressGuard.install([], on_blocked=lambda v: told.append(v.target))
async def main():
    loop = asyncio.get_running_loop()
    await loop.create_connection(asyncio.Protocol, "192.0.2.9", 443, happy_eyeballs_delay=0.1)
print(json.dumps([reason(attempt(asyncio.run, main())), told]))
"""
    how, told = guarded.answer(body, version)
    assert how in ("default", "IndexError", "TimeoutError")  # refused in each case; which of them is CPython's
    assert told == ["192.0.2.9:443"]


@pytest.mark.parametrize("version", PYTHONS)
def test_a_socket_object_is_judged_as_the_protocol_it_says(version):
    body = """
EgressGuard.install(["udp://198.51.100.1:53"])
tcp = socket.socket()
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")  # so that not even a SYN can leave
honest = reason(attempt(tcp.connect, ("198.51.100.1", 53)))
lies = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 0, fileno=tcp.detach())
lies.settimeout(0)
out = [honest, attempt(lies.connect, ("198.51.100.1", 53)).get("refused", "passed")]
print(json.dumps([*out, lies.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM]))
"""
    assert guarded.answer(body, version) == ["default", "passed", True]


def test_a_process_that_runs_pytest_on_a_test_of_its_own_is_a_test(tmp_path):
    """Documented as not stopped; afterwards loopback is refused again, and a guard that was reset is gone."""
    (tmp_path / "test_own.py").write_text(
        "import socket\nfrom agentmon.guard import EgressGuard\n"
        "def test_1(egress_test_loopback):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.connect(('127.0.0.1', 9))\n"
        "def test_2_reset(): EgressGuard.reset_for_test()\n"
    )
    body = """
import pytest
EgressGuard.install([], lock="secret")
out = []
for some in ("not reset", "reset"):
    options = ("-q", "-p", "no:cacheprovider", "-p", "agentmon.pytest_plugin", "-k", some)
    out += [int(pytest.main([*options, sys.argv[1]])), reason(udp("127.0.0.1", 9)), EgressGuard.status().installed]
print(json.dumps(out))
"""
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    assert guarded.answer(body, None, str(tmp_path), env=env) == [0, "loopback", True, 0, "ok", False]
