"""`agentmon run` between a person's streams and a real job: the launcher is real, the daemon is a few lines that launch
without a network, so that what is tested is the command line's side of the protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from agentmon.daemon.connection import Connection
from agentmon.launch.client import Spawner
from agentmon.launch.etc import etc_files
from agentmon.launch.spec import LaunchSpec
from agentmon.service import listen_unix

pytestmark = pytest.mark.root
UID = 61235
_SERIAL = itertools.count()
ROOT = Path(__file__).resolve().parents[2]


def _cgroup2() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if tail.split()[0] == "cgroup2":
            return Path(head.split()[4])
    pytest.fail("cgroup v2 is not mounted")


def until(what: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        select.select([], [], [], 0.01)
    pytest.fail("nothing came of it in time")


class Host:
    """The other end of the control socket: `run`, `signal`, `reattach`; everything else is refused."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.name = f"agentmon-test-{os.getpid()}-cli{next(_SERIAL)}"
        self.leaf = _cgroup2() / self.name
        self.requests: list[wire.Request] = []
        self.connections: list[Connection] = []
        self.refuse: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Host:
        self.leaf.mkdir()
        (self.tmp / "home").mkdir()
        os.chown(self.tmp / "home", UID, UID)
        (self.tmp / "run/agentmon/svc").mkdir(parents=True)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)))
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(15)
        (self.leaf / "cgroup.kill").write_text("1")
        until(lambda: not (self.leaf / "cgroup.procs").read_text())
        self.leaf.rmdir()
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def drop_connections(self) -> None:
        """As a daemon's death does: the command line sees the end of its connection."""
        for connection in self.connections:
            connection._sock.shutdown(socket.SHUT_RDWR)

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.spawner = Spawner(self.tmp / "run/agentmon/svc/spawner.sock")
        await self.spawner.start()
        sock = listen_unix(self.tmp / "run/agentmon/control.sock")
        tasks = [asyncio.create_task(self._accept(sock)), asyncio.create_task(self._watch())]
        self.runs: list[tuple[Connection, int]] = []
        ready.set()
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        sock.close()
        for connection in self.connections:
            await connection.close()
        await self.spawner.close()

    async def _accept(self, sock: Any) -> None:
        assert self._loop is not None
        while True:
            peer, _ = await self._loop.sock_accept(sock)
            connection = Connection(peer)
            self.connections.append(connection)
            self._loop.create_task(self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        async for request in connection.messages():
            self.requests.append(request)
            if self.refuse:
                connection.send(wire.Reply(request.id, None, self.refuse))
            elif request.op == "run":
                await self._run(connection, request)
            elif request.op == "reattach":
                self.runs = [(connection, request.id)]
            elif request.op == "signal":
                await self.spawner.signal(request.args["slot"], request.args["signum"])

    async def _run(self, connection: Connection, request: wire.Request) -> None:
        a = request.args
        spec = LaunchSpec(
            slot=16, bottle=a["name"], run="r1", argv=tuple(a["argv"]), env=a["env"], cwd=a["cwd"], uid=UID, gid=UID,
            home="/home/job", home_source=str(self.tmp / "home"), netns=self.name, cgroup=str(self.leaf),
            files=etc_files(bottle="x", user="job", uid=UID, gid=UID, home="/home/job", nameservers=[]),
            tty=a["tty"], rows=a["rows"], cols=a["cols"],
        )  # fmt: skip
        spawned = await self.spawner.spawn(spec)
        self.runs = [(connection, request.id)]
        connection.send(wire.Item(request.id, {"notice": "getting ready"}))
        connection.send(
            wire.Item(request.id, {"slot": 16, "bottle": a["name"], "run": "r1", "ready_ms": 1.0}), spawned.fds
        )

    async def _watch(self) -> None:
        while True:
            exited = await self.spawner.exits.get()
            value = {"bottle": "b", "exit": exited.exit, "refused": {"bpf": 2}, "usage": {}, "cut": None}
            for connection, number in self.runs:
                connection.send(wire.Reply(number, value))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def start(host: Host, *args: str, **options: Any) -> subprocess.Popen[bytes]:
    env = {**os.environ, "AGENTMON_ROOT": str(host.tmp), "PYTHONPATH": str(ROOT)}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "agentmon.cli", "run", *args], env=env, cwd="/", **streams)


def finish(process: subprocess.Popen[bytes], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    out, err = process.communicate(stdin, timeout=30)
    return process.returncode, out, err


def test_streams_and_status_pass_through(host: Host) -> None:
    status, out, err = finish(start(host, "--", "sh", "-c", "cat; echo err >&2; exit 9"), b"x" * 300_000)
    assert (status, out) == (9, b"x" * 300_000)
    assert err == b"note: getting ready\nerr\n"


def test_a_job_that_does_not_read_does_not_block_its_output(host: Host) -> None:
    status, out, _ = finish(start(host, "--", "sh", "-c", "echo one; sleep 0.3; echo two"), b"y" * 1_000_000)
    assert (status, out) == (0, b"one\ntwo\n")


def test_stdin_may_be_a_file_and_stdout_may_close(host: Host, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file\n")
    with (tmp_path / "in").open("rb") as file:
        process = start(host, "--", "cat", stdin=file)
        assert process.stdout is not None
        assert process.stdout.read() == b"from a file\n"
        assert process.wait(20) == 0
    process = start(host, "--", "sh", "-c", "yes; echo $? >&2")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert finish(process)[0] == 0


@pytest.mark.parametrize(("command", "status"), [("nosuchcommand", 127), ("/etc/hostname", 126)])
def test_command_that_cannot_be_executed(host: Host, command: str, status: int) -> None:
    assert finish(start(host, "--", command))[0] == status


def test_options_environment_and_directory_travel(host: Host) -> None:
    status, out, err = finish(
        start(
            host,
            "--name",
            "n1",
            "--allow",
            "a.example:443",
            "--allow",
            "b.example",
            "--ro",
            "usr",
            "--env",
            "K=V=W",
            "--",
            "sh",
            "-c",
            "echo $K",
        )
    )
    assert (status, out) == (0, b"V=W\n"), err
    args = host.requests[0].args
    assert (args["name"], args["allow"], args["ro"], args["cwd"]) == (
        "n1",
        ["a.example:443", "b.example"],
        ["/usr"],
        "/",
    )
    assert args["tty"] is False and args["env"]["AGENTMON_ROOT"] == str(host.tmp)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_forwarded(host: Host, signum: int) -> None:
    script = "trap 'echo got; exit 33' TERM INT HUP; echo up; sleep 60 & wait"
    process = start(host, "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signum)
    assert finish(process)[:2] == (33, b"got\n")


def test_a_signal_that_kills_is_reported_as_by_a_shell(host: Host) -> None:
    process = start(host, "--", "sh", "-c", "echo up; exec sleep 60")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 128 + signal.SIGTERM


def test_summary_file(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    finish(start(host, "--name", "n1", "--json-summary", str(file), "--", "sh", "-c", "exit 4"))
    value = json.loads(file.read_text())
    assert list(value) == ["bottle", "exit", "error", "started", "ended", "refused", "usage", "cut"]
    assert (value["exit"], value["error"], value["refused"]) == (4, None, {"bpf": 2})
    assert value["started"] < value["ended"] and value["ended"].endswith("Z")


def test_refusal_is_125_with_the_daemons_words(host: Host, tmp_path: Path) -> None:
    host.refuse = {"class": "Refused", "message": "that may not be", "hint": "ask root", "exit": 3}
    file = tmp_path / "summary.json"
    status, out, err = finish(start(host, "--json-summary", str(file), "--", "true"))
    assert (status, out, err) == (125, b"", b"error: that may not be\nhint: ask root\n")
    value = json.loads(file.read_text())
    assert value["exit"] == 125 and value["error"] == {"class": "Refused", "message": "that may not be"}


def test_a_daemon_that_dies_is_said_the_job_goes_on_and_is_found_again(host: Host) -> None:
    process = start(host, "--", "sh", "-c", "echo up; read x; echo $x; exit 6")
    assert process.stdout is not None and process.stdin is not None and process.stderr is not None
    assert process.stdout.readline() == b"up\n"
    host.drop_connections()
    until(lambda: any(r.op == "reattach" for r in host.requests))
    assert next(r for r in host.requests if r.op == "reattach").args == {"slot": 16, "run": "r1"}
    status, out, err = finish(process, b"on\n")
    assert (status, out) == (6, b"on\n")
    assert b"error: the agentmon daemon has gone; the command goes on" in err and b"has taken the bottle over" in err


class Terminal:
    """A command line on a pty of its own."""

    def __init__(self, host: Host, *args: str) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ.update(AGENTMON_ROOT=str(host.tmp), PYTHONPATH=str(ROOT))
            termios.tcsetwinsize(0, (40, 90))
            os.chdir("/")
            os.execv(sys.executable, [sys.executable, "-m", "agentmon.cli", "run", *args])
        self.seen = b""

    def read_until(self, word: bytes) -> None:
        def more() -> bool:
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 4096)
            return word in self.seen

        until(more)

    def end(self) -> int:
        while True:
            try:
                if not (data := os.read(self.master, 4096)):
                    break
            except OSError:
                break
            self.seen += data
        os.close(self.master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_terminal_size_resize_and_control_c(host: Host) -> None:
    script = "trap 'stty size; exit 12' INT; stty size; echo up; sleep 60 & wait"
    terminal = Terminal(host, "--", "sh", "-c", script)
    terminal.read_until(b"up\r\n")
    assert b"40 90" in terminal.seen
    termios.tcsetwinsize(terminal.master, (50, 132))
    until(lambda: "signal" not in [r.op for r in host.requests])  # the size goes through the terminal, not the daemon
    select.select([], [], [], 0.2)
    os.write(terminal.master, b"\x03")
    assert terminal.end() == 12
    assert b"50 132" in terminal.seen
    assert host.requests[0].args["tty"] is True


def test_terminal_is_cooked_again_afterwards(host: Host) -> None:
    terminal = Terminal(host, "--", "sh", "-c", "echo up; read x; echo got $x")
    before = termios.tcgetattr(terminal.master)
    terminal.read_until(b"up\r\n")
    assert not termios.tcgetattr(terminal.master)[3] & termios.ICANON
    os.write(terminal.master, b"line\r")
    terminal.read_until(b"got line\r\n")
    until(lambda: termios.tcgetattr(terminal.master)[3] & termios.ICANON)
    assert termios.tcgetattr(terminal.master) == before
    assert terminal.end() == 0
