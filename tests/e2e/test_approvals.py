"""A secret on its way out of a bottle waits for an operator: approved, rejected, given up, cut; reloads under it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.test_bottle import Shell
from tests.e2e.test_reload import say, settings
from tests.support.live import World, until

pytestmark = pytest.mark.e2e

ONE, TWO = "www.allowed.example", "other.allowed.example"
MANIFEST = f"allow: [{ONE}:443, {TWO}:443]\nroutes: [{{host: {ONE}}}, {{host: {TWO}}}]\n"
KEYS = [f"ghp_{secrets.token_hex(18)}" for _ in range(8)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("approvals")
    (tmp / "bottles").mkdir()
    say(tmp / "bottles/held.yml", MANIFEST)
    with World(tmp, f"log: full\nbottles_dir: {tmp}/bottles\n") as made:
        made.start_daemon()
        yield made


@pytest.fixture
def shell(world: World, request: pytest.FixtureRequest) -> Iterator[Shell]:
    name = request.node.name.removeprefix("test_")[:20].replace("_", "-").strip("-")
    made = Shell(world, name, "--policy", str(world.tmp / "bottles/held.yml"))
    yield made
    with contextlib.suppress(BrokenPipeError):
        made.end()


def send(shell: Shell, n: int, host: str = ONE, name: str = "out", more: str = "") -> None:
    """Begin to send KEYS[n]; the shell goes on. What comes of it is read by got()."""
    shell(f"printf '%s' '{json.dumps({'note': KEYS[n]})}' > /tmp/{name}.json")  # command lines are told in events
    curl = f"curl -sS -m 120 {more} -w '%{{http_code}}\\n' -d @/tmp/{name}.json https://{host}/echo"
    shell(f"({curl} > /tmp/{name}.new 2>&1; mv /tmp/{name}.new /tmp/{name}) & echo sent")


def got(shell: Shell, name: str = "out") -> tuple[int, str]:
    """(status, body) of a request that was sent."""
    text = until(lambda: shell(f"cat /tmp/{name} 2>/dev/null && rm /tmp/{name}; true"), 30, "no answer")
    return int(text[-3:]), text[:-3]


def waits(world: World, count: int = 1) -> list[dict[str, Any]]:
    return until(lambda: len(rows := world.rows("approvals", "list")) == count and rows, 15, "nothing waits")


def decide(world: World, verb: str, number: int, reason: str = "our own test key") -> None:
    world.agentmon("approvals", verb, str(number), "--reason", reason)


def ended(world: World, bottle: str) -> list[dict[str, Any]]:
    return world.rows("approvals", "list", "--ended", "--bottle", bottle)


def test_approved_is_sent_and_remembered(world: World, shell: Shell) -> None:
    send(shell, 0)
    (row,) = waits(world)
    assert (row["bottle"], row["host"], row["method"], row["path"]) == (shell.name, ONE, "POST", "/echo")
    shown = world.agentmon("approvals", "list").stdout
    assert f"POST {ONE}/echo" in shown and "approve|reject" in shown and row["detector"] in shown
    decide(world, "approve", row["id"])
    assert got(shell) == (200, json.dumps({"note": KEYS[0]}))
    send(shell, 0)
    assert got(shell)[0] == 200  # at once
    os.kill(world.pid_of("proxy"), signal.SIGKILL)
    until(lambda: shell.status(f"https://{ONE}/") == "200")
    send(shell, 0)
    assert got(shell)[0] == 200  # the next worker was told
    send(shell, 0, TWO)
    (row,) = waits(world)
    decide(world, "reject", row["id"], "not there")
    status, body = got(shell)
    assert status == 403 and json.loads(body)["error"]["decision"] == "rejected"
    assert [(r["state"], r["reason"]) for r in ended(world, shell.name)] == [
        ("approved", "our own test key"), ("rejected", "not there")
    ]  # fmt: skip
    audit = [r for r in world.rows("ledger", "export", "audit") if r["action"] in {"approve", "reject"}]
    assert [json.loads(r["detail"])["reason"] for r in audit] == ["our own test key", "not there"]
    told = [(e["reason"], e["verdict"]) for e in world.events(shell.name, kind="approval")]
    assert told == [("waiting", "observed"), ("approved", "allowed"), ("waiting", "observed"), ("rejected", "refused")]


def test_two_secrets_in_one_request_are_two_proposals(world: World, shell: Shell) -> None:
    body = json.dumps({"a": KEYS[1], "b": KEYS[2]})
    shell(f"printf '%s' '{body}' > /tmp/two.json")
    curl = f"curl -sS -m 120 -o /tmp/body -w '%{{http_code}}\\n' -d @/tmp/two.json https://{ONE}/echo"
    shell(f"({curl} > /tmp/out) & echo sent")
    (first,) = waits(world)
    decide(world, "approve", first["id"])
    second = until(lambda: next((r for r in world.rows("approvals", "list") if r["id"] != first["id"]), None))
    assert shell("cat /tmp/out") == ""  # nothing has left
    decide(world, "approve", second["id"])
    assert until(lambda: shell("cat /tmp/out")) == "200"
    assert shell("cat /tmp/body; echo") == body


def test_time_up_nobody_there_and_a_client_that_left(world: World, shell: Shell) -> None:
    in_force(world, "approvals_timeout: 1\n")
    assert _refused(shell, 3) == "timeout"
    in_force(world, "approvals: {operator: false}\n")
    assert _refused(shell, 3) == "nobody"
    in_force(world, f"approvals: {{hook: [/bin/sh, -c, 'cat >> {world.tmp}/told']}}\n")
    send(shell, 3, more="-m 2")
    assert until(lambda: shell("cat /tmp/out 2>/dev/null && rm /tmp/out; true"), 30).endswith("000")
    until(lambda: world.rows("approvals", "list") == [], 10, "nobody waits, and the proposal does")
    until(lambda: {"expired", "withdrawn"} <= {r["state"] for r in ended(world, shell.name)})
    (told, *_) = until(lambda: (world.tmp / "told").exists() and (world.tmp / "told").read_text().splitlines())
    assert json.loads(told)["host"] == ONE and not any(key in told for key in KEYS)
    in_force(world, "")


def in_force(world: World, more: str) -> None:
    """Settings, once they are."""

    def told() -> int:
        return sum(e.get("reason") == "settings were read anew" for e in world.rows("events", "--kind", "policy"))

    before = told()
    settings(world, more)
    until(lambda: told() > before, 15, "the settings are not in force")


def _refused(shell: Shell, n: int) -> str:
    send(shell, n)
    status, body = got(shell)
    assert status == 403
    return str(json.loads(body)["error"]["decision"])


def test_a_cut_ends_what_waits_at_once(world: World, shell: Shell) -> None:
    send(shell, 4)
    (row,) = waits(world)
    world.agentmon("cut", shell.name)
    assert got(shell)[0] in {403, 0}  # 0: the answer took longer than the grace, and the kernel ended the connection
    assert world.rows("approvals", "list") == []
    done = world.agentmon("approvals", "approve", str(row["id"]), "--reason", "too late", check=False)
    assert done.returncode == 2 and f"no proposal {row['id']} waits" in done.stderr
    assert [r["state"] for r in ended(world, shell.name)] == ["withdrawn"]
    assert all(r["kind"] == "secret" for r in ended(world, shell.name))  # a cut is no proposal


def test_reloads_lose_neither_a_held_request_nor_a_stream(world: World, shell: Shell) -> None:
    file = world.tmp / "bottles/held.yml"
    shell(f"(curl -sS -m 30 -o /tmp/slow 'https://{TWO}/slow?s=10'; echo $? > /tmp/slow.ended) & echo started")
    send(shell, 5)
    (row,) = waits(world)
    for n in range(20):
        more = f"  - {{host: n{n}.allowed.example}}\n"
        say(file, f"allow: [{ONE}:443, {TWO}:443]\nroutes:\n  - {{host: {ONE}}}\n  - {{host: {TWO}}}\n{more}")
        assert world.daemon is not None
        world.daemon.send_signal(signal.SIGHUP)
        until(lambda n=n: f"n{n}.allowed.example" in world.agentmon("policy", "explain", shell.name, "--json").stdout,
              15)  # fmt: skip
    say(file, MANIFEST)
    (still,) = waits(world)
    assert still["id"] == row["id"]
    decide(world, "approve", row["id"])
    assert got(shell) == (200, json.dumps({"note": KEYS[5]}))
    assert until(lambda: shell("cat /tmp/slow.ended 2>/dev/null; true")) == "0"
    assert shell("wc -c < /tmp/slow") == "200"


def test_without_the_ledger_nothing_is_asked_and_nothing_leaves(world: World, shell: Shell) -> None:
    os.kill(world.pid_of("ledger"), signal.SIGSTOP)
    try:
        assert _refused(shell, 6) == "unavailable"
    finally:
        os.kill(world.pid_of("ledger"), signal.SIGCONT)
    assert world.rows("approvals", "list") == []


def test_a_daemon_that_is_replaced_refuses_what_waits(world: World, shell: Shell) -> None:
    send(shell, 7)
    waits(world)
    assert world.daemon is not None
    world.daemon.send_signal(signal.SIGTERM)  # the bottle stays
    world.daemon.wait(30)
    status, body = got(shell)
    assert (status, json.loads(body)["error"]["decision"]) == (403, "unavailable")
    world.start_daemon()
    (row,) = until(lambda: [r for r in ended(world, shell.name) if r["state"] == "withdrawn"], 15)
    assert row["reason"] == "the daemon was restarted"
    send(shell, 7)  # and the next one is asked
    (row,) = waits(world)
    decide(world, "approve", row["id"])
    assert got(shell)[0] == 200


def test_no_value_is_anywhere(world: World) -> None:
    """Last of the file: in no file of the installation, no log, no event."""
    files = [f for f in world.root.rglob("*") if f.is_file()] + [world.tmp / "daemon.log"]
    for file in (*files, *world.tmp.glob("told")):
        data = file.read_bytes()
        assert not any(key.encode() in data for key in KEYS), file
    shown = world.agentmon("events", "--json").stdout
    assert ONE in shown and not any(key in shown for key in KEYS)
    assert {"events.db", "ledger.db", "daemon.log"} <= {file.name for file in files}
