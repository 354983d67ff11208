"""The spawner: a small root process that forks jobs and probes, reaps them and says how they ended.

It has no event loop, no threads and few imports, so that a fork costs a millisecond. It lives as long as it has a
daemon or a job: jobs go on when the daemon dies, and the next daemon finds them here (messages.Hello).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agentmon.errors import AgentmonError, BadInput, HostLacks
from agentmon.launch import messages
from agentmon.launch.argv import BWRAP, ENV, SETPRIV, SETSID, HostLayout
from agentmon.launch.gate import EXIT_LAUNCHER, run_child
from agentmon.launch.probe import run_probe
from agentmon.launch.seccomp import filter_bytes
from agentmon.launch.spec import Exited, Job, LaunchSpec, ProbeResult, ProbeSpec
from agentmon.launch.stdio import Stdio, open_stdio

VERSION = 1
_FIRST_DAEMON_S = 15.0  # a spawner nobody ever connected to ends
_READY_S = 10.0
_PROBE_S = 5.0
_KEPT_EXITS = 4096
_TO_GROUP = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGSTOP, signal.SIGCONT, signal.SIGHUP})


@dataclass(slots=True)
class _Child:
    """A running job."""

    slot: int
    run: str
    cgroup: str
    pid: int  # bwrap's
    pidfd: int
    status_w: int  # the command line's status pipe
    bwrap_r: int  # bwrap's own report: {"child-pid": …}, later {"exit-code": …}
    said: bytearray = field(default_factory=bytearray)

    def documents(self) -> dict[str, int]:
        """What bwrap has said so far, merged."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.bwrap_r, 4096):
                self.said += data
        merged: dict[str, int] = {}
        for line in bytes(self.said).splitlines():
            with contextlib.suppress(ValueError):
                merged |= json.loads(line)
        return merged


@dataclass(slots=True)
class _Probing:
    connection: socket.socket
    id: int
    slot: int
    pid: int
    deadline: float


class Spawner:
    """State and main loop; one per process."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._daemons: list[socket.socket] = []
        self._children: dict[int, _Child] = {}  # by pidfd
        self._probes: dict[int, _Probing] = {}  # by result pipe
        self._unseen: deque[Exited] = deque(maxlen=_KEPT_EXITS)
        self._layout = HostLayout.read()

    def serve(self) -> None:
        """Until there is neither a daemon nor a job."""
        started = time.monotonic()
        had_daemon = False
        while True:
            had_daemon = had_daemon or bool(self._daemons)
            idle = not self._daemons and not self._children
            if idle and (had_daemon or time.monotonic() - started > _FIRST_DAEMON_S):
                return
            for key, _mask in self._selector.select(self._patience(idle)):
                if key.fileobj in self._selector.get_map():  # an earlier callback may have removed it
                    key.data(key.fileobj)
            self._end_overdue_probes()

    def _patience(self, idle: bool) -> float | None:
        if self._probes:
            return 0.05
        return 0.5 if idle else None

    def _accept(self, listener: socket.socket) -> None:
        connection, _address = listener.accept()
        if _peer_uid(connection) != 0:
            connection.close()
            return
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, messages.MAX_PACKET)
        self._daemons.append(connection)
        self._selector.register(connection, selectors.EVENT_READ, self._receive)
        jobs = tuple(Job(c.slot, c.run, c.pid) for c in self._children.values())
        self._send(connection, messages.Hello(version=VERSION, pid=os.getpid(), jobs=jobs, ended=tuple(self._unseen)))
        self._unseen.clear()

    def _receive(self, connection: socket.socket) -> None:
        fds: list[int] = []
        try:
            data, fds, _flags, _address = socket.recv_fds(connection, messages.MAX_PACKET, messages.MAX_FDS)
            if not data:
                self._forget(connection)
                return
            self._obey(connection, messages.decode(data), fds)
        except (OSError, msgspec.MsgspecError):
            self._forget(connection)
        finally:
            for fd in fds:
                os.close(fd)

    def _forget(self, connection: socket.socket) -> None:
        if connection in self._daemons:
            self._daemons.remove(connection)
            self._selector.unregister(connection)
            connection.close()

    def _send(self, connection: socket.socket, packet: messages.Packet, fds: tuple[int, ...] = ()) -> None:
        try:
            socket.send_fds(connection, [messages.encode(packet)], fds)
        except OSError:
            self._forget(connection)

    def _obey(self, connection: socket.socket, packet: messages.AnyPacket, fds: list[int]) -> None:
        try:
            if isinstance(packet, messages.Spawn):
                self._spawn(connection, packet.id, _read_spec(fds))
            elif isinstance(packet, messages.Probe):
                self._probe(connection, packet.id, packet.spec)
            elif isinstance(packet, messages.Signal):
                self._signal(packet.slot, packet.signum)
                self._send(connection, messages.Ok(id=packet.id))
            else:
                raise BadInput(f"a {type(packet).__name__} is no request")
        except AgentmonError as e:
            self._send(connection, messages.Error(id=packet.id, kind=e.kind, message=e.message, hint=e.hint))
        except OSError as e:
            self._send(connection, messages.Error(id=packet.id, kind="HostLacks", message=f"the launcher failed: {e}"))

    # ── jobs ──

    def _spawn(self, connection: socket.socket, number: int, spec: LaunchSpec) -> None:
        spec.check()
        _require_programs()
        filter_bytes(spec.io_uring)  # computed here, so that every child inherits it
        stdio = open_stdio(spec)
        status_r, status_w = os.pipe()
        bwrap_r, bwrap_w = os.pipe()
        try:
            pid = self._fork_to_gate(spec, stdio, bwrap_w)
        except (AgentmonError, OSError):
            for fd in (status_r, status_w, bwrap_r, *stdio.outer):
                os.close(fd)
            raise
        finally:
            stdio.close_inner()
            os.close(bwrap_w)
        os.set_blocking(bwrap_r, False)
        child = _Child(spec.slot, spec.run, spec.cgroup, pid, os.pidfd_open(pid), status_w, bwrap_r)
        self._children[child.pidfd] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, self._reap)
        fds = (*stdio.outer, status_r)
        self._send(connection, messages.Launched(id=number, pid=pid), fds)
        for fd in fds:
            os.close(fd)

    def _fork_to_gate(self, spec: LaunchSpec, stdio: Stdio, bwrap_w: int) -> int:
        """The pid of a child that waits in `spec.cgroup`.

        :raises AgentmonError: what the child reported, or the cgroup refused it.
        """
        report_r, report_w = os.pipe()
        gate_r, gate_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                run_child(spec, self._layout, stdio, bwrap_w, report_w, gate_r)
            finally:
                os._exit(EXIT_LAUNCHER)
        os.close(report_w)
        os.close(gate_r)
        try:
            ready, _, _ = select.select([report_r], [], [], _READY_S)
            said = os.read(report_r, 65536) if ready else b""
            if said != b"\n":
                raise _as_error(said, spec.bottle)
            try:
                Path(spec.cgroup, "cgroup.procs").write_text(str(pid))
            except OSError as e:
                raise HostLacks(f"cgroup {spec.cgroup} does not take the job: {e.strerror}") from e
            os.write(gate_w, b"\n")
        except (AgentmonError, OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        finally:
            os.close(report_r)
            os.close(gate_w)
        return pid

    def _reap(self, pidfd: int) -> None:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        if info is None:
            return
        child = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        with contextlib.suppress(OSError):  # what the command left behind; bwrap's pid 1 would wait for it
            Path(child.cgroup, "cgroup.kill").write_text("1")
        killed = info.si_code in {os.CLD_KILLED, os.CLD_DUMPED}
        error = ""
        if killed:
            exited = Exited(child.slot, child.run, 128 + info.si_status, info.si_status)
        else:
            code = info.si_status
            if "exit-code" not in child.documents():  # bwrap itself gave up; it said why on the job's stderr
                code, error = EXIT_LAUNCHER, "the bottle's file system could not be set up"
            exited = Exited(child.slot, child.run, code, code - 128 if 128 < code <= 192 else 0)
        line = {"exit": exited.exit, "signal": exited.signal} | ({"error": error} if error else {})
        with contextlib.suppress(OSError):  # the command line may be gone
            os.write(child.status_w, json.dumps(line).encode() + b"\n")
        for fd in (pidfd, child.status_w, child.bwrap_r):
            os.close(fd)
        if not self._daemons:
            self._unseen.append(exited)
        for connection in list(self._daemons):
            self._send(connection, messages.Ended(exited=exited))

    def _signal(self, slot: int, signum: int) -> None:
        child = next((c for c in self._children.values() if c.slot == slot), None)
        if child is None:
            raise BadInput(f"slot {slot} has no running command")
        command = _command_pid(child.documents().get("child-pid", 0))
        if command == 0:  # not yet executed: bwrap dies, and with it the rest
            os.kill(child.pid, signum)
            return
        with contextlib.suppress(ProcessLookupError):
            if signum in _TO_GROUP:
                # Stop signals of a terminal do nothing to an orphaned process group, which every bottle's is.
                os.killpg(command, signal.SIGSTOP if signum == signal.SIGTSTP else signum)
            else:
                os.kill(command, signum)

    # ── probes ──

    def _probe(self, connection: socket.socket, number: int, spec: ProbeSpec) -> None:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                result = run_probe(spec)
                os.write(write_end, msgspec.msgpack.encode(result))
            finally:
                os._exit(0)
        os.close(write_end)
        self._probes[read_end] = _Probing(connection, number, spec.slot, pid, time.monotonic() + _PROBE_S)
        self._selector.register(read_end, selectors.EVENT_READ, self._probed)

    def _probed(self, read_end: int) -> None:
        probing = self._probes.pop(read_end)
        self._selector.unregister(read_end)
        data = os.read(read_end, messages.MAX_PACKET)
        os.close(read_end)
        os.waitpid(probing.pid, 0)
        if data:
            result = msgspec.msgpack.decode(data, type=ProbeResult)
        else:
            result = ProbeResult(probing.slot, problems=("the probe ended without a result",))
        self._send(probing.connection, messages.Probed(id=probing.id, result=result))

    def _end_overdue_probes(self) -> None:
        now = time.monotonic()
        for probing in self._probes.values():
            if now > probing.deadline:
                os.kill(probing.pid, signal.SIGKILL)  # its pipe closes; _probed answers


def _peer_uid(connection: socket.socket) -> int:
    """As channel.peer_of(), without the event loop that module brings: every fork would carry it."""
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _read_spec(fds: list[int]) -> LaunchSpec:
    if len(fds) != 1:
        raise BadInput("a Spawn request carries one descriptor")
    os.lseek(fds[0], 0, os.SEEK_SET)
    with os.fdopen(os.dup(fds[0]), "rb") as file:
        try:
            return msgspec.msgpack.decode(file.read(), type=LaunchSpec)
        except msgspec.MsgspecError as e:
            raise BadInput(f"not a LaunchSpec: {e}") from e


def _require_programs() -> None:
    for path, package in ((BWRAP, "bubblewrap"), (SETPRIV, "util-linux"), (SETSID, "util-linux"), (ENV, "coreutils")):
        if not os.access(path, os.X_OK):
            raise HostLacks(f"{path} is not there", f"apt-get install {package}")


def _as_error(said: bytes, bottle: str) -> AgentmonError:
    try:
        packet = messages.decode(said)
    except msgspec.MsgspecError:
        return AgentmonError(f'the launcher\'s child for bottle "{bottle}" did not get ready')
    if not isinstance(packet, messages.Error):
        return AgentmonError(f'the launcher\'s child for bottle "{bottle}" did not get ready')
    kinds: dict[str, type[AgentmonError]] = {"BadInput": BadInput, "HostLacks": HostLacks}
    return kinds.get(packet.kind, AgentmonError)(packet.message, packet.hint)


def _command_pid(init: int) -> int:
    """The host's pid of the job's command: the one child that bwrap's pid 1 has started. 0: there is none."""
    if init == 0:
        return 0
    try:
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    except OSError:
        return 0
    return min(map(int, children), default=0)


def main(argv: list[str]) -> int:
    """`python -m agentmon.launch.spawner FD`: FD is a listening SEQPACKET socket, inherited."""
    if len(argv) != 2 or not argv[1].isdecimal():
        print("error: the spawner is started by the agentmon daemon, not by hand", file=sys.stderr)
        print("hint: agentmon daemon", file=sys.stderr)
        return 2
    listener = socket.socket(fileno=int(argv[1]))
    listener.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    path = listener.getsockname()
    with contextlib.suppress(AgentmonError):  # said again, to whom it concerns, with the first job
        filter_bytes(False)
    Spawner(listener).serve()
    with contextlib.suppress(OSError):
        Path(path).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
