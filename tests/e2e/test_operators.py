"""Operators through the control socket: root and a member of the group, what each may; the audit, and alerts."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from agentmon.ledger.reader import Reader
from tests.e2e.test_bottle import HEADERS, SHELL, Shell
from tests.support.live import ROOT, World, as_user, until

pytestmark = pytest.mark.e2e
LARGE = "claude-scripted-in1200-out100"
MEMBER, GROUP = pwd.getpwnam("agentmon-job"), grp.getgrnam("agentmon").gr_gid


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("operators")
    command = f"[/bin/sh, -c, 'cat >> {tmp}/alerts']"
    settings = f"grants: {{raise_budget: true}}\nbudget: {{claude: {{tokens: 2000, per: day}}}}\nalert: {command}\n"
    with World(tmp, settings) as made:
        made.root.chmod(0o755)
        made.start_daemon()
        yield made


def as_member(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    """A command line of a user who is in group agentmon and is not root."""
    return subprocess.run(
        [*as_user(MEMBER.pw_uid, GROUP), *words], cwd=ROOT, env=world.env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip


class Members(Shell):
    """A bottle that the member started; its job is his."""

    def __init__(self, world: World, name: str, *options: str) -> None:
        self.world, self.name = world, name
        self.job = world.run_as(MEMBER.pw_uid, GROUP, "--name", name, *options, "--", *SHELL)
        assert self("echo up") == "up"


def phase(world: World, name: str) -> str:
    return next((str(r["phase"]) for r in world.rows("ps") if r["bottle"] == name), "")


def audited(world: World, **match: Any) -> list[str]:
    rows = world.rows("audit")
    return [str(r["detail"].get("result")) for r in rows if all(r[k] == v for k, v in match.items())]


def spend(shell: Shell) -> None:
    body = {"model": LARGE, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
    for _ in range(2):
        shell.job.say(
            f"curl -sS -m 10 {HEADERS} -d '{json.dumps(body)}' -o /dev/null https://api.anthropic.com/v1/messages"
        )
        shell.job.line()


def test_a_member_raises_budgets_of_his_own_bottle_and_no_others(world: World) -> None:
    shell = Members(world, "mine", "--provider", "claude")
    spend(shell)  # the host's 2,000
    until(lambda: phase(world, "mine") == "cut")
    for words in (("resume", "mine", "--budget", "90000"), ("budget", "set", "mine", "claude", "90000")):
        done = as_member(world, *words)
        assert done.returncode == 3 and "others are charged to it as well" in done.stderr, done.stderr
        assert "sudo agentmon resume mine --budget claude=90000" in done.stderr
    assert as_member(world, "budget", "set", "host:host", "claude", "90000").returncode == 3
    assert as_member(world, "resume", "mine").returncode == 3
    assert phase(world, "mine") == "cut"
    world.agentmon("budget", "set", "host:host", "claude", "6000", "--per", "day")
    done = as_member(world, "resume", "mine")  # nothing is spent any more
    assert done.returncode == 0 and done.stdout == "mine: resumed (thawed)\n", done.stderr
    world.agentmon("freeze", "mine")
    done = as_member(world, "resume", "mine")
    assert done.returncode == 3 and "only root resumes it" in done.stderr
    world.agentmon("resume", "mine")
    assert shell.end() == 0
    own = Members(world, "own", "--provider", "claude", "--budget", "1000")
    spend(own)
    until(lambda: phase(world, "own") == "cut")
    assert as_member(world, "resume", "own", "--budget", "50000").returncode == 0
    (line,) = [r for r in world.rows("budget", "show", "own") if r["scope"] == "bottle"]
    assert line["tokens"] == 50_000
    assert own.end() == 0


def test_all_of_them_and_what_others_may_not(world: World) -> None:
    shells = [Shell(world, f"b{n}") for n in range(2)]
    for words in ("cut --all", "freeze b0", "kill b1", "allow b0 x.example", "attach --pid 1"):
        done = as_member(world, *words.split())
        assert done.returncode == 3 and "sudo" in done.stderr, done.stderr
    assert world.daemon is not None and os.getpriority(os.PRIO_PROCESS, world.daemon.pid) == -10
    assert shells[0]("nice") == "0"
    world.agentmon("freeze", "--all")
    assert {phase(world, "b0"), phase(world, "b1")} == {"frozen"}
    world.agentmon("resume", "--all")
    assert [shell("echo on") for shell in shells] == ["on", "on"]
    world.agentmon("cut", "--all")
    assert {phase(world, "b0"), phase(world, "b1")} == {"cut"}
    world.agentmon("kill", "--all")
    until(lambda: not world.rows("ps"))
    until(lambda: audited(world, action="kill", target="all"))
    for action in ("freeze", "resume", "cut", "kill"):
        assert audited(world, uid=0, action=action, target="all") == ["done"]
    refused = {
        action: audited(world, uid=MEMBER.pw_uid, action=action) for action in ("cut", "kill", "allow", "attach")
    }
    assert all(len(rows) == 1 and rows[0].startswith("Refused: ") for rows in refused.values()), refused
    resumes = audited(world, uid=MEMBER.pw_uid, action="resume", target="mine")
    spent = "host host spent its claude budget"
    assert [r.partition(":")[0] for r in resumes] == [f"{spent}, 2528 of 2000 tokens", spent, "done", "root stopped it"]
    assert audited(world, user=MEMBER.pw_name, action="budget_set")[0].startswith("Refused: host host spent")
    text = world.agentmon("audit", "--user", MEMBER.pw_name).stdout
    assert "Refused: " in text and "mine" in text
    assert as_member(world, "audit").returncode != 0
    with Reader(str(world.root / "var/lib/agentmon/ledger/ledger.db")) as reader:
        assert {r["policy"] for r in reader.enforcement(bottle="b0")} == {"freeze", "save", "resume", "cutoff", "kill"}


def test_alerts_told_all_that_happened(world: World) -> None:
    def alerts() -> set[tuple[str, str]]:
        lines = (world.tmp / "alerts").read_text().splitlines()
        return {(row["kind"], row["bottle"]) for row in map(json.loads, lines)}

    wanted = "cutoff mine, freeze mine, cutoff own, freeze b0, cutoff b1, kill b1"
    until(lambda: {tuple(words.split()) for words in wanted.split(", ")} <= alerts())
    assert {kind for kind, _ in alerts()} <= {"threshold", "cutoff", "freeze", "kill", "tamper", "escape"}
