"""Rules, routes and devices changed behind the daemon's back, as a person meets it: told, put back, or the job ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.live import Job, World, until

pytestmark = pytest.mark.e2e
DIRECT = "direct.allowed.example"
SHELL = ("sh", "-c", 'while read -r line; do eval "$line"; echo "[done]"; done')


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("healing"), "log: off\n") as made:
        made.start_daemon()
        yield made


def start(world: World, name: str) -> tuple[Job, int]:
    """A shell in a bottle, and the bottle's slot."""
    rules = ("--allow", "www.allowed.example:443", "--allow", f"tcp://{DIRECT}:8080")
    job = world.run("--name", name, *rules, "--", *SHELL)
    ask(job, "true")
    return job, int(next(row["slot"] for row in world.rows("ps") if row["bottle"] == name))


def ask(job: Job, text: str) -> str:
    job.say(text)
    out = []
    while (line := job.line(20)) != "[done]":
        out.append(line)
    return "\n".join(out)


def status(job: Job, url: str) -> str:
    return ask(job, f"curl -sS -m 8 -o /dev/null -w '%{{http_code}}\\n' {url} 2>/dev/null || true")


def nft(*words: str) -> None:
    """Of our own table only: the host is everybody's."""
    subprocess.run(["nft", *words], check=False, capture_output=True)


def tampering(world: World, **match: Any) -> list[dict[str, Any]]:
    return [e for e in world.rows("events", "--kind", "tamper") if all(e.get(k) == v for k, v in match.items())]


def test_a_deleted_table_is_put_back_and_told_with_its_culprit(world: World) -> None:
    job, slot = start(world, "table")
    assert status(job, "https://www.allowed.example/") == "200"
    nft("delete", "table", "inet", "agentmon")
    event = until(lambda: tampering(world, layer="host-nft"))[-1]
    assert event["comm"] == "nft" and event["pid"] > 0 and event["reason"] == "table agentmon deleted"
    assert event["detail"]["place"] == "host" and event["detail"]["restored_ms"] > 0
    shown = world.agentmon("events", "--kind", "tamper").stdout
    assert "table agentmon deleted by nft" in shown and "put back after" in shown
    assert status(job, "https://www.allowed.example/") == "200"
    assert status(job, "https://other.allowed.example/") == "000"

    subprocess.run(["ip", "netns", "exec", f"am-{slot}", "nft", "flush", "ruleset"], check=True)
    event = until(lambda: tampering(world, bottle="table"))[-1]
    assert (event["layer"], event["detail"]["place"]) == ("bottle-nft", "bottle")
    assert status(job, f"http://{DIRECT}:8080/") == "200"
    assert status(job, f"http://{DIRECT}:8443/") == "000"
    job.say("exit 0")
    assert job.end()[0] == 0


def test_a_cut_bottle_stays_cut_when_its_table_is_put_back(world: World) -> None:
    job, _ = start(world, "cut")
    assert status(job, f"http://{DIRECT}:8080/") == "200"
    world.agentmon("cut", "cut")
    before = len(tampering(world, layer="host-nft"))
    nft("delete", "table", "inet", "agentmon")
    until(lambda: len(tampering(world, layer="host-nft")) > before)
    assert status(job, f"http://{DIRECT}:8080/") == "000"
    world.agentmon("resume", "cut")
    assert status(job, f"http://{DIRECT}:8080/") == "200"
    job.say("exit 0")
    assert job.end()[0] == 0


def test_a_bottle_whose_device_is_deleted_is_ended_and_says_why(world: World) -> None:
    job, slot = start(world, "device")
    subprocess.run(["ip", "link", "delete", f"am{slot}"], check=True)
    code, _, err = job.end()
    assert code == 125  # not the command's own end
    assert f"the bottle was ended: device am{slot}" in err and "agentmon events --kind tamper" in err
    assert any(e["verdict"] == "refused" and e["detail"]["lost"] for e in tampering(world, bottle="device"))
    assert [e["kind"] for e in world.events("device", kind="kill")] == ["kill"]
    assert "device" not in [row["bottle"] for row in world.rows("ps")]


def test_what_was_changed_while_no_daemon_ran_is_put_back_and_told(world: World) -> None:
    """Of two bottles one had its routes changed, the other lost its device."""
    (job, slot), (torn, gone) = start(world, "asleep"), start(world, "torn")
    assert world.daemon is not None
    world.daemon.terminate()
    assert world.daemon.wait(20) == 0
    subprocess.run(["ip", "addr", "add", "192.0.2.9/32", "dev", f"am{slot}"], check=True)
    nft("add chain inet agentmon theirs { type filter hook forward priority 1; }")
    subprocess.run(["ip", "link", "delete", f"am{gone}"], check=True)
    world.start_daemon()
    told = until(lambda: tampering(world, bottle="asleep"))
    assert [e["reason"] for e in told] == [f"am{slot}: address 192.0.2.9/32 added"]
    assert [e["reason"] for e in tampering(world, reason="chain theirs added")] == ["chain theirs added"]
    (ended,) = tampering(world, bottle="torn")
    assert ended["verdict"] == "refused" and f"device am{gone}" in ended["reason"]
    assert [row["bottle"] for row in world.rows("ps")] == ["asleep"]
    assert status(job, f"http://{DIRECT}:8080/") == "200"
    job.say("exit 0")
    assert job.end()[0] == 0
    assert torn.end()[0] != 0


def test_who_does_it_again_and_again_is_told_once_and_the_bottle_works_afterwards(world: World) -> None:
    job, _ = start(world, "storm")
    before = len(tampering(world))
    loop = subprocess.Popen(["sh", "-c", "while :; do nft delete table inet agentmon 2>/dev/null; done"])
    try:
        until(lambda: any("again and again" in e["reason"] for e in tampering(world)))  # once, in whose test it may be
        assert status(job, "https://other.allowed.example/") == "000"
    finally:
        loop.kill()
        loop.wait()
    until(lambda: status(job, f"http://{DIRECT}:8080/") == "200", 30)
    last = until(lambda: [e for e in tampering(world)[before:] if "quiet now" in e["reason"]], 30)[0]
    assert last["count"] > 0
    assert len(tampering(world)[before:]) < 20
    job.say("exit 0")
    assert job.end()[0] == 0


def test_a_firewall_that_drops_what_is_forwarded_is_explained_at_run(world: World) -> None:
    """A chain that drops nothing but what bottles send: the host is everybody's."""
    rules = "table inet site_test {\nchain way { type filter hook forward priority 0; policy drop;\n"
    rules += "ip saddr != 10.213.0.0/16 ip daddr != 10.213.0.0/16 accept; meta nfproto ipv6 accept; }\n}"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        done = world.agentmon("run", "--name", "blocked", "--", "true", check=False)
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "site_test"], check=True)
    assert done.returncode == 125
    assert "chain way of table inet site_test drops what is forwarded (policy drop)" in done.stderr
    assert "hint: sudo nft insert rule inet site_test way meta mark '&' 0x1000000 == 0x1000000 accept" in done.stderr
    assert world.agentmon("run", "--name", "free", "--", "true").returncode == 0
