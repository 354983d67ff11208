"""What the daemon tells a relay takes effect on its flows: a name removed, a cut, a limit, another daemon."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from agentmon import wire
from tests.support import names
from tests.support.names import Daemon, until
from tests.support.relay_rig import A, B, Server, between, connect, echo, established, hello_of, rest

pytestmark = pytest.mark.root


@pytest.fixture
def net() -> Iterator[SimpleNamespace]:
    with between() as made:
        yield made


def test_a_removed_name_loses_its_flows_and_others_live(net: SimpleNamespace) -> None:
    net.set(A, "web.example", "other.example")
    with contextlib.ExitStack() as stack:
        stack.enter_context(Server(net.world, names.WEB, echo))
        web = stack.enter_context(established(net, "web.example"))
        other = stack.enter_context(established(net, "other.example"))
        assert net.set(A, "web.example", "other.example", "third.example").closed == 0
        assert net.set(A, "other.example").closed == 1
        assert rest(web) == b"RESET"
        other.sendall(b"alive")
        assert other.recv(5) == b"alive"
        assert net.daemon.tell(wire.DropBottle, A).closed == 1
        assert rest(other) == b"RESET"


def test_a_cut_closes_everything_of_the_bottle_only(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    net.set(B, "web.example")
    with Server(net.world, names.WEB, echo):
        with (
            established(net, "web.example") as mine,
            established(net, "web.example", B) as theirs,
            connect(net) as new,
        ):
            ack = net.daemon.tell(wire.CutBottle, A)
            assert ack.closed == 2
            assert 0 < ack.at_ns <= time.monotonic_ns()
            assert rest(mine) == b"RESET"
            assert rest(new) == b"RESET"
            theirs.sendall(b"alive")
            assert theirs.recv(5) == b"alive"
        with connect(net) as sock:
            sock.sendall(hello_of("web.example"))
            assert rest(sock) == b"\x15\x03\x03\x00\x02\x02\x31"
        assert net.daemon.report(reason="cut")["hint"].startswith("agentmon resume b16")
        net.set(A, "web.example")
        established(net, "web.example").close()


def test_a_policy_that_changes_while_the_name_is_looked_up(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    asked = threading.Event()
    go = threading.Event()

    def hold(commit: wire.Commit) -> wire.Committed:
        asked.set()
        assert go.wait(5)
        return wire.Committed(commit.id, commit.addresses)

    net.resolver.decide = hold
    with Server(net.world, names.WEB, echo) as server, connect(net) as sock:
        sock.sendall(hello_of("web.example"))
        assert asked.wait(5)
        assert net.daemon.set(A, "third.example").closed == 1
        go.set()
        assert rest(sock) == b"RESET"
        assert server.accepted == 0


def test_the_limit_on_connections(net: SimpleNamespace) -> None:
    net.set(A, "web.example", limits={"connections": 2})
    with Server(net.world, names.WEB, echo):
        with established(net, "web.example"), established(net, "web.example"), connect(net) as third:
            assert rest(third) == b""
            net.daemon.report(reason="limit")
        until(lambda: _works(net))


def _works(net: SimpleNamespace) -> bool:
    with connect(net) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(hello_of("web.example"))
        return sock.recv(1) == b"\x16"
    return False


def test_flows_outlive_the_daemon_and_the_resolver_answers_the_next_one(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    with Server(net.world, names.WEB, echo), established(net, "web.example") as sock:
        net.daemon.close()
        sock.sendall(b"alive")
        assert sock.recv(5) == b"alive"
        again = Daemon(net.dir / "relay.sock")
        try:
            assert again.ready.service == "relay"
            assert again.set(A, "web.example").closed == 0
            sock.sendall(b"still")
            assert sock.recv(5) == b"still"
            assert again.set(A, "nothing.example").closed == 1
        finally:
            again.close()


def test_observe_lets_unlisted_names_pass_and_says_so(net: SimpleNamespace) -> None:
    net.set(A, "web.example", mode="observe")
    with Server(net.world, names.WEB, echo):
        established(net, "other.example").close()
    net.daemon.report(verdict="observed", host="other.example")


def test_bad_rules_keep_the_old_view(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    assert "b16" in net.daemon.set(A, "https://u:p@x").error
    with Server(net.world, names.WEB, echo):
        established(net, "web.example").close()
