"""A direct rule never opens an address that a deeper rule holds (DESIGN 3), whatever is looked up first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import Job, World, until

pytestmark = pytest.mark.e2e
SHARED = "198.51.100.11"  # v4only.allowed.example and direct.allowed.example
PROVIDER = "198.51.100.20"  # api.anthropic.com
MANIFEST = """\
allow: ["{direct}", "https://direct.allowed.example"]
routes: [{{host: direct.allowed.example, paths: ["/"]}}]
"""
SHELL = ("sh", "-c", 'while read -r line; do eval "$line"; echo "[done]"; done')


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("fences")) as made:
        made.start_daemon()
        yield made


def ask(job: Job, text: str) -> str:
    job.say(text)
    out = []
    while (line := job.line(20)) != "[done]":
        out.append(line)
    return "\n".join(out)


def status(job: Job, url: str, *options: str) -> str:
    words = " ".join(options)
    return ask(job, f"curl -sSk -m 5 -o /dev/null -w '%{{http_code}}\\n' {words} {url} 2>/dev/null || true")


def straight(job: Job, host: str, address: str, path: str) -> str:
    return status(job, f"https://{host}{path}", f"--resolve {host}:443:{address}")


@pytest.mark.parametrize("direct", ["tcp://v4only.allowed.example:443", f"tcp://{SHARED}:443", "198.51.100.0/25:443"])
@pytest.mark.parametrize("first", ["direct", "held", "neither"])
def test_the_held_host_cannot_be_reached_past_its_proxy(world: World, tmp_path: Path, direct: str, first: str) -> None:
    manifest = tmp_path / "m.yml"
    manifest.write_text(MANIFEST.format(direct=direct))
    job = world.run("--name", f"fence-{first}-{abs(hash(direct)) % 1000}", "--policy", str(manifest), "--", *SHELL)
    assert ask(job, "echo up") == "up"
    if first == "direct":
        ask(job, "getent ahostsv4 v4only.allowed.example >/dev/null")
    elif first == "held":
        assert status(job, "https://direct.allowed.example/") == "200"
    until(lambda: straight(job, "direct.allowed.example", SHARED, "/slow") == "000", 5, "the held address stays open")
    assert straight(job, "v4only.allowed.example", SHARED, "/") == "000"
    assert status(job, "https://direct.allowed.example/") == "200"  # through the proxy it is served
    assert status(job, "https://direct.allowed.example/slow") == "403"
    job.say("exit 0")
    assert job.end()[0] == 0


def test_a_network_rule_does_not_open_the_provider_unmetered(world: World) -> None:
    job = world.run("--provider", "claude", "--budget", "1000", "--allow", f"tcp://{PROVIDER}:443", "--", *SHELL)
    assert ask(job, "echo up") == "up"
    until(lambda: straight(job, "api.anthropic.com", PROVIDER, "/v1/models") == "000", 5, "the provider stays open")
    job.say("exit 0")
    assert job.end()[0] == 0


def test_other_direct_hosts_stay_open(world: World, tmp_path: Path) -> None:
    manifest = tmp_path / "m.yml"
    manifest.write_text(MANIFEST.format(direct="198.51.100.0/25:443"))
    job = world.run("--policy", str(manifest), "--", *SHELL)
    assert ask(job, "echo up") == "up"
    assert straight(job, "www.allowed.example", "198.51.100.10", "/") == "200"
    job.say("exit 0")
    assert job.end()[0] == 0
