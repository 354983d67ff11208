"""The processes of the demo: each is a context whose start() starts it, and is gone when the context is left.

An object without a process is entered first: a Ctrl-C while the process comes up finds the context that ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from agentmon.cli.console import notice
from agentmon.cli.control import connect
from agentmon.cli.demo.interrupt import deferred
from agentmon.errors import AgentmonError, DaemonUnreachable, HostLacks

CHECKOUT = Path(__file__).resolve().parents[3]
WORLD = CHECKOUT / "tests/internet"
JOBS = WORLD / "jobs"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("LANG", "LC_ALL", "TERM", "AGENTMON_ROOT", "AGENTMON_DEBUG", "COVERAGE_PROCESS_CONFIG", "COVERAGE_FILE")
_END_S = 30.0
_POLL_S = 0.02
AGENTMON = [sys.executable, "-m", "agentmon.cli"]
Say = Callable[[str], None]


def progress() -> Say:
    """Prints one line a step on a terminal, nothing in a pipe."""
    return notice if sys.stderr.isatty() or os.environ.get("AGENTMON_DEBUG") == "1" else lambda _: None


def environment(**more: str) -> dict[str, str]:
    """As little of the caller's as works: the demo shows the same to everybody."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {"PATH": _PATH, "PYTHONPATH": str(CHECKOUT)} | more


def agentmon(*args: str) -> list[Any]:
    """The JSON lines that a command prints.

    :raises AgentmonError: it failed.
    """
    done = subprocess.run([*AGENTMON, *args], env=environment(), cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AgentmonError(f"agentmon {' '.join(args)}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


class _Process:
    """At most one process, which does not outlive the context."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with deferred():
            if self._process is not None:
                _end(self._process)

    def _start(
        self, argv: list[str], *, cwd: Path, stdin: int, stdout: int | IO[bytes], stderr: IO[bytes] | None
    ) -> None:
        """In a session of its own: a terminal's Ctrl-C ends the demo, and the demo ends this."""
        with deferred():
            self._process = subprocess.Popen(
                argv, cwd=cwd, env=environment(), stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
            )


class World(_Process):
    """The stand-in internet of tests/internet; the product never imports it."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self.ca = ""
        self.dns: list[str] = []

    def start(self) -> None:
        """Returns when it answers.

        :raises HostLacks: this is not a checkout.
        :raises AgentmonError: it did not start.
        """
        if not (WORLD / "__main__.py").exists():
            raise HostLacks(
                f"the demo's stand-in internet is not at {WORLD}: it is part of the source tree, not of the package",
                "run the demo from a checkout: sudo make demo",
            )
        argv = [sys.executable, "-m", "tests.internet", str(self._directory)]
        self._start(argv, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AgentmonError("the demo's stand-in internet did not start", "its message is above")
        ready = json.loads(line)
        self.ca, self.dns = ready["ca"], [address for address, _port in ready["dns"]]

    def counters(self) -> dict[str, Any]:
        """What its servers and receivers have counted so far."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._directory / "control.sock"))
            value: dict[str, Any] = json.loads(b"".join(iter(lambda: sock.recv(1 << 16), b"")))
        return value


class Daemon(_Process):
    """`agentmon daemon`, the ordinary one, with settings any user could write; at its end it removes everything."""

    def start(self, settings: Path, log: Path) -> None:
        """Returns when it answers.

        :raises HostLacks: one is running already.
        :raises AgentmonError: it did not start; with its own message.
        """
        if _answers():
            raise HostLacks(
                "an agentmon daemon is already running, and the demo needs one with settings of its own",
                "end its bottles and stop it (systemctl stop agentmon), then: sudo agentmon demo",
            )
        argv = [*AGENTMON, "daemon", "--settings", str(settings), "--until-idle"]
        with log.open("wb") as out:
            self._start(argv, cwd=Path("/"), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        assert self._process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            if _answers():
                return
            time.sleep(_POLL_S)
        _end(self._process)
        said = log.read_text(errors="replace").strip() or "it said nothing"
        message, _, hint = said.removeprefix("error: ").rpartition("\nhint: ")
        raise AgentmonError(f"the daemon did not start: {message or said}", hint)


def _answers() -> bool:
    with contextlib.suppress(DaemonUnreachable):
        connect().close()
        return True
    return False


class Bottle(_Process):
    """`agentmon run` with the demo's agent; its lines come as objects."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__()
        self.name = name
        self._summary = directory / "summary.json"
        self._errors = directory / "job.log"

    def start(self, budget: str) -> None:
        """Does not wait: steps() does."""
        venv = Path(sys.prefix).resolve()
        shown = [str(JOBS), str(venv)]
        if not sys.base_prefix.startswith("/usr"):
            shown.append(str(Path(sys.base_prefix).resolve()))
        options = [f"--ro={path}" for path in shown]
        options += [f"--name={self.name}", f"--policy={JOBS / 'manifest.yml'}", f"--budget={budget}"]
        options += [f"--json-summary={self._summary}", "--env=ANTHROPIC_API_KEY=sk-ant-demo-key-0001"]
        options += ["--env=OPENAI_API_KEY=sk-demo-key-0002", "--env=PYTHONPATH="]
        argv = [*AGENTMON, "run", *options, "--", str(venv / "bin/python"), "-u", str(JOBS / "agent.py")]
        with self._errors.open("wb") as errors:
            self._start(argv, cwd=Path("/"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    def steps(self, within_s: float) -> Iterator[dict[str, Any]]:
        """What the agent says, until it is done.

        :raises AgentmonError: it ended before, or said nothing for `within_s`.
        """
        assert self._process is not None and self._process.stdout is not None
        for line in _lines(self._process.stdout, within_s):
            step = json.loads(line)
            if step["step"] == "done":
                return
            yield step
        said = self._errors.read_text(errors="replace").strip()
        raise AgentmonError(f"the agent in the bottle stopped early:\n{said[-2000:]}")

    def tell(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Let the agent end; what `--json-summary` wrote."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_END_S)
        summary: dict[str, Any] = json.loads(self._summary.read_text())
        return summary


def _lines(stream: IO[bytes], within_s: float) -> Iterator[bytes]:
    """Whole lines; ends at the end of the stream.

    :raises AgentmonError: silence.
    """
    pending = b""
    while True:
        if not select.select([stream], [], [], within_s)[0]:
            raise AgentmonError(f"the agent in the bottle has said nothing for {within_s:.0f} s")
        data = os.read(stream.fileno(), 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from lines


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, wait; after that, end it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
