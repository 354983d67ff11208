"""What others started, attached as a user does it: a bare process in a namespace of its own, a named namespace, a
cgroup; held, cut, frozen, killed, let go; the stand-in internet counts what it received."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.daemon.cgroups import find_v2
from tests.support.live import World, until

pytestmark = pytest.mark.e2e
ALLOW = ("--allow", "www.allowed.example:443", "--allow", "tcp://direct.allowed.example:8080")
ALLOWED, DIRECT = "https://www.allowed.example/", "http://direct.allowed.example:8080/"
FORBIDDEN4, FORBIDDEN6 = "203.0.113.10", "2001:db8:2::10"
OLDER = f'import socket, time; s = socket.create_connection(("{FORBIDDEN4}", 80), 3); time.sleep(60)'
LOOP = 'while read -r line; do eval "$line"; echo "[done]"; done'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("attach")) as made:
        made.start_daemon()
        yield made


class Shell:
    """A shell that somebody else started; `argv` is what it runs under."""

    def __init__(self, *argv: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*argv, "sh", "-c", LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=env,
        )  # fmt: skip
        assert self("echo up") == "up"

    def __call__(self, text: str, seconds: float = 20.0) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.answer(seconds)

    def answer(self, seconds: float) -> str:
        assert self.process.stdout is not None
        out = b""
        while not out.endswith(b"[done]\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            assert ready, f"nothing more in {seconds} s; so far {out!r}"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, f"it ended; so far {out!r}"
            out += data
        return out.decode().removesuffix("[done]\n").strip()

    def status(self, url: str) -> str:
        """The status of a request, 000 where there is none."""
        return self(f"curl -gsS -m 4 -k -o /dev/null -w '%{{http_code}}\\n' {url} 2>/dev/null || true")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Veth:
    """A namespace's own way out, as a container engine gives it: routed and masqueraded by a table of its own."""

    NAME, TABLE = "amt-veth", "amt_engine"

    def __init__(self, pid: int) -> None:
        self._switched = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        command("ip", "link", "add", self.NAME, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        command("ip", "addr", "add", "10.97.7.1/24", "dev", self.NAME)
        command("ip", "link", "set", self.NAME, "up")
        inside = ("nsenter", "-t", str(pid), "-n", "ip")
        command(*inside, "addr", "add", "10.97.7.2/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            command(*inside, "link", "set", name, "up")
        command(*inside, "route", "add", "default", "via", "10.97.7.1")
        command("nft", f"add table inet {self.TABLE}")
        command("nft", f"add chain inet {self.TABLE} post {{ type nat hook postrouting priority 100; }}")
        command("nft", f"add rule inet {self.TABLE} post ip saddr 10.97.7.0/24 masquerade")

    def remove(self) -> None:
        subprocess.run(["ip", "link", "del", self.NAME], check=False, capture_output=True)
        command("nft", f"delete table inet {self.TABLE}")
        Path("/proc/sys/net/ipv4/ip_forward").write_text(self._switched)


def command(*argv: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A bare process in a network namespace with a veth of its own, in a cgroup that it shares with this test."""
    made = Shell("unshare", "-n")
    veth = Veth(made.process.pid)
    try:
        yield made
    finally:
        veth.remove()
        made.end()


@contextlib.contextmanager
def attached(world: World, *words: str, name: str = "it") -> Iterator[dict[str, Any]]:
    done = world.agentmon("attach", *words, "--name", name, "--json")
    try:
        yield json.loads(done.stdout)
    finally:
        world.agentmon("detach", name, check=False)


def row(world: World, name: str = "it") -> dict[str, Any] | None:
    return next((r for r in world.rows("ps") if r["bottle"] == name), None)


def held(world: World, shell: Shell) -> None:
    """What is allowed is reached by name and directly; nothing else receives a byte."""
    before = world.counters()["forbidden"]
    assert shell.status(ALLOWED) == "200"
    assert shell.status(DIRECT) == "200"
    for url in (f"http://{FORBIDDEN4}/", f"http://[{FORBIDDEN6}]/", "https://www.forbidden.example/"):
        assert shell.status(url) == "000", url
    send = "import socket; s = socket.socket(%s, socket.SOCK_DGRAM); s.sendto(b'leak', ('%s', 9))"
    for family, address in (("socket.AF_INET", FORBIDDEN4), ("socket.AF_INET6", FORBIDDEN6)):
        shell(f'python3 -c "{send % (family, address)}" 2>/dev/null; true')
    assert world.counters()["forbidden"] == before


def test_a_bare_process_is_held_until_it_is_let_go(world: World, shell: Shell) -> None:
    pid = shell.process.pid
    cgroup = Path(f"/proc/{pid}/cgroup").read_text()
    assert shell.status(f"http://{FORBIDDEN4}/") != "" and world.counters()["forbidden"]  # it could
    shell(f"python3 -c '{OLDER}' >/dev/null 2>&1 & sleep 0.5")
    with attached(world, "--pid", str(pid), *ALLOW) as found:
        assert found["layers"] == ["host-nft", "bottle-nft", "bpf", "resolver", "relay", "proxy"]
        assert found["ended"] >= 1
        assert any("moved" in note for note in found["notes"])
        held(world, shell)
        assert "/agentmon/b" in Path(f"/proc/{pid}/cgroup").read_text()
        one = row(world)
        assert one is not None and one["attached"] == f"process {pid}" and pid in one["processes"]
        event = until(lambda: world.events("it", layer="bpf", dst=FORBIDDEN4))[0]
        assert event["comm"] in {"curl", "python3"} and event["verdict"] == "refused"
        assert f"[process {pid}]" in world.agentmon("ps").stdout
        out = world.agentmon("detach", "it").stdout
        assert "nothing holds them any more" in out
    assert row(world) is None
    assert Path(f"/proc/{pid}/cgroup").read_text() == cgroup
    assert shell("echo alive") == "alive"
    assert "agentmon0" not in shell("ip link; nft list ruleset; ip rule")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """One that an engine made for its container."""
    path = find_v2() / f"agentmon-test-engine-{os.getpid()}" / "container"
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        (path / "cgroup.kill").write_text("1")
        until(lambda: "populated 0" in (path / "cgroup.events").read_text())
        for directory in (path, path.parent):
            until(lambda d=directory: _gone(d))


def _gone(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        directory.rmdir()
    return not directory.exists()


@pytest.fixture
def container(cgroup: Path) -> Iterator[Shell]:
    """A process in a namespace and a cgroup of its own, without any device but the loopback one."""
    made = Shell("sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec unshare -n "$@"', "sh")
    try:
        yield made
    finally:
        made.end()


def test_a_container_keeps_its_cgroup_and_gets_a_way_out(world: World, container: Shell, cgroup: Path) -> None:
    with attached(world, "--cgroup", str(cgroup), *ALLOW) as found:
        assert (found["attached"], found["notes"]) == (f"cgroup {cgroup}", [])
        assert str(container.process.pid) in (cgroup / "cgroup.procs").read_text().split()
        assert not list(cgroup.glob("*/"))  # nothing of ours is left in there
        held(world, container)
        world.agentmon("allow", "it", "other.allowed.example:443")
        assert container.status("https://other.allowed.example/") == "200"
        world.agentmon("deny", "it", "tcp://direct.allowed.example:8080")
        assert container.status(DIRECT) == "000"
        done = world.agentmon("attach", "--cgroup", str(cgroup), check=False)
        assert done.returncode == 2 and "bottle 'it'" in done.stderr
    assert "agentmon0" not in container("ip link")


def test_bpf_holds_it_when_every_packet_rule_is_gone(world: World, container: Shell, cgroup: Path) -> None:
    """And only BPF: a process of another cgroup in the same namespace gets out."""
    assert world.daemon is not None
    connect = f"python3 -c \"import socket; socket.create_connection(('{FORBIDDEN4}', 80), 3)\" 2>&1 | tail -1"
    with attached(world, "--cgroup", str(cgroup), *ALLOW) as found:
        slot = found["slot"]
        world.daemon.send_signal(signal.SIGSTOP)
        try:
            container("nft flush ruleset")
            command("nft", f"insert rule inet agentmon b{slot} meta mark set meta mark or 0x1000000 accept")
            before = world.counters()["forbidden"]
            assert "PermissionError" in container(connect)
            assert world.counters()["forbidden"] == before
            other = subprocess.run(
                ["nsenter", f"--net=/proc/{container.process.pid}/ns/net", "sh", "-c", connect], capture_output=True,
                text=True, check=False, timeout=20,
            )  # fmt: skip
            assert "PermissionError" not in other.stdout and world.counters()["forbidden"] != before
        finally:
            world.daemon.send_signal(signal.SIGCONT)


def test_it_is_cut_frozen_resumed_and_killed_like_any_bottle(world: World, container: Shell, cgroup: Path) -> None:
    with attached(world, "--cgroup", str(cgroup), *ALLOW):
        assert container.status(ALLOWED) == "200"
        world.agentmon("cut", "it")
        assert container.status(ALLOWED) == "000" and container.status(DIRECT) == "000"
        world.agentmon("resume", "it")
        assert container.status(ALLOWED) == "200"
        world.agentmon("freeze", "it")
        assert "frozen 1" in (cgroup / "cgroup.events").read_text()
        world.agentmon("resume", "it")
        assert container.status(DIRECT) == "200"
        world.agentmon("kill", "it")
        assert container.process.wait(10) != 0
        until(lambda: row(world) is None)
        assert (cgroup / "cgroup.events").exists()


def test_what_its_own_root_takes_away_comes_back(world: World, container: Shell, cgroup: Path) -> None:
    with attached(world, "--cgroup", str(cgroup), *ALLOW) as found:
        container("nft flush ruleset; ip rule del priority 2")
        until(lambda: world.events("it", kind="tamper"))
        until(lambda: container("nft list chain inet agentmon judge >/dev/null 2>&1 && echo there") == "there")
        until(lambda: container.status(ALLOWED) == "200")
        held(world, container)
        name = Path(f"/run/netns/am-{found['slot']}")
        command("ip", "netns", "del", name.name)  # by the host's root: nothing is ended for it
        until(name.exists)
        until(lambda: name.stat().st_ino == Path(f"/proc/{container.process.pid}/ns/net").stat().st_ino)
        held(world, container)


def test_another_daemon_takes_over_what_is_attached(world: World, container: Shell, cgroup: Path) -> None:
    assert world.daemon is not None
    with attached(world, "--cgroup", str(cgroup), *ALLOW):
        for end in (signal.SIGTERM, signal.SIGINT):  # neither lets go of what others started
            world.daemon.send_signal(end)
            world.daemon.wait(30)
            assert container.status(f"http://{FORBIDDEN4}/") == "000"
            world.start_daemon()
            until(lambda: row(world))
            until(lambda: container.status(ALLOWED) == "200")  # its services have found the new daemon
            held(world, container)


def test_what_no_daemon_can_read_stays_held(world: World, container: Shell, cgroup: Path) -> None:
    """Its policy is not known; letting it go would open it."""
    assert world.daemon is not None
    with attached(world, "--cgroup", str(cgroup), *ALLOW) as found:
        state = world.run_dir / f"state/{found['slot']}.json"
        world.daemon.send_signal(signal.SIGTERM)
        world.daemon.wait(30)
        saved = state.read_bytes()
        state.write_text("{")
        world.start_daemon()
        assert "stays held as it was" in world.log() and row(world) is None
        before = world.counters()["forbidden"]
        assert world.agentmon("run", "--", "true").returncode == 0  # in another slot
        assert container.status(f"http://{FORBIDDEN4}/") == "000" and world.counters()["forbidden"] == before
        world.daemon.send_signal(signal.SIGTERM)
        world.daemon.wait(30)
        assert container.status(f"http://{FORBIDDEN4}/") == "000" and world.counters()["forbidden"] == before
        state.write_bytes(saved)
        world.start_daemon()
        until(lambda: row(world))


def test_one_that_cannot_be_taken_over_stays_held_and_stops_no_daemon(
    world: World, container: Shell, cgroup: Path
) -> None:
    """Its own root has removed our device and made another by its name."""
    assert world.daemon is not None
    with attached(world, "--cgroup", str(cgroup), *ALLOW) as found:
        inside = ("ip", "-n", f"am-{found['slot']}", "link")
        world.daemon.send_signal(signal.SIGTERM)
        world.daemon.wait(30)
        command(*inside, "del", "agentmon0")
        command(*inside, "add", "agentmon0", "type", "veth", "peer", "name", "other0")
        world.start_daemon()
        assert "cannot be taken over" in world.log() and row(world) is None
        before = world.counters()["forbidden"]
        assert world.agentmon("run", "--", "true").returncode == 0
        assert container.status(f"http://{FORBIDDEN4}/") == "000" and world.counters()["forbidden"] == before
        command(*inside, "del", "agentmon0")
        world.daemon.send_signal(signal.SIGTERM)
        world.daemon.wait(30)
        world.start_daemon()
        until(lambda: row(world))


def test_without_a_daemon_one_is_started_that_ends_with_it(world: World, container: Shell, cgroup: Path) -> None:
    world.stop_daemon()
    with attached(world, "--cgroup", str(cgroup), *ALLOW):
        assert container.status(DIRECT) == "200"
    until(lambda: not world.run_dir.exists())  # the last thing that it does
    world.start_daemon()


def test_the_bottle_goes_with_what_it_was_attached_to(world: World, container: Shell, cgroup: Path) -> None:
    with attached(world, "--pid", str(container.process.pid), *ALLOW):
        container.end()
        until(lambda: row(world) is None)
        event = world.events(
            "it", kind="daemon", reason=f"process {container.process.pid} has ended: nothing is held any more"
        )
        assert event
        until(lambda: not Path("/run/netns").joinpath("am-16").exists() or row(world) is None)


def test_a_named_namespace_is_held_also_while_nobody_is_in_it(world: World) -> None:
    command("ip", "netns", "add", "amt-named")
    try:
        with attached(world, "--netns", "amt-named", *ALLOW) as found:
            assert "bpf" not in found["layers"] and any("not by BPF" in note for note in found["notes"])
            before = world.counters()["forbidden"]
            shell = Shell("nsenter", "--net=/run/netns/amt-named")
            try:
                assert shell.status(DIRECT) == "200" and shell.status(f"http://{FORBIDDEN4}/") == "000"
            finally:
                shell.end()
            assert world.counters()["forbidden"] == before
            assert row(world) is not None
            command("ip", "netns", "del", "amt-named")
            until(lambda: row(world) is None)
    finally:
        subprocess.run(["ip", "netns", "del", "amt-named"], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ((), 2, "nothing was given"),
        (("--pid", "1", "--netns", "x"), 2, "--pid and --netns"),
        (("--pid", str(os.getpid())), 2, "host's own network namespace"),
        (("--pid", "4194399"), 2, "no process 4194399"),
        (("--pid", "none"), 2, "not a process number"),
        (("--netns", "amt-nowhere"), 2, "no network namespace 'amt-nowhere'"),
        (("--netns", "/etc/hosts"), 2, "not a network namespace"),
        (("--netns", "am-svc"), 2, "agentmon's own services"),
        (("--cgroup", "/nowhere"), 2, "not a cgroup v2 directory"),
        (("--cgroup", str(find_v2())), 2, "every process of the host"),
        (("--cgroup", str(find_v2() / "agentmon")), 2, "agentmon's own"),
        (("--pid", "1", "--policy", "/nowhere.yml"), 2, "nowhere"),
    ],
)
def test_what_cannot_be_attached_is_said(world: World, words: tuple[str, ...], status: int, says: str) -> None:
    done = world.agentmon("attach", *words, check=False)
    assert done.returncode == status and says in done.stderr and "hint:" in done.stderr, done.stderr


def test_only_what_is_attached_is_detached(world: World) -> None:
    job = world.run("--name", "own", "--", "sleep", "60")
    until(lambda: row(world, "own"))
    done = world.agentmon("detach", "own", check=False)
    assert done.returncode == 2 and "agentmon's own" in done.stderr and "agentmon kill own" in done.stderr
    pid = row(world, "own")["processes"][0]  # type: ignore[index]
    done = world.agentmon("attach", "--pid", str(pid), check=False)
    assert done.returncode == 2 and "of bottle 'own'" in done.stderr
    world.agentmon("kill", "own")
    job.end()
    assert world.agentmon("detach", "nobody", check=False).returncode == 2


def test_what_its_own_root_could_undo_is_not_attached(world: World) -> None:
    """A user namespace owns the network, and a device in it leads where no rule of the host sees it."""
    shell = Shell("unshare", "--map-root-user", "--net")
    pid = str(shell.process.pid)
    try:
        command("ip", "netns", "add", "amt-beside")
        command("ip", "-n", "amt-beside", "link", "add", "beside", "type", "veth", "peer", "name", "eth7", "netns", pid)
        done = world.agentmon("attach", "--pid", pid, "--name", "it", check=False)
        assert done.returncode == 2 and "rootless" in done.stderr and "eth7" in done.stderr
        until(lambda: row(world) is None)
        assert "agentmon0" not in shell("ip link; nft list ruleset")
        command("ip", "-n", "amt-beside", "link", "del", "beside")
        with attached(world, "--pid", pid, *ALLOW) as found:  # without it there is nothing that its root could use
            assert found["layers"][0] == "host-nft"
            held(world, shell)
    finally:
        shell.end()
        subprocess.run(["ip", "netns", "del", "amt-beside"], check=False, capture_output=True)


def test_only_root_attaches(world: World) -> None:
    """A member of group agentmon, who may run bottles."""
    code = (
        "import grp, os, sys, agentmon.cli.attach, agentmon.cli.main as m; "
        "os.setgroups([grp.getgrnam('agentmon').gr_gid]); os.setresgid(65534, 65534, 65534); "
        "os.setresuid(65534, 65534, 65534); sys.exit(m.main(sys.argv[1:]))"
    )
    for words in (("attach", "--pid", "1"), ("detach", "it")):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=world.env, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 3 and f"may not use {words[0]}" in done.stderr and "sudo" in done.stderr, done.stderr
