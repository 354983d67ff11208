"""Loopback under the guard: every client is refused, and nothing but a test's own fixture opens it.

The guard is installed in this very process, and taken back by each test's end; its hook stays, and does nothing.
Attempts to open loopback for more than one test run in a pytest of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.guard import EgressGuard, EgressViolation, capability
from tests.support import loopback

ROOT = Path(__file__).parents[2]
FORMS = ("127.0.0.1", "127.1.2.3", "localhost", "0.0.0.0")


@pytest.fixture
def server() -> Iterator[loopback.Server]:
    with loopback.server() as served:
        yield served


@pytest.fixture(params=["enforce", "observe"])
def guarded(request: pytest.FixtureRequest) -> Iterator[None]:
    EgressGuard.install(allow=["api.example.com:443"], mode=request.param)
    yield
    EgressGuard.reset_for_test()


@pytest.mark.parametrize("client", loopback.CLIENTS)
@pytest.mark.parametrize("host", FORMS)
def test_every_client_ends_in_a_violation(client: str, host: str, guarded: None, server: loopback.Server) -> None:
    with pytest.raises(EgressViolation) as refused:  # itself, not what a client made of it
        loopback.CLIENTS[client](server.port, host)
    assert (refused.value.reason, refused.value.layer) == ("loopback", "guard")
    assert server.accepted == 0


@pytest.mark.parametrize("client", loopback.CLIENTS)
def test_with_the_fixture_every_client_gets_through(
    client: str, guarded: None, egress_test_loopback: None, server: loopback.Server
) -> None:
    assert loopback.CLIENTS[client](server.port) == b"ok"
    assert server.accepted == 1


@pytest.mark.parametrize("client", loopback.CLIENTS)
@pytest.mark.parametrize("host", ["198.51.100.9", "203.0.113.5"])
def test_the_fixture_opens_nothing_but_loopback(client: str, host: str, egress_test_loopback: None) -> None:
    EgressGuard.install(allow=["api.example.com:443"])
    try:
        with pytest.raises(EgressViolation) as refused:
            loopback.CLIENTS[client](80, host)
    finally:
        EgressGuard.reset_for_test()
    assert refused.value.reason == "default"


@pytest.mark.usefixtures("egress_test_loopback")
def test_a_mark_asks_as_well(guarded: None, server: loopback.Server) -> None:
    assert loopback.by_socket(server.port) == b"ok"


@pytest.fixture
def local_service(egress_test_loopback: None, server: loopback.Server) -> int:
    return server.port


def test_a_fixture_that_the_test_names_may_ask(guarded: None, local_service: int) -> None:
    assert loopback.by_socket(local_service) == b"ok"


def test_the_grant_ends_with_the_test_and_is_used_once(
    guarded: None, request: pytest.FixtureRequest, egress_test_loopback: None, server: loopback.Server
) -> None:
    with capability.loopback(request) as again:
        assert capability.is_open()
    with pytest.raises(capability.CapabilityRefused), again:
        pass
    assert loopback.by_socket(server.port) == b"ok"  # the fixture's own is still there


def test_a_test_that_did_not_ask_mints_nothing(guarded: None, request: pytest.FixtureRequest) -> None:
    with pytest.raises(capability.CapabilityRefused, match="did not ask"):
        capability.loopback(request)
    with pytest.raises(capability.CapabilityRefused, match="name it as a parameter"):
        request.getfixturevalue("egress_test_loopback")
    for forged in (None, object(), request.node, pytest):
        with pytest.raises(capability.CapabilityRefused):
            capability.loopback(forged)
    with pytest.raises(capability.CapabilityRefused):
        capability.Loopback(lambda _: None, lambda _: None).__enter__()
        capability.loopback(request)
    assert not capability.is_open()


# ── a pytest of its own: what other projects might try ───────────────────────

PROBE = """
import pytest, socket
from agentmon.guard import EgressGuard, EgressViolation, capability

@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as s:
        yield s.getsockname()

@pytest.fixture(autouse=True)
def guarded():
    EgressGuard.install(allow=["api.example.com:443"])
    yield
    EgressGuard.reset_for_test()

def reaches(address):
    try:
        socket.create_connection(address, timeout=5).close()
    except EgressViolation:
        return False
    return True
"""


def run_pytest(where: Path, body: str, *args: str, ini: str = "", env: dict[str, str] | None = None) -> str:
    """What pytest printed; always `-p agentmon.pytest_plugin`, as an installed package is loaded by its entry point."""
    (where / "test_it.py").write_text(PROBE + body)
    (where / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p", "agentmon.pytest_plugin"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | (env or {})
    done = subprocess.run(
        [*command, *args], cwd=where, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout + done.stderr


def test_after_the_test_that_asked_loopback_is_refused_again(tmp_path: Path) -> None:
    out = run_pytest(
        tmp_path,
        """
@pytest.fixture
def late(listener):
    yield
    assert not reaches(listener)  # torn down after the fixture that opens

def test_1_open(late, listener, egress_test_loopback): assert reaches(listener)
def test_2_fails(listener, egress_test_loopback): assert reaches(listener); raise KeyError("it fails")
def test_3_closed(listener): assert not reaches(listener) and not capability.is_open()
""",
    )
    assert "1 failed, 2 passed" in out and "KeyError: 'it fails'" in out, out


CLOSED = "\ndef test_closed(listener): assert not reaches(listener), 'IT IS OPEN'\n"
TRIES = {  # a test module that opens for all its tests → how its test ends
    "autouse": ("@pytest.fixture(autouse=True)\ndef everybody(egress_test_loopback): pass\n", "CapabilityRefused"),
    "module": ("@pytest.fixture(scope='module', autouse=True)\ndef m(egress_test_loopback): pass\n", "ERROR"),
    "session": ("@pytest.fixture(scope='session', autouse=True)\ndef s(request):\n"
                "    with capability.loopback(request): yield\n", "CapabilityRefused"),
    "nested": ("@pytest.fixture\ndef n(egress_test_loopback): pass\n"
               "@pytest.fixture(autouse=True)\ndef everybody(n): pass\n", "CapabilityRefused"),
    "set_up": ("def setup_module(module):\n    with pytest.raises(capability.CapabilityRefused):\n"
               "        capability.loopback(module)\n", "PASSED"),
    "plain": ("", "PASSED"),
}  # fmt: skip
OPENER = """
import pytest
from agentmon.guard import capability

def pytest_runtest_call(item):
    try:
        capability.loopback(item._request).__enter__()
    except capability.CapabilityRefused:
        print("tried in a hook")
"""


def test_a_grant_that_is_never_left_ends_with_its_test(tmp_path: Path) -> None:
    out = run_pytest(
        tmp_path,
        """
kept = []
def test_1_leaks(request, listener, egress_test_loopback):
    kept.append(capability.loopback(request))
    kept[0].__enter__()
    kept.append(capability.loopback(request))
    assert reaches(listener)
def test_2_closed(listener):
    assert not reaches(listener) and not capability.is_open()
    with pytest.raises(capability.CapabilityRefused):
        kept[1].__enter__()
    assert not reaches(listener)
""",
    )
    assert "2 passed" in out, out


def test_nothing_opens_it_for_all_tests(tmp_path: Path) -> None:
    for name, (body, _) in TRIES.items():
        (tmp_path / f"test_{name}.py").write_text(PROBE + body + CLOSED)
    (tmp_path / "opener.py").write_text(OPENER)
    switches = ("EGRESS_TEST_LOOPBACK", "AGENTMON_EGRESS_TEST_LOOPBACK", "AGENTMON_GUARD_LOOPBACK")
    env = {name: "1" for name in switches} | {"PYTEST_CURRENT_TEST": "x (call)", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    out = run_pytest(tmp_path, "", "-p", "opener", "-p", "agentmon.guard.capability", env=env)
    assert "IT IS OPEN" not in out
    assert out.count("tried in a hook") == sum(how == "PASSED" for _, how in TRIES.values()), out
    for name, (_, how) in TRIES.items():
        told = [line for line in out.splitlines() if f"test_{name}.py::test_closed" in line]
        assert any(how in line for line in told), (name, told, out)


def test_a_configuration_file_does_not_open_it(tmp_path: Path) -> None:
    out = run_pytest(tmp_path, CLOSED, ini="usefixtures = egress_test_loopback")
    assert (
        "IT IS OPEN" not in out and "CapabilityRefused: egress_test_loopback opens loopback for tests that ask" in out
    )
    assert "1 error" in out and "passed" not in out


def test_names_are_judged_with_the_fixture_too(tmp_path: Path) -> None:
    out = run_pytest(
        tmp_path,
        """
from tests.support import loopback

@pytest.mark.parametrize("client", loopback.CLIENTS)
def test_a_name(client, egress_test_loopback):
    with pytest.raises(EgressViolation) as refused:
        loopback.CLIENTS[client](80, "refused.example")
    assert refused.value.host == "refused.example"
""",
    )
    assert f"{len(loopback.CLIENTS)} passed" in out, out


def test_an_unittest_case_asks_by_a_mark(tmp_path: Path) -> None:
    out = run_pytest(
        tmp_path,
        """
import unittest

class Case(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def address(self, listener): self.listener = listener
    @pytest.mark.usefixtures("egress_test_loopback")
    def test_open(self): assert reaches(self.listener)
    def test_closed(self): assert not reaches(self.listener)
""",
    )
    assert "2 passed" in out, out


def test_the_plugin_is_loaded_once_by_name_and_by_entry_point() -> None:
    """An entry point of another name would be registered beside `-p agentmon.pytest_plugin`, and fail."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"agentmon.pytest_plugin": "agentmon.pytest_plugin"}


OUTSIDE = """
import socket, sys
import pytest, _pytest.runner, _pytest.fixtures
from agentmon import pytest_plugin
from agentmon.guard import EgressGuard, EgressViolation, capability

listener = socket.create_server(("127.0.0.1", 0))
EgressGuard.install(allow=["api.example.com:443"])

class Request:
    scope = "function"
    class node:
        fixturenames = ["egress_test_loopback"]

def tried(what):
    try:
        made = what()
        getattr(made, "__enter__", lambda: None)()
        next(iter(made), None)
    except BaseException as e:
        pass
    try:
        socket.create_connection(listener.getsockname(), timeout=5)
        sys.exit(f"open after {what}")
    except EgressViolation as e:
        assert e.reason == "loopback", e

fixture = pytest_plugin.egress_test_loopback
inside = ("__wrapped__", "__pytest_wrapped__", "_fixture_function", "_get_wrapped_function")
found = [getattr(fixture, name) for name in inside if hasattr(fixture, name)]
assert found
for raw in (fixture, *found, getattr(fixture, "_get_wrapped_function", lambda: fixture)()):
    tried(lambda: raw(Request()))
    tried(lambda: raw(None))
tried(lambda: capability.loopback(Request()))
tried(lambda: capability.Loopback(lambda _: None, lambda _: None))
tried(lambda: pytest.main(["--version"]))

def runtestprotocol(item):  # a function of that name is not pytest's
    tried(lambda: capability.loopback(Request()))
runtestprotocol(Request.node)
print("closed")
"""


def test_importing_the_plugin_outside_pytest_mints_nothing() -> None:
    env: dict[str, Any] = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.endswith("closed\n"), done.stdout + done.stderr


def test_the_example_in_the_guide_runs(tmp_path: Path) -> None:
    guide = (ROOT / "docs/contributing.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    out = run_pytest(tmp_path, example.replace("def guarded", "def guarded_again"))
    assert "2 passed" in out, out
