"""What breaks in the network around running bottles: names, large policies, the relay, nftables."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.internet.world import HOST_LINK
from tests.support.live import COMMAND, ROOT, Job, World, until

pytestmark = pytest.mark.e2e
SHELL = ("sh", "-c", 'while read -r line; do eval "$line"; echo "[done]"; done')
WWW, DIRECT, DIRECT6, ECHO = "www.allowed.example", "198.51.100.11", "2001:db8:1::11", 9000
FETCH = f"curl -sS -m 5 -o /dev/null -w '%{{http_code}}\\n' https://{WWW}/ 2>&1 || true"
SAY = f"exec 9<>/dev/tcp/{DIRECT}/{ECHO} && echo hello >&9 && head -n 1 <&9"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("network")) as made:
        made.start_daemon()
        yield made


@pytest.fixture(autouse=True)
def nothing_leaks(world: World) -> Iterator[None]:
    before = world.counters()["forbidden"]
    yield
    assert world.counters()["forbidden"] == before


def ask(job: Job, text: str, seconds: float = 20.0) -> str:
    job.say(text)
    out = []
    while (line := job.line(seconds)) != "[done]":
        out.append(line)
    return "\n".join(out)


def shell(world: World, name: str, *options: str) -> Job:
    job = world.run("--name", name, "--allow", f"{WWW}:443", *options, "--", *SHELL)
    assert ask(job, "echo up") == "up"
    return job


def over(job: Job) -> None:
    job.say("exit 0")
    assert job.end()[0] == 0


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("missing", "nxdomain", "this name does not exist"),
        ("servfail", "servfail", "the name servers cannot answer for this name"),
        ("silent", "timeout", "the name servers did not answer in time"),
        ("loopback", "stripped", "all addresses of this name are closed to every bottle"),
    ],
)
def test_an_allowed_name_that_leads_nowhere_is_told_in_words(world: World, name: str, reason: str, words: str) -> None:
    host = f"{name}.allowed.example"
    url = f"https://{host}/"
    done = world.agentmon(
        "run", "--name", f"to-{name}", "--allow", f"{host}:443", "--allow", f"{WWW}:443", "--",
        "sh", "-c", f"curl -sS -m 20 {url}; curl -sS -m 5 https://{WWW}/", check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == f"this is {WWW}\n", done  # nothing else changes
    assert "curl: (35)" in done.stderr  # a TLS alert at once, not silence
    (event,) = world.events(f"to-{name}", host=host, reason=reason)
    assert (event["verdict"], event["layer"]) == ("allowed", "relay")
    text = world.agentmon("events", "--bottle", f"to-{name}").stdout
    assert f"tried to connect to {host}:443: allowed by the relay, but {words}" in text, text


def test_a_manifest_of_ten_thousand_lines_is_applied_whole(world: World, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    manifest = tmp_path / "large.yml"
    rules = [f"tcp://11.{i >> 8}.{i & 255}.7:443" for i in range(5000)]
    rules += [f"host-{i}.allowed.example:443" for i in range(5000)]
    lines = ["allow:", *(f"  - {rule}" for rule in rules), f"  - tcp://{DIRECT}:{ECHO}"]
    manifest.write_text("\n".join(lines) + "\n")
    began = time.monotonic()
    job = shell(world, "large", "--policy", str(manifest))
    with capsys.disabled():
        print(f"\n10,001 lines: {time.monotonic() - began:.2f} s to a running bottle")
    assert ask(job, f"timeout 5 bash -c '{SAY}'") == "hello"
    assert ask(job, FETCH) == "200"
    assert (
        ask(job, "timeout 5 bash -c 'echo x >/dev/tcp/203.0.113.10/443' 2>/dev/null && echo open || echo shut")
        == "shut"
    )
    over(job)
    manifest.write_text("\n".join([*lines, "  - '10.*:443'"]) + "\n")
    done = world.agentmon("run", "--policy", str(manifest), "--", "true", check=False)
    assert done.returncode == 125 and f"large.yml:{len(lines) + 1}:" in done.stderr and "hint:" in done.stderr


def test_the_relay_killed_under_load(world: World) -> None:
    """What it carried ends, at once and for good; nothing gets past the gap; its successor carries what comes then."""
    job = shell(world, "loaded")
    for number, path in enumerate(("/bulk?n=4000000000", "/slow?s=600") * 4):
        ask(job, f"(curl -sSN -o /tmp/got{number} https://{WWW}{path} 2>/dev/null; echo $? >/tmp/end{number}) &")
    until(lambda: ask(job, "cat /tmp/got* 2>/dev/null | head -c 100000000 | wc -c") == "100000000", 30)
    until(lambda: ask(job, "for n in 0 1 2 3 4 5 6 7; do test -s /tmp/got$n || echo not yet; done") == "")
    old = world.pid_of("relay")
    os.kill(old, signal.SIGKILL)
    until(lambda: ask(job, "cat /tmp/end* 2>/dev/null | wc -l") == "8", 20, "a flow outlived the relay")
    assert set(ask(job, "cat /tmp/end*").split()) <= {"18", "35", "56"}
    until(lambda: world.pid_of("relay") != old, 20)
    until(lambda: ask(job, FETCH) == "200", 20, "the new relay is not used")
    told = [e for e in world.rows("events", "--kind", "daemon") if "relay" in e.get("reason", "")]
    assert any("gone away" in e["reason"] for e in told), told
    over(job)


def off(switches: Iterable[Path]) -> list[str]:
    return [str(path) for path in switches if path.read_text() != "1\n"]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_forwarding_switched_off_by_somebody(world: World, family: str) -> None:
    """It is said, put back, and what is allowed works again."""
    address = DIRECT if family == "ipv4" else DIRECT6
    where = address if family == "ipv4" else f"[{address}]"
    job = shell(world, f"forward-{family}", "--allow", f"tcp://{where}:{ECHO}")
    say = f"timeout 5 bash -c '{SAY.replace(DIRECT, address)}' 2>/dev/null || echo nothing"
    assert ask(job, say) == "hello"
    slot = next(row["slot"] for row in world.rows("ps") if row["bottle"] == f"forward-{family}")
    devices = ("am-svc", HOST_LINK, f"am{slot}") if family == "ipv4" else ("all",)
    switches = [Path("/proc/sys/net", family, "conf", device, "forwarding") for device in devices]
    assert off(switches) == []
    for path in switches:
        path.write_text("0")
    until(lambda: off(switches) == [], 20, "forwarding stays off")
    named = [f"net.{family}.conf.{device}.forwarding" for device in devices]
    until(lambda: all(any(name in e["reason"] for e in world.rows("events", "--kind", "tamper")) for name in named))
    assert ask(job, say) == "hello"
    assert ask(job, FETCH) == "200"
    over(job)


class TestStart:
    """What a daemon says that cannot start, without one running."""

    @pytest.fixture
    def quiet(self, world: World) -> Iterator[World]:
        world.stop_daemon()
        yield world
        world.start_daemon()

    def test_without_nftables(self, quiet: World) -> None:
        library = "$(ldconfig -p | sed -n 's/.*libnftables.so.1 .*=> //p' | head -n 1)"
        hidden = {
            "libnftables": f'mount --bind /dev/null "{library}"',
            "python3-nftables": "mount -t tmpfs none /usr/lib/python3/dist-packages",
        }
        for what, how in hidden.items():
            done = self.daemon_without(quiet, how)
            assert done.returncode == 4, done
            assert f"error: {what} is missing\nhint: apt-get install {what}" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr, done.stderr
        hollow = "/usr/lib/python3/dist-packages"  # what nobody thought of ends it as well
        done = self.daemon_without(quiet, f"mount -t tmpfs none {hollow} && mkdir {hollow}/nftables")
        assert done.returncode == 1 and "error: agentmon itself failed: AttributeError" in done.stderr, done
        assert "Traceback" not in done.stderr, done.stderr

    @staticmethod
    def daemon_without(quiet: World, hidden: str) -> subprocess.CompletedProcess[str]:
        script = f'PATH=$PATH:/sbin:/usr/sbin; {hidden} || exit 99; exec "$@"'
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *COMMAND, "daemon"], cwd=ROOT, env=quiet.env,
            capture_output=True, text=True, timeout=40, check=False,
        )  # fmt: skip
