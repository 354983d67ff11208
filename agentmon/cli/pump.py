"""Between the caller's standard streams and the job's: bytes, window size, signals, exit status, and the daemon's word.

    stdin ─▶ stdin_w │ master          stdout_r, stderr_r │ master ─▶ stdout, stderr
    signals ─▶ Request("signal")       status ─▶ {"exit", "signal"}       control socket ─▶ notes, the final Reply

The status comes from the launcher by a pipe of its own: a daemon that dies takes neither it nor the job along.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import termios
import time
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from agentmon import wire
from agentmon.blocking import BlockingChannel
from agentmon.cli.console import complain, notice
from agentmon.cli.control import say_progress
from agentmon.errors import AgentmonError

_CHUNK = 1 << 16
_FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP,
    signal.SIGCONT,
)  # fmt: skip
_DRAIN_S = 2.0  # for output still in the pipes after the command has ended
_END_S = 30.0  # for the daemon to take the bottle down and sum up
_RETRY_S = 0.5

Reconnect = Callable[[], BlockingChannel | None]


@dataclass(slots=True)
class Outcome:
    """How the command ended, and the daemon's summary (empty when there was no daemon any more)."""

    exit: int = 125
    signal: int = 0
    error: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


class Pump:
    """One job's streams. Made from the descriptors that came with the first item; closes them all.

    :param reconnect: tries to find the bottle again at a new daemon.
    """

    def __init__(self, channel: BlockingChannel, request: int, slot: int, fds: list[int], reconnect: Reconnect) -> None:
        self._channel: BlockingChannel | None = channel
        self._request = request
        self._slot = slot
        self._reconnect = reconnect
        self._retry_at = 0.0
        self._outcome = Outcome()
        self._ended_at: float | None = None
        self._pending = b""  # read from stdin, not yet taken by the job
        self._stalled = False  # the job does not take what is pending: stdin is not read
        self._told = False  # the daemon's final reply is here
        self._terminal = len(fds) == 2
        self._status = fds[-1]
        self._in = fds[0]
        self._outputs = {fds[0]: 1} if self._terminal else {fds[1]: 1, fds[2]: 2}
        self._open = set(fds)
        self._selector = selectors.PollSelector()  # poll, because stdin may be a file

    def run(self) -> Outcome:
        """Until the command has ended and its output is out; then until the daemon has summed up."""
        with self._signals(), self._raw():
            self._register()
            while self._outputs or self._status in self._open:
                self._turn()
            self._finish()
        for fd in list(self._open):
            self._close(fd)
        self._selector.close()
        if self._channel is not None:
            self._channel.close()
        return self._outcome

    # ── one turn of the loop ──

    def _register(self) -> None:
        for fd in self._outputs:
            self._selector.register(fd, selectors.EVENT_READ, self._output)
        self._selector.register(self._status, selectors.EVENT_READ, self._status_line)
        os.set_blocking(self._in, False)
        with contextlib.suppress(ValueError, PermissionError):
            self._selector.register(0, selectors.EVENT_READ, self._input)
        self._watch_channel()

    def _watch_channel(self) -> None:
        if self._channel is not None:
            self._selector.register(self._channel.sock, selectors.EVENT_READ, self._daemon)

    def _turn(self) -> None:
        for key, mask in self._selector.select(self._patience()):
            if key.fd in self._selector.get_map():
                key.data(key.fd, mask)
        if self._ended_at is not None and time.monotonic() > self._ended_at + _DRAIN_S:
            for fd in list(self._outputs):  # something else holds the other end
                self._end_output(fd)
        self._find_daemon()

    def _patience(self) -> float | None:
        return _RETRY_S if self._channel is None or self._ended_at is not None else None

    def _input(self, _fd: int, _mask: int) -> None:
        try:
            data = os.read(0, _CHUNK)
        except OSError:
            data = b""
        if not data:
            self._end_input()
            return
        self._pending += data
        self._flush()

    def _flush(self) -> None:
        """Write what is pending; while the job does not take it, stdin is not read."""
        try:
            self._pending = self._pending[os.write(self._in, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._pending = b""
            self._end_input()
            return
        if self._pending and not self._stalled:
            self._stalled = True
            self._selector.unregister(0)
            if self._terminal:
                self._selector.modify(self._in, selectors.EVENT_READ | selectors.EVENT_WRITE, self._output)
            else:
                self._selector.register(self._in, selectors.EVENT_WRITE, lambda _fd, _mask: self._flush())
        elif not self._pending and self._stalled:
            self._stalled = False
            self._selector.register(0, selectors.EVENT_READ, self._input)
            if self._terminal:
                self._selector.modify(self._in, selectors.EVENT_READ, self._output)
            else:
                self._selector.unregister(self._in)

    def _end_input(self) -> None:
        for fd in (0, self._in):
            if fd in self._selector.get_map() and fd not in self._outputs:
                self._selector.unregister(fd)
        if not self._terminal:
            self._close(self._in)

    def _output(self, fd: int, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask == selectors.EVENT_WRITE:
            return
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last process has closed the terminal
            data = b""
        if not data:
            self._end_output(fd)
            return
        try:
            _write_all(self._outputs[fd], data)
        except OSError:  # nobody reads us any more: let the job know as a pipe would
            self._end_output(fd)

    def _end_output(self, fd: int) -> None:
        del self._outputs[fd]
        self._selector.unregister(fd)
        if not (self._terminal and fd == self._in):
            self._close(fd)

    def _status_line(self, fd: int, _mask: int) -> None:
        line = os.read(fd, 4096)
        if line:
            said = json.loads(line)
            self._outcome.exit, self._outcome.signal = int(said["exit"]), int(said["signal"])
            self._outcome.error = str(said.get("error", ""))
        else:
            self._outcome.error = "the launcher was killed; how the command ended is not known"
        self._ended_at = time.monotonic()
        self._selector.unregister(fd)
        self._close(fd)

    # ── the daemon ──

    def _daemon(self, _fd: int, _mask: int) -> None:
        channel = self._channel
        assert channel is not None
        try:
            while True:
                if self._heard(channel.recv()) or not channel.pending():
                    return
        except (OSError, wire.WireError):
            self._lose_daemon()

    def _heard(self, message: Any) -> bool:
        """Whether it was the end."""
        if getattr(message, "id", None) != self._request:
            return False
        if isinstance(message, wire.Reply):
            self._outcome.summary = dict(message.value or {})
            if message.error:
                self._outcome.summary["error"] = message.error
            self._told = True
            assert self._channel is not None
            self._selector.unregister(self._channel.sock)
            return True
        say_progress(getattr(message, "value", None))
        return False

    def _lose_daemon(self) -> None:
        assert self._channel is not None
        self._selector.unregister(self._channel.sock)
        self._channel.close()
        self._channel = None
        self._retry_at = 0.0
        if self._ended_at is None:
            complain(
                "the agentmon daemon has gone; the command goes on, and the kernel holds it to the policy in force",
                "sudo agentmon daemon adopts it",
            )

    def _find_daemon(self) -> None:
        if self._channel is not None or time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + _RETRY_S
        with contextlib.suppress(AgentmonError, OSError):
            self._channel = self._reconnect()
        if self._channel is not None:
            self._request = 1
            self._watch_channel()
            notice("a daemon has taken the bottle over")

    def _finish(self) -> None:
        """Wait for the summary, as long as there is a daemon to give it."""
        deadline = time.monotonic() + _END_S
        while not self._told and self._channel is not None and time.monotonic() < deadline:
            for key, mask in self._selector.select(0.5):
                if key.fd == self._channel.sock.fileno():
                    key.data(key.fd, mask)
                    break
                self._selector.unregister(key.fileobj)

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)

    # ── signals and the terminal ──

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = (*_FORWARDED, *((signal.SIGWINCH,) if self._terminal else ()))
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGWINCH:
            self._resize()
            return
        if self._ended_at is not None and number in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}:
            raise KeyboardInterrupt  # only the tidying up is left, and the daemon does that
        if self._channel is not None:
            with contextlib.suppress(OSError):
                args = {"slot": self._slot, "signum": int(number)}
                self._channel.send(wire.Request(self._channel.next_id() + (1 << 32), "signal", args))
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _resize(self) -> None:
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetwinsize(self._in, termios.tcgetwinsize(0))

    @contextlib.contextmanager
    def _raw(self) -> Iterator[None]:
        """The caller's terminal in raw mode: what is typed is the job's terminal's business, Ctrl-C included."""
        if not self._terminal or not os.isatty(0):
            yield
            return
        before = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)
        try:
            yield
        finally:
            with contextlib.suppress(termios.error):  # the terminal may be gone
                termios.tcsetattr(0, termios.TCSADRAIN, before)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
