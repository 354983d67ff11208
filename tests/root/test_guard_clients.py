"""Every client that people use, under the guard: what it may reach it reaches, what it may not surfaces as the refusal.

In a namespace with servers on ordinary addresses; what arrives at the forbidden one is counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import guard_clients, guarded, pythons
from tests.support.guard_net import DNS, EVIL, FTP, GOOD, HTTP, OTHER, SMTP, Net

pytestmark = pytest.mark.root

PYTHONS = guarded.versions()
(HERE,) = (version for version, path in guarded.interpreters().items() if path == sys.executable)
NAME = "web.example.com"
ALLOW = [f"{NAME}:{port}" for port in (HTTP, SMTP, FTP)]
# These connect to an address in a task of a group: the violation is behind what they raise.
WRAPS_ADDRESSES = {"anyio": "behind ExceptionGroup", "httpx async": "behind ExceptionGroup",
                   "openai async": "behind ExceptionGroup", "anthropic async": "behind APIConnectionError"}  # fmt: skip
LOSES_ADDRESSES = "asyncio happy eyeballs"  # CPython's staggered race: an error of its own, or the violation


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with Net(tmp_path_factory.mktemp("guard-net")) as running:
        yield running


class Clients:
    """One Python with its clients imported: this one with all, others with links to those in pure Python."""

    def __init__(self, net: Net, version: str, directory: Path) -> None:
        self.net = net
        python = guarded.interpreters()[version]
        mine = version == HERE
        self.names = [*guard_clients.STANDARD, *guard_clients.PURE, *(guard_clients.COMPILED if mine else ())]
        if not mine:
            python = pythons.with_packages(version, ("requests", "urllib3", "httpx", "aiohttp", "anyio"), directory)
        cache = str(guarded.ROOT / ".cache/pythons")
        env = {"PATH": "/usr/sbin:/usr/bin:/bin", "PYTHONPATH": str(guarded.ROOT), "PYTHONPYCACHEPREFIX": cache}
        argv = [*net.inside, python, str(guarded.ROOT / "tests/support/guard_clients.py"), ",".join(self.names)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, places: list[str], *allow: str, clients: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
        """HOST:PORT → client → how it ended; all of it in one fork, in which nothing has been looked up yet."""
        assert self._process.stdin is not None and self._process.stdout is not None
        question = {"clients": list(clients) or self.names, "places": places, "allow": allow}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, dict[str, Any]] = json.loads(self._process.stdout.readline())
        assert list(answer) == places
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module", params=PYTHONS)
def clients(request: pytest.FixtureRequest, net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    running = Clients(net, request.param, tmp_path_factory.mktemp("clients") / "python")
    yield running
    running.end()


def outside(net: Net) -> list[str]:
    return [what for what in net.received() if EVIL in what or f":{OTHER}" in what or "tcp 127.0.0.1" in what]


def test_what_is_allowed_is_reached(clients):
    place = f"{NAME}:{HTTP}"
    found = clients.ask([place], *ALLOW)[place]
    assert {name: how["how"] for name, how in found.items()} == dict.fromkeys(clients.names, "ok"), found
    arrived = clients.net.received()
    assert sum(GOOD in what for what in arrived) >= len(clients.names)


def test_a_refused_name_reaches_the_caller(clients):
    clients.net.received()
    cases = {
        f"evil.example.com:{HTTP}": ("evil.example.com", "default", ""),
        f"{NAME}:{OTHER}": (NAME, "default", ""),  # its name is allowed, this port is not
        f"rebound.example.com:{HTTP}": ("rebound.example.com", "loopback", "127.0.0.1"),  # allowed, leads to loopback
    }
    allow = (*ALLOW, *(f"rebound.example.com:{p}" for p in (HTTP, SMTP, FTP)))
    found = clients.ask(list(cases), *allow)
    for place, expected in cases.items():
        ended = {name: how["how"] for name, how in found[place].items()}
        assert ended == dict.fromkeys(clients.names, "itself"), (place, found[place])
        assert {(how["host"], how["reason"], how["address"]) for how in found[place].values()} == {expected}
        assert {how["refusals"] for how in found[place].values()} == {1}, found[place]  # nobody tries it again
    assert outside(clients.net) == []


def test_a_refused_address_reaches_the_caller(clients):
    clients.net.received()
    addresses = (EVIL, GOOD, "127.0.0.1")
    found = clients.ask([f"{a}:{HTTP}" for a in addresses], *ALLOW)
    for address in addresses:
        ended = found[f"{address}:{HTTP}"]
        lost = ended.pop(LOSES_ADDRESSES)
        assert lost["how"] in ("itself", "error IndexError", "error TimeoutError"), lost
        how = {name: result["how"] for name, result in ended.items()}
        assert how == {name: WRAPS_ADDRESSES.get(name, "itself") for name in ended}, ended
        assert {result["address"] for result in ended.values()} == {address}
    assert [what for what in clients.net.received() if "tcp" in what] == []


def test_dns_by_hand(clients):
    clients.net.received()
    by_hand = guard_clients.DATAGRAM
    allowed = clients.ask([f"{DNS}:53"], f"udp://{DNS}:53", clients=by_hand)[f"{DNS}:53"]
    assert {name: how["how"] for name, how in allowed.items()} == dict.fromkeys(by_hand, "ok"), allowed
    assert clients.net.received().count(f"udp {DNS}:53") >= 2
    for host, rules in ((EVIL, (f"udp://{DNS}:53",)), (DNS, (f"tcp://{DNS}:53",)), ("127.0.0.1", (f"udp://{DNS}:53",))):
        refused = clients.ask([f"{host}:53"], *rules, clients=by_hand)[f"{host}:53"]
        assert {how["how"] for how in refused.values()} == {"itself"}, refused
    assert clients.net.received() == []


def test_ipv6_by_name_and_by_mapped_address(clients):
    some, name, address = ("socket", "http.client", "asyncio streams"), "six.example.com:8080", "2001:db8::7:8080"
    six = clients.ask([name], name, clients=some)[name]
    assert {how["how"] for how in six.values()} == {"ok"}, six
    refused = clients.ask([address], *ALLOW, clients=some)[address]
    assert {how["how"] for how in refused.values()} == {"itself"}
    by_network = clients.ask([address], "[2001:db8::]/32:8080", clients=["socket"])
    assert by_network[address]["socket"]["how"] == "ok"


@pytest.mark.parametrize("clients", [HERE], indirect=True)
def test_the_apis_by_their_own_names(clients):
    places = [f"api.anthropic.com:{HTTP}", f"api.openai.com:{HTTP}"]
    found = clients.ask(places, *places, clients=("anthropic", "openai"))
    for client, place in zip(("anthropic", "openai"), places, strict=True):
        assert (found[place][client]["how"], found[place][client].get("value")) == ("ok", "hello"), found


def test_a_name_server_whose_answers_turn(net):
    """The program's own lookup may give another address than the guard's: the name is asked again before refusing."""
    script = f"""
import ctypes, os, threading
EgressGuard.install(["web.example.com:{HTTP}"])
first = attempt(socket.getaddrinfo, "web.example.com", {HTTP})
unknown = connect("{EVIL}", {HTTP})
open("/etc/hosts", "w").write("{EVIL} web.example.com\\n")
with socket.socket() as s:
    s.settimeout(5)
    again = attempt(s.connect, ("{EVIL}", {HTTP}))
print(json.dumps([first, unknown, again]))
"""
    before = net.hosts.read_text()
    try:
        found = guarded.answer(script + "", None, inside=net.inside)
        # Within a second of the last chase nothing is asked again, and what is unknown is refused.
        assert "ok" in found[0] and found[1]["refused"] == "default" and found[2]["refused"] == "default"
        waiting = script.replace(
            "with socket.socket() as s:", "threading.Event().wait(1.1)\nwith socket.socket() as s:"
        )
        net.hosts.write_text(before)
        assert "ok" in guarded.answer(waiting, None, inside=net.inside)[2]
    finally:
        net.hosts.write_text(before)
    net.received()


def test_a_pinned_host_is_reached_and_no_other(net):
    script = f"""
EgressGuard.install(["{NAME}:{HTTP}", "rebound.example.com:{HTTP}", "{EVIL}:{HTTP}"])
def reach(host, port): return attempt(lambda: socket.create_connection((host, port), 5).close())
out = []
with EgressGuard.pinned_to(HostName("{NAME}")):
    out += [reach("{NAME}", {HTTP}), reach("rebound.example.com", {HTTP}), reach("{EVIL}", {HTTP})]
@EgressGuard.pinned_to("{NAME}")
def pinned(): return reach("{NAME}", {HTTP})
print(json.dumps([*out, pinned()]))
"""
    net.received()
    inside, other, address, decorated = guarded.answer(script, None, inside=net.inside)
    assert "ok" in inside and "ok" in decorated, (inside, decorated)
    assert (other["refused"], address["refused"]) == ("scope", "scope")
    assert sum(GOOD in what for what in net.received()) == 2


@pytest.mark.parametrize("version", PYTHONS)
def test_a_connect_by_name_trusts_no_answer_of_a_minute_ago(net, version):
    """The name turns to loopback, or to another address, after it was looked up."""
    script = f"""
EgressGuard.install(["{NAME}:{HTTP}"])
def by_name():
    with socket.socket() as s:
        s.settimeout(5)
        return reason(attempt(s.connect, ("{NAME}", {HTTP})))
out = [reason(attempt(socket.getaddrinfo, "{NAME}", {HTTP}, socket.AF_INET)), by_name()]
hosts = open("/etc/hosts").read()
for turned in ("127.0.0.1", "{EVIL}", "169.254.169.254"):
    open("/etc/hosts", "w").write(turned + " {NAME}\\n")
    out.append(by_name())
open("/etc/hosts", "w").write(hosts)
print(json.dumps([*out, by_name(), by_name()]))
"""
    before = net.hosts.read_text()
    try:
        found = guarded.answer(script, version, inside=net.inside)
    finally:
        net.hosts.write_text(before)
    # After a turn, the answer before it counts for one more call.
    assert found == ["ok", "ok", "loopback", "loopback", "protected", "protected", "ok"]
    assert outside(net) == []


@pytest.mark.parametrize("version", PYTHONS)
def test_a_connect_by_name_whose_answers_disagree_is_refused_once(net, version):
    """Both addresses are allowed; which of them CPython was given, nobody can say."""
    script = f"""
EgressGuard.install(["{NAME}:{HTTP}"])
def by_name():
    with socket.socket() as s:
        s.settimeout(5)
        return reason(attempt(s.connect, ("{NAME}", {HTTP})))
out = [by_name()]
hosts = open("/etc/hosts").read()
open("/etc/hosts", "w").write(hosts.replace("{GOOD} ", "198.51.100.53 {NAME}\\n{GOOD} ", 1))
out.append(by_name())
open("/etc/hosts", "w").write("{GOOD} {NAME}\\n")
out += [by_name(), by_name()]
open("/etc/hosts", "w").write(hosts)
print(json.dumps(out))
"""
    before = net.hosts.read_text()
    try:
        found = guarded.answer(script, version, inside=net.inside)
    finally:
        net.hosts.write_text(before)
    assert found == ["ok", "unknown", "unknown", "ok"]
