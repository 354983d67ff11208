"""The guard needs nothing but the standard library, patches nothing, and shuts no other thread out."""

from __future__ import annotations

import pytest

from tests.support import guarded

PYTHONS = guarded.versions()


@pytest.mark.parametrize("version", PYTHONS)
def test_importing_and_installing_imports_the_standard_library_only(version):
    body = """
EgressGuard.install(["api.example.com:443"])
import agentmon.policy.rules
named = {m.partition(".")[0] for m in sys.modules} - {"agentmon", "__main__", "__mp_main__", "sitecustomize"}
foreign = sorted(n for n in named if n not in sys.stdlib_module_names and not n.startswith("__editable__"))
shared = ("agentmon.guard", "agentmon.policy.rules")
own = sorted(m for m in sys.modules if m.startswith("agentmon") and not m.startswith(shared))
print(json.dumps([foreign, own]))
"""
    foreign, own = guarded.answer(body, version, options=("-S",))
    assert foreign == []
    assert own == ["agentmon", "agentmon.policy"]


@pytest.mark.parametrize("version", PYTHONS)
def test_the_guard_imports_no_slow_module(version):
    script = "import sys, agentmon.guard as g; g.EgressGuard.install([]); print(*sorted(sys.modules))"
    done = guarded.run_text(script, version, options=("-S",))
    assert done.returncode == 0, done.stderr
    slow = "socket re typing dataclasses asyncio threading inspect json unicodedata subprocess multiprocessing logging"
    assert not set(done.stdout.split()) & set(slow.split())


@pytest.mark.parametrize("version", PYTHONS)
def test_nothing_is_patched(version):
    body = """
import _socket, os, subprocess
def picture():
    places = (socket, _socket, os, subprocess, json, socket.socket)
    return {(m.__name__, n): id(v) for m in places for n, v in vars(m).items() if callable(v)}
before = picture()
EgressGuard.install(["api.example.com:443"])
attempt(socket.getaddrinfo, "evil.test", 1)
after = picture()
print(json.dumps([f"{m}.{n}" for m, n in before if before[m, n] != after.get((m, n))]))
"""
    assert guarded.answer(body, version) == []


@pytest.mark.parametrize("version", PYTHONS)
def test_swapping_under_threads_never_opens(version):
    body = """
import threading
one, two = ["udp://198.51.100.1", "udp://203.0.113.1"], ["udp://198.51.100.2", "udp://203.0.113.1"]
EgressGuard.install(one)
stop, wrong, counts = threading.Event(), [], []
def work():
    n = 0
    while not stop.is_set():
        fixed = [reason(udp(a, 53)) for a in ("203.0.113.1", "192.0.2.9", "127.0.0.1")]
        moving = {reason(udp(a, 53)) for a in ("198.51.100.1", "198.51.100.2")}
        if fixed != ["ok", "default", "loopback"] or moving - {"ok", "default"}: wrong.append([fixed, list(moving)])
        n += 1
    counts.append(n)
threads = [threading.Thread(target=work) for _ in range(6)]
for t in threads: t.start()
for _ in range(150):
    EgressGuard.install(two); EgressGuard.extend(["udp://198.51.100.3"]); EgressGuard.install(one)
stop.set()
for t in threads: t.join()
print(json.dumps([wrong[:5], min(counts) > 0, EgressGuard.status().tampered]))
"""
    assert guarded.answer(body, version) == [[], True, ""]


@pytest.mark.parametrize("version", PYTHONS)
def test_without_the_kernel_programs_vouching_is_asked_once(version):
    body = """
EgressGuard.install(["udp://198.51.100.1"])
first = EgressGuard.status().vouching
closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); closed.close()
out = [reason(attempt(closed.connect, ("198.51.100.1", 53))) for _ in range(3)]  # to ask of it would fail, and count
EgressGuard.install(["udp://198.51.100.1"])
print(json.dumps([first, EgressGuard.status().vouching, EgressGuard.status().vouches_refused, *out]))
"""
    first, second, failed, *out = guarded.answer(body, version)
    assert out == ["OSError"] * 3  # CPython's own: the guard let it go on
    assert first == second and (first, failed) in (("inactive", 0), ("active", 3))  # the latter: tests in a bottle
