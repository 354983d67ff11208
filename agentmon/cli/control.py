"""The control socket: connecting, starting a daemon where there is none, asking; errors as the daemon raised them."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentmon import paths, wire
from agentmon.blocking import BlockingChannel
from agentmon.cli.console import notice
from agentmon.errors import BY_NAME, AgentmonError, DaemonUnreachable, HostLacks, Refused

_START_S = 60.0
_POLL_S = 0.02
LOG = paths.RUN / "daemon.log"


def connect() -> BlockingChannel:
    """A channel to the running daemon.

    :raises DaemonUnreachable: none answers. :raises Refused: this user may not speak to it.
    """
    try:
        return BlockingChannel.connect(str(paths.CONTROL_SOCKET))
    except PermissionError:
        raise Refused(
            f"you may not use {paths.CONTROL_SOCKET}", "use sudo, or: sudo usermod -aG agentmon $USER"
        ) from None
    except OSError:
        start = "agentmon daemon" if os.geteuid() == 0 else "sudo agentmon daemon"
        raise DaemonUnreachable("no agentmon daemon is running", start) from None


def reachable() -> bool:
    """Whether a daemon answers.

    :raises Refused: this user may not speak to it.
    """
    try:
        connect().close()
    except DaemonUnreachable:
        return False
    return True


def connect_or_start() -> BlockingChannel:
    """As connect(), but root gets a daemon that ends after its last bottle.

    :raises AgentmonError: what the new daemon said when it could not start.
    """
    try:
        return connect()
    except DaemonUnreachable:
        if os.geteuid() != 0:
            raise DaemonUnreachable("no agentmon daemon is running, and only root can start one", "use sudo") from None
    return _start()


def _start() -> BlockingChannel:
    """The daemon's own lock makes a second starter's daemon wait for the first; both commands then find that one."""
    import subprocess

    paths.RUN.mkdir(mode=0o755, parents=True, exist_ok=True)
    with LOG.open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "agentmon.cli", "daemon", "--until-idle"], cwd="/", stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True, env=_environment(),
        )  # fmt: skip
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            return connect()
        except DaemonUnreachable:
            pass
        if process.poll() is not None:
            raise _last_error(begin, process.returncode)
        select.select([], [], [], _POLL_S)
    raise DaemonUnreachable(f"the daemon does not answer after {_START_S:.0f} s", f"see {LOG}")


def _environment() -> dict[str, str]:
    """A daemon is the same whoever starts it: nothing of the caller's environment but where things are."""
    kept = {
        n: os.environ[n] for n in ("LANG", "AGENTMON_ROOT", "AGENTMON_SETTINGS", "AGENTMON_DEBUG") if n in os.environ
    }
    root = str(Path(__file__).resolve().parents[2])
    return kept | {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": root}


def _last_error(begin: int, status: int) -> AgentmonError:
    """What the daemon that just ended wrote to its log, as the error it was."""
    message, hint = f"the daemon ended at once with status {status}", f"see {LOG}"
    try:
        with LOG.open("rb") as log:
            log.seek(begin)
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("error: "):
            message, hint = line.removeprefix("error: "), hint
        elif line.startswith("hint: "):
            hint = line.removeprefix("hint: ")
    kinds: dict[int, type[AgentmonError]] = {c.exit_code: c for c in BY_NAME.values()}
    return kinds.get(status, HostLacks)(message, hint)


def raised(error: dict[str, Any]) -> AgentmonError:
    """The error of a Reply, as it was raised in the daemon."""
    kind = BY_NAME.get(str(error.get("class")), AgentmonError)
    return kind(str(error.get("message", "")), str(error.get("hint", "")))


def ask(op: str, **args: Any) -> Any:
    """One request, its value.

    :raises AgentmonError: the daemon's, or DaemonUnreachable.
    """
    return list(stream(op, **args))[-1]


def stream(op: str, **args: Any) -> Iterator[Any]:
    """The values of a request's items as they come; a value in the final reply comes last.

    :raises AgentmonError: the daemon's, or DaemonUnreachable.
    """
    channel = connect()
    try:
        for value in channel.stream(wire.Request(channel.next_id(), op, args)):
            if not isinstance(value, wire.Reply):
                yield value
            elif value.error:
                raise raised(value.error)
            else:
                yield value.value
    except (ConnectionError, wire.WireError) as e:
        raise DaemonUnreachable(f"the daemon went away: {e}", "agentmon daemon") from None
    finally:
        channel.close()


def say_progress(value: Any) -> bool:
    """Print an item that is only a note ({"notice": TEXT}); whether it was one."""
    if isinstance(value, dict) and "notice" in value:
        notice(str(value["notice"]))
        return True
    return False
