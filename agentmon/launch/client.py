"""The daemon's side of the spawner: asyncio calls, descriptors received, exits queued."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from agentmon import paths
from agentmon.errors import BY_NAME, AgentmonError, HostLacks
from agentmon.launch import messages
from agentmon.launch.spec import Exited, Job, LaunchSpec, ProbeResult, ProbeSpec, Spawned
from agentmon.launch.syscalls import memory_file

_HELLO_S = 10.0
_VERSION = 1


class Spawner:
    """One connection to the spawner process.

    `exits` gets every job's end, those from before the connection included. `lost` is set when the process has gone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or paths.SVC / "spawner.sock"
        self.exits: asyncio.Queue[Exited] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.pid = 0
        self._sock: socket.socket | None = None
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Any, tuple[int, ...]]]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> list[Job]:
        """Connect to the spawner that is there, else start one. Needs root.

        :returns: the jobs that it holds.
        :raises HostLacks: it could not be started; its log is beside the socket.
        """
        hello = await self._connect()
        if hello is None:
            self._launch()
            hello = await self._connect()
        if hello is None:
            raise HostLacks(f"the spawner does not answer on {self.path}", f"see {self.path.with_suffix('.log')}")
        self.pid = hello.pid
        for exited in hello.ended:
            self.exits.put_nowait(exited)
        return list(hello.jobs)

    async def spawn(self, spec: LaunchSpec) -> Spawned:
        """Launch up to the gate: the process waits in `spec.cgroup`. The descriptors are the caller's to close.

        :raises AgentmonError: BadInput for the spec, HostLacks for the host; nothing is left running.
        """
        spec.check()
        memory = memory_file("spec", msgspec.msgpack.encode(spec))
        try:
            answer, fds = await self._call(messages.Spawn(id=next(self._ids)), (memory,))
        finally:
            os.close(memory)
        return Spawned(spec.slot, answer.pid, fds)

    async def probe(self, spec: ProbeSpec) -> ProbeResult:
        """What a process in the bottle's network namespace and probe cgroup can reach."""
        answer, _fds = await self._call(messages.Probe(id=next(self._ids), spec=spec))
        result: ProbeResult = answer.result
        return result

    async def signal(self, slot: int, signum: int) -> None:
        """Signal the job's command: signals that a terminal sends go to its process group, others to it alone.

        :raises BadInput: the slot has no running command.
        """
        await self._call(messages.Signal(id=next(self._ids), slot=slot, signum=signum))

    async def close(self) -> None:
        """Jobs go on; a spawner without jobs ends by itself."""
        self._disconnect()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, 0.5)

    # ── connection ──

    async def _connect(self) -> messages.Hello | None:
        """None: nobody listens, or the one who does is just ending."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            return None
        try:
            data = await asyncio.wait_for(loop.sock_recv(sock, messages.MAX_PACKET), _HELLO_S)
            hello = messages.decode(data) if data else None
        except (OSError, TimeoutError, msgspec.MsgspecError):
            hello = None
        if not isinstance(hello, messages.Hello) or hello.version != _VERSION:
            sock.close()
            return None
        self._sock = sock
        self.lost.clear()
        loop.add_reader(sock.fileno(), self._readable)
        return hello

    def _launch(self) -> None:
        """Start the process with a socket that already listens: no waiting for it to appear."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            old = os.umask(0o177)
            try:
                listener.bind(str(self.path))
            finally:
                os.umask(old)
            listener.listen(4)
            root = str(Path(__file__).resolve().parents[2])
            with self.path.with_suffix(".log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "agentmon.launch.spawner", str(listener.fileno())],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                    pass_fds=(listener.fileno(),), env=_clean_environment() | {"PYTHONPATH": root},
                )  # fmt: skip

    def _disconnect(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(AgentmonError("the spawner has gone", f"see {self.path.with_suffix('.log')}"))
        self._waiting.clear()
        self.lost.set()

    def _readable(self) -> None:
        while self._sock is not None:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._sock, messages.MAX_PACKET, messages.MAX_FDS)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._disconnect()
                return
            self._deliver(messages.decode(data), tuple(fds))

    def _deliver(self, packet: messages.AnyPacket, fds: tuple[int, ...]) -> None:
        if isinstance(packet, messages.Ended):
            self.exits.put_nowait(packet.exited)
            return
        future = self._waiting.pop(packet.id, None)
        if future is None or future.done():  # the caller gave up: nobody will close these
            for fd in fds:
                os.close(fd)
        elif isinstance(packet, messages.Error):
            future.set_exception(BY_NAME.get(packet.kind, AgentmonError)(packet.message, packet.hint))
        else:
            future.set_result((packet, fds))

    async def _call(self, packet: messages.Packet, fds: tuple[int, ...] = ()) -> tuple[Any, tuple[int, ...]]:
        if self._sock is None:
            raise AgentmonError("the spawner has gone", f"see {self.path.with_suffix('.log')}")
        future: asyncio.Future[tuple[Any, tuple[int, ...]]] = asyncio.get_running_loop().create_future()
        self._waiting[packet.id] = future
        try:
            socket.send_fds(self._sock, [messages.encode(packet)], fds)
            return await future
        except OSError as e:
            raise AgentmonError(f"the spawner does not take requests: {e}") from e
        finally:
            self._waiting.pop(packet.id, None)


def _clean_environment() -> dict[str, str]:
    return {
        name: os.environ[name] for name in ("PATH", "LANG", "AGENTMON_ROOT", "AGENTMON_DEBUG") if name in os.environ
    }
