"""Budgets by the commands: why one governs, each kind of scope set, `--observe`, and `cut --all`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from agentmon.ledger.reader import Reader
from tests.e2e.test_bottle import Shell, _cgroup_events
from tests.support.live import World, until

pytestmark = pytest.mark.e2e
SETTINGS = "budget: {claude: {tokens: 1000000, per: day}}\nceiling: {'*': 9000000}\n"
SMALL, LARGE = "claude-scripted-in10-out10", "claude-scripted-in1200-out100"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("budgets"), SETTINGS) as made:
        made.start_daemon()
        yield made


def test_observe_opens_hosts_and_relaxes_no_budget(world: World) -> None:
    shell = Shell(world, "watched", "--observe", "--provider", "claude", "--budget", "3000")
    assert shell.status("https://other.allowed.example/") == "200"
    assert [shell.message(LARGE)[0] for _ in range(2)] == [200, 200]
    shown = world.agentmon("budget", "show", "watched").stdout
    assert "governs: the nearest scope with a budget for claude" in shown
    assert "does not govern: bottle watched is nearer" in shown and "a ceiling: checked" in shown
    shell.message(LARGE, crosses=True)
    status, body = shell.message(SMALL)
    assert (status, body["error"]["type"], body["error"]["scope"]) == (403, "budget_exhausted", "bottle")
    assert shell.status("https://other.allowed.example/") == "000"
    assert until(lambda: world.events("watched", kind="threshold")) and world.events("watched", kind="cutoff")
    with Reader(str(world.root / "var/lib/agentmon/ledger/ledger.db")) as reader:
        (row,) = until(lambda: reader.enforcement(bottle="watched"))
    assert (row["policy"], row["trigger"], row["by"]) == ("cutoff", "budget", "bottle:watched")
    assert row["latency_ns"] > 0
    assert shell.end() == 0


def test_the_hosts_budget_is_set_for_all_that_it_governs(world: World) -> None:
    governed = Shell(world, "pooled", "--provider", "claude")
    apart = Shell(world, "apart", "--provider", "claude", "--budget", "100000")
    assert [shell.message(SMALL)[0] for shell in (governed, apart)] == [200, 200]
    (line,) = world.rows("budget", "set", "host:host", "claude", "15", "--per", "day")
    assert (line["scope"], line["tokens"], line["per"]) == ("host", 15, "day")
    until(lambda: {r["bottle"]: r["phase"] for r in world.rows("ps")}["pooled"] == "cut")
    status, body = governed.message(SMALL)
    assert (status, body["error"]["scope"]) == (403, "host")
    assert apart.message(SMALL)[0] == 200
    world.agentmon("resume", "pooled", "--budget", "1000000")  # of the scope that was spent
    assert governed.message(SMALL)[0] == 200
    world.agentmon("budget", "set", "bottle:apart", "claude", "10")
    assert apart.message(SMALL)[0] == 403
    with Reader(str(world.root / "var/lib/agentmon/ledger/ledger.db")) as reader:
        audited = [r["target"] for r in reader.audit() if r["action"] == "budget"]
    assert audited == ["host:host", "host:host", "bottle:apart"]
    for words, status, what in (
        (("shelf:x", "claude", "5"), 2, "kinds: agent, bottle, parent, host, ceiling"),
        (("agent:nobody", "claude", "5"), 2, "no running bottle is charged to agent 'nobody'"),
        (("parent:slip", "claude", "5"), 2, "no running bottle is charged to parent 'slip'"),
        (("pooled", "claude", "5", "--per", "day"), 2, "--per goes with KIND:NAME"),
        (("host:host", "nosuch", "5"), 2, "there is no provider 'nosuch'"),
    ):
        done = world.agentmon("budget", "set", *words, check=False)
        assert done.returncode == status and what in done.stderr, done.stderr
    assert governed.end() == 0 and apart.end() == 0


def test_cut_all_cuts_all_and_resume_says_what_it_did(world: World) -> None:
    shells = [Shell(world, f"one{n}", "--provider", "claude", "--budget", "100000") for n in range(2)]
    world.agentmon("cut", "--all")
    assert [shell.message(SMALL)[0] for shell in shells] == [403, 403]
    done = world.agentmon("resume", "one0")
    assert "one0" in done.stdout + done.stderr
    assert [shell.message(SMALL)[0] for shell in shells] == [200, 403]
    world.agentmon("resume", "one1")
    assert [shell.end() for shell in shells] == [0, 0]


def test_a_freeze_is_whole_while_the_ledger_is_away_and_is_recorded_when_it_is_back(world: World) -> None:
    shell = Shell(world, "icy", "--provider", "claude", "--budget", "100000")
    (row,) = [r for r in world.rows("ps") if r["bottle"] == "icy"]
    pid = world.pid_of("ledger")
    os.kill(pid, signal.SIGSTOP)
    try:
        world.agentmon("freeze", "icy")
        assert "frozen 1" in _cgroup_events(row["slot"])
        assert world.daemon is not None
        world.daemon.kill()  # what is kept on disk is that it is frozen
        world.daemon.wait()
        assert "frozen 1" in _cgroup_events(row["slot"])
    finally:
        os.kill(pid, signal.SIGCONT)
    world.start_daemon()
    assert {r["bottle"]: r["phase"] for r in world.rows("ps")}["icy"] == "frozen"
    pid = world.pid_of("ledger")
    world.agentmon("resume", "icy")
    os.kill(pid, signal.SIGSTOP)
    try:
        world.agentmon("freeze", "icy")
        assert "frozen 1" in _cgroup_events(row["slot"])
    finally:
        os.kill(pid, signal.SIGKILL)

    def recorded() -> list[str]:
        with Reader(str(world.root / "var/lib/agentmon/ledger/ledger.db")) as reader:
            return [r["policy"] for r in reader.enforcement(bottle="icy") if "recorded late" in r["result"]]

    until(lambda: "freeze" in recorded(), 20, "the freeze is in no row")
    world.agentmon("resume", "icy")
    assert shell.message(SMALL)[0] == 200
    assert shell.end() == 0
