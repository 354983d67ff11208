"""The whole product on this kernel, for e2e tests: the stand-in internet, a daemon, commands as a user types them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agentmon.daemon.cgroups import Tree
from tests.internet import untraced

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "agentmon.cli"]
CONTROL = Path("/run/agentmon/control.sock")


_AS_USER = """
import importlib, os, pkgutil, sys
import agentmon.cli
for found in pkgutil.iter_modules(agentmon.cli.__path__, "agentmon.cli."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
gid, uid = map(int, sys.argv[1:3])
os.setgroups([]), os.setgid(gid), os.setuid(uid)
sys.exit(sys.modules["agentmon.cli.main"].main(sys.argv[3:]))
"""


def as_user(uid: int, gid: int) -> list[str]:
    """The command line's beginning, for a user who cannot read this interpreter's files: they are read before."""
    return [sys.executable, "-c", _AS_USER, str(gid), str(uid)]


def until(what: Callable[[], Any], seconds: float = 15.0, why: str = "") -> Any:
    """Poll until `what` is true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        select.select([], [], [], 0.02)
    raise AssertionError(why or "nothing came of it in time")


class Job:
    """One `agentmon run` (or `resume`) in the background, with its output in pipes."""

    def __init__(
        self, world: World, *words: str, stdin: int = subprocess.PIPE, verb: str = "run",
        command: Sequence[str] = COMMAND,
    ) -> None:  # fmt: skip
        self.world = world
        self._read = b""
        self.process = subprocess.Popen(
            [*command, verb, *words], cwd=world.cwd, env=world.env, stdin=stdin, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self, seconds: float = 15.0) -> str:
        """The next line of the job's standard output."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no line from the job in {seconds} s; so far {self._read!r}"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, f"the job's output ended: {self.process.communicate()[1]!r}"
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self, seconds: float = 20.0) -> tuple[int, str, str]:
        """(exit status, the rest of stdout, stderr)"""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


class World:
    """Settings, internet and daemon of one test module, with files of their own (ledger, events, sockets).

    :param settings: YAML text after `upstream:`'s; "{net}" is the internet's directory.
    :param speaks: "h2" for providers that speak HTTP/2 as well.
    """

    def __init__(self, tmp: Path, settings: str = "", *, internet: bool = True, speaks: str = "") -> None:
        self.tmp = tmp
        self.internet = internet
        self.speaks = [speaks] if speaks else []
        self.net = tmp / "net"
        self.settings = tmp / "settings.yml"
        self.extra = settings
        self.root = Path(tempfile.mkdtemp(prefix="agentmon-test-", dir="/var/tmp"))  # services must reach it
        self.root.chmod(0o755)
        self.run_dir = self.root / "run/agentmon"
        self.own = {
            "AGENTMON_ROOT": str(self.root),
            "AGENTMON_SETTINGS": str(self.settings),
            "PYTHONPATH": str(ROOT),
        }
        self.env = os.environ | self.own
        self._stack = contextlib.ExitStack()
        self.daemon: subprocess.Popen[str] | None = None
        self.cwd = ROOT  # of jobs
        self.jobs: list[Job] = []

    def __enter__(self) -> World:
        self._stack.enter_context(alone())
        try:
            upstream = ""
            if self.internet:
                self._start_internet()
                upstream = f"upstream: {{dns: [198.51.100.53, '2001:db8:1::53'], ca: {self.net}/ca.pem}}\n"
            self.settings.write_text(upstream + self.extra)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for job in self.jobs:
                if job.process.poll() is None:
                    job.process.kill()
                    job.process.communicate()
            self.stop_daemon()
        finally:
            self._stack.close()
            shutil.rmtree(self.root)

    def _start_internet(self) -> None:
        self.net.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.internet", str(self.net), *self.speaks], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=untraced(), text=True,
        )  # fmt: skip

        def stop() -> None:
            process.communicate(timeout=20)  # closes stdin, which ends it

        self._stack.callback(stop)
        assert process.stdout is not None
        assert process.stdout.readline(), "the stand-in internet did not start"

    def counters(self) -> dict[str, Any]:
        """What the stand-in internet has seen."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(self.net / "control.sock"))
            data = b""
            while chunk := sock.recv(1 << 16):
                data += chunk
        seen: dict[str, Any] = json.loads(data)
        return seen

    # ── daemon ──

    def start_daemon(self) -> subprocess.Popen[str]:
        log = (self.tmp / "daemon.log").open("a")
        before = self.log().count("agentmon: ready")
        self.daemon = subprocess.Popen(
            ["setpriv", "--pdeathsig", "INT", *COMMAND, "daemon"], cwd="/", env=self.env, stdout=log, stderr=log,
            text=True, start_new_session=True,
        )  # fmt: skip
        until(lambda: self.log().count("agentmon: ready") > before or self.daemon.poll() is not None, 30)
        assert self.daemon.poll() is None, self.log()
        return self.daemon

    def log(self) -> str:
        return (self.tmp / "daemon.log").read_text()

    def stop_daemon(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGINT)
            self.daemon.wait(timeout=30)
        self.daemon = None

    # ── commands ──

    def agentmon(
        self, *words: str, check: bool = True, seconds: float = 40.0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *words], cwd=ROOT, env=env or self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"agentmon {' '.join(words)}: {done.returncode}\n{done.stderr}{done.stdout}"
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def run(self, *words: str) -> Job:
        job = Job(self, *words)
        self.jobs.append(job)
        return job

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """What a listing prints with --json: one object per line, or one list. Not traced: it is polled for."""
        out = self.agentmon(*words, "--json", env=untraced() | self.own).stdout
        rows = [json.loads(line) for line in out.splitlines() if line.strip()]
        return rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows

    def run_as(self, uid: int, gid: int, *words: str) -> Job:
        """`run` by a user who is not root."""
        job = Job(self, *words, command=as_user(uid, gid))
        self.jobs.append(job)
        return job

    def resume(self, *words: str) -> Job:
        """Of a bottle that is only on disk: its command's line from now on."""
        job = Job(self, *words, verb="resume")
        self.jobs.append(job)
        return job

    def reboot(self) -> None:
        """What a reboot takes: every process, cgroup and namespace of agentmon, and /run. Rules of the kernel stay."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None
        for job in self.jobs:
            job.process.kill()
            job.process.communicate()
        for file in (self.run_dir / "svc").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        tree = Tree()
        for slot in tree.slots():
            tree.kill(slot)
            until(lambda slot=slot: not tree.populated(slot))
            tree.remove(slot)
        for name in Path("/run/netns").glob("am-*"):
            subprocess.run(["ip", "netns", "del", name.name], check=True)
        until(lambda: not _rmtree(self.run_dir).exists(), 10)

    def events(self, bottle: str, **match: Any) -> list[dict[str, Any]]:
        """The bottle's events that have these fields."""
        found = self.rows("events", "--bottle", bottle)
        return [event for event in found if all(event.get(k) == v for k, v in match.items())]

    def pid_of(self, service: str) -> int:
        return int((self.run_dir / f"svc/{service}.pid").read_text())


def _rmtree(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One agentmon a host: a second test run waits."""
    with open("/run/lock/agentmon-e2e", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        until(lambda: not CONTROL.exists(), 60, "another agentmon daemon runs on this host: end it first")
        yield
