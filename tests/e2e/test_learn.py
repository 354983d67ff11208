"""The circle of `policy learn`: a job is observed, a manifest is learned from it, and the job is held by that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import World, until

pytestmark = pytest.mark.e2e

CURL = "curl -sS -m 8 -o /dev/null -w '%{http_code}\\n'"
PYTHON = """
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(5)
u.sendto(b"by address", ("198.51.100.11", 9000))
print(u.recv(100))
u.connect(("v4only.allowed.example", 9000))
u.send(b"by name")
print(u.recv(100))
t = socket.create_connection(("direct.allowed.example", 9000), 5)
t.sendall(b"stream")
print(t.recv(100))
"""
STEPS = (
    f"{CURL} https://www.allowed.example/",
    f"{CURL} https://other.allowed.example/",  # the address of www
    f"{CURL} http://www.allowed.example/",
    f"{CURL} -4 -k https://direct.allowed.example:8443/",
    f"{CURL} -6 -k https://direct.allowed.example:8443/",
    f"{CURL} -g 'http://[2001:db8:1::11]:8080/'",
    f"python3 -c '{PYTHON}'",
)
WORKED = "200\n" * 6 + "b'by address'\nb'by name'\nb'stream'\n"
IN_VAIN = (
    "curl -sS -m 5 http://169.254.169.254/",
    "curl -sS -m 5 -o /dev/null https://api.anthropic.com/",  # a provider's host is not opened by --observe
    "curl -sS -m 5 https://nosuch.allowed.example/",
)
JOB = "\n".join(f"{step} || echo failed" for step in STEPS) + "\n" + "\n".join(f"{s} 2>/dev/null" for s in IN_VAIN)
RULES = {
    "www.allowed.example:443", "www.allowed.example:80", "other.allowed.example:443", "direct.allowed.example:8443",
    "direct.allowed.example:9000", "[2001:db8:1::11]:8080", "udp://198.51.100.11:9000",
    "udp://v4only.allowed.example:9000", "api.anthropic.com:443",
}  # fmt: skip
UNSEEN = (
    "https://a.wild.example/", "https://direct.allowed.example:8444/", "http://198.51.100.11:8080/",
    "https://www.forbidden.example/", "http://203.0.113.10/",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("learn")) as made:
        made.start_daemon()
        yield made


def test_what_a_job_was_seen_to_do_is_learned_held_and_enough(world: World, tmp_path: Path) -> None:
    done = world.agentmon("run", "--name", "seen", "--observe", "--", "sh", "-c", JOB, check=False)
    assert done.stdout == WORKED, done.stderr

    until(lambda: len(world.events("seen", layer="bpf", verdict="observed")) > 5)
    found = json.loads(world.agentmon("policy", "learn", "seen", "--json").stdout)
    assert {rule["rule"] for rule in found["rules"]} == RULES
    left = {unmet["what"]: unmet["because"] for unmet in found["not_proposed"]}
    assert left["169.254.169.254:80"] == "protected" and left["nosuch.allowed.example"] == "lookup"
    by_rule = {rule["rule"]: rule for rule in found["rules"]}
    assert by_rule["direct.allowed.example:9000"]["processes"] == ["python3"]
    assert by_rule["api.anthropic.com:443"]["assumed_port"] and by_rule["www.allowed.example:443"]["or"] == []

    file = tmp_path / "learned.yml"
    world.agentmon("policy", "learn", "seen", "--output", str(file))
    assert file.read_text() == found["manifest"] == world.agentmon("policy", "learn", "seen").stdout
    assert "9 rules" in world.agentmon("policy", "check", str(file)).stdout

    forbidden = world.counters()["forbidden"]
    tried = "\n".join(f"{CURL} -k {url} 2>/dev/null" for url in UNSEEN)
    done = world.agentmon("run", "--policy", str(file), "--", "sh", "-c", f"{JOB}\n{tried}", check=False)
    assert done.stdout == WORKED + "000\n" * len(UNSEEN), done.stderr
    assert world.counters()["forbidden"] == forbidden


def test_of_a_running_bottle_its_rules_are_kept_and_of_an_ended_one_its_manifest_extended(
    world: World, tmp_path: Path
) -> None:
    base = tmp_path / "base.yml"
    base.write_text("allow: ['tcp://direct.allowed.example:8443', '!v4only.allowed.example']\n")
    curl = "curl -sSk -m 5 -o /dev/null https://direct.allowed.example"
    job = world.run(
        "--name", "partly", "--policy", str(base), "--", "sh", "-c",
        f"{curl}:8443/ && {curl}:9443/; curl -sS -m 5 http://v4only.allowed.example/; echo tried; read -r line",
    )  # fmt: skip
    assert job.line() == "tried"
    until(lambda: world.events("partly", port=9443))
    while_it_runs = world.agentmon("policy", "learn", "partly").stdout
    rules = [line.strip() for line in while_it_runs.splitlines() if line.startswith("  - ")]
    assert rules == [
        '- "tcp://direct.allowed.example:8443"', '- "!v4only.allowed.example"', '- "direct.allowed.example:9443"',
    ]  # fmt: skip
    same = world.agentmon("policy", "diff", "partly", str(base))
    assert same.stdout == "no difference\n"  # budgets too: the file is taken as this bottle's
    (tmp_path / "wider.yml").write_text("allow: [direct.allowed.example]\n")
    other = world.agentmon("policy", "diff", "partly", str(tmp_path / "wider.yml"), check=False)
    assert other.returncode == 1
    assert "- direct.allowed.example TCP 8443: no longer reachable" in other.stdout.splitlines()
    job.say("end")
    assert job.end()[0] == 0
    ended = world.agentmon("policy", "learn", "partly", "--policy", str(base)).stdout
    assert f'extends: "{base}"' in ended and "a rule denies it (!v4only.allowed.example)" in ended
    assert [line.strip() for line in ended.splitlines() if line.startswith("  - ")] == rules[-1:]
    (tmp_path / "more.yml").write_text(ended)
    assert "3 rules from 3 files" in world.agentmon("policy", "check", str(tmp_path / "more.yml")).stdout


def test_without_a_daemon_the_stored_events_are_enough_and_an_unknown_bottle_is_said(world: World) -> None:
    world.agentmon("run", "--name", "past", "--", "curl", "-sS", "-m", "5", "https://www.allowed.example/", check=False)
    until(lambda: world.events("past", kind="dns"))
    with_daemon = world.agentmon("policy", "learn", "past").stdout
    world.stop_daemon()
    try:
        assert world.agentmon("policy", "learn", "past").stdout == with_daemon
        assert '  - "www.allowed.example:443"' in with_daemon
        nobody = world.agentmon("policy", "learn", "nobody", check=False)
        assert nobody.returncode == 2 and "no events of a bottle 'nobody' are stored" in nobody.stderr
        there = world.agentmon("policy", "learn", "past", "--output", "/dev/null", check=False)
        assert there.returncode == 2 and "--output /dev/null: File exists" in there.stderr
    finally:
        world.start_daemon()
