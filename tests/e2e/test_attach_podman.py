"""A real podman container on a bridge, attached by its name: held by every layer, also against its own root."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_attach import ALLOW, ALLOWED, FORBIDDEN4, Shell, attached, command, held, row
from tests.support import podman_rig
from tests.support.live import World, until
from tests.support.podman_rig import Podman

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(podman_rig.missing()), reason=podman_rig.missing() or "podman is here"),
]
SPACE, BRIDGE, PORT, TABLE = "amt-pod", "amt-br", "amt-port", "amt_podman"


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    made = Podman(Path(tempfile.mkdtemp(prefix="amt-podman-", dir="/var/tmp")))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, podman: Podman) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("podman"), "budget: {}\n") as made:
        made.env |= podman.env
        made.start_daemon()
        yield made


@pytest.fixture
def bridge() -> Iterator[str]:
    """A namespace on a bridge of the host, routed and masqueraded, as an engine makes one."""
    forwards = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwards.read_text()
    forwards.write_text("1")
    command("ip", "netns", "add", SPACE)
    try:
        for line in (
            f"link add {BRIDGE} type bridge", f"addr add 10.97.8.1/24 dev {BRIDGE}", f"link set {BRIDGE} up",
            f"link add {PORT} type veth peer name eth0 netns {SPACE}", f"link set {PORT} master {BRIDGE} up",
            f"-n {SPACE} link set lo up", f"-n {SPACE} addr add 10.97.8.2/24 dev eth0",
            f"-n {SPACE} link set eth0 up", f"-n {SPACE} route add default via 10.97.8.1",
        ):  # fmt: skip
            command("ip", *line.split())
        command("nft", f"add table inet {TABLE}")
        command("nft", f"add chain inet {TABLE} post {{ type nat hook postrouting priority 100; }}")
        command("nft", f"add rule inet {TABLE} post ip saddr 10.97.8.0/24 oifname != {BRIDGE} masquerade")
        yield f"/run/netns/{SPACE}"
    finally:
        for argv in (("ip", "netns", "del", SPACE), ("ip", "link", "del", PORT), ("ip", "link", "del", BRIDGE),
                     ("nft", f"delete table inet {TABLE}")):  # fmt: skip
            subprocess.run(argv, check=False, capture_output=True)
        forwards.write_text(before)


@pytest.fixture
def web(podman: Podman, bridge: str) -> Iterator[Shell]:
    """A container whose own root may do with its network what it likes."""
    made = Shell(*podman.command("web", bridge, "--cap-add", "NET_ADMIN"), env=os.environ | podman.env)
    try:
        yield made
    finally:
        podman("rm", "--force", "--time", "0", "web", check=False)
        made.end()


def test_a_container_is_held_also_against_its_own_root(world: World, web: Shell, podman: Podman) -> None:
    before = world.counters()["forbidden"]
    web.status(f"http://{FORBIDDEN4}/")
    assert world.counters()["forbidden"] != before  # it could
    with attached(world, "--container", "web", *ALLOW, name="web") as found:
        assert found["attached"] == "container web" and found["notes"] == []
        assert found["layers"][:3] == ["host-nft", "bottle-nft", "bpf"]
        held(world, web)
        one = row(world, "web")
        assert one is not None and one["layers"] == found["layers"]
        web("nft flush ruleset; ip rule del priority 2; ip link set agentmon0 down")
        assert web.status(f"http://{FORBIDDEN4}/") == "000"
        until(lambda: world.events("web", kind="tamper"))
        until(lambda: web.status(ALLOWED) == "200")
        held(world, web)
        world.agentmon("freeze", "web")
        assert podman("inspect", "--format", "{{.State.Status}}", "web") == "running"
        world.agentmon("resume", "web")
        assert web.status(ALLOWED) == "200"
    assert "agentmon0" not in web("ip link") and "agentmon" not in web("nft list ruleset")
    assert web.status(f"http://{FORBIDDEN4}/") != "" and world.counters()["forbidden"] != before


def test_a_container_is_metered_and_cut_when_its_budget_is_spent(world: World, web: Shell) -> None:
    body = {"model": "claude-scripted-in700-out42", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}
    ask = (
        "curl -ksS -m 10 -o /tmp/out -w '%{http_code}\\n' -H 'x-api-key: sk-test' -H 'anthropic-version: 2023-06-01'"
        f" -H 'content-type: application/json' -d '{json.dumps(body)}' https://api.anthropic.com/v1/messages; "
    )
    options = ("--allow", "api.anthropic.com", "--provider", "claude", "--budget", "700")
    with attached(world, "--container", "web", *options, name="web"):
        assert "CERTIFICATE" in Path(f"{world.root}/run/agentmon/trust/bundle.pem").read_text()
        web(ask)
        one = until(lambda: (found := row(world, "web")) and found["phase"] == "cut" and found)
        assert one["spent"]["provider"] == "claude" and one["spent"]["used"] >= 700
        assert web(ask) == "403" and "budget_exhausted" in web("cat /tmp/out; echo")
        usage = [r for r in world.rows("usage", "--by", "bottle") if r["bottle"] == "web"]
        assert usage and usage[0]["weighted"] == 742


def test_the_bottle_ends_with_its_container(world: World, web: Shell, podman: Podman) -> None:
    with attached(world, "--container", "web", *ALLOW, name="web"):
        podman("stop", "--time", "0", "web")
        until(lambda: row(world, "web") is None)
        assert world.events("web", reason="container web has ended: nothing is held any more")
        done = world.agentmon("attach", "--container", "web", check=False)
        assert done.returncode == 2 and "is not running" in done.stderr and "podman start web" in done.stderr


def test_a_container_that_is_not_there_is_said(world: World, tmp_path: Path) -> None:
    done = world.agentmon("attach", "--container", "nobody", check=False)
    assert done.returncode == 2 and "no container 'nobody'" in done.stderr
    nothing = world.env | {"PATH": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    done = world.agentmon("attach", "--container", "nobody", check=False, env=nothing)
    assert done.returncode == 4 and "apt-get install podman" in done.stderr
