"""service.py: configuration, sockets, control connections, the end. With root: tests/root/test_service_drop.py."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentmon import service, wire
from agentmon.channel import BlockingChannel, Channel


def test_read_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.json").write_text('{"a": 1}')
    assert service.read_config(["x", str(tmp_path / "c.json")]) == {"a": 1}
    with pytest.raises(SystemExit) as stop:
        service.read_config(["x"])
    assert stop.value.code == 2
    assert "hint: agentmon daemon" in capsys.readouterr().err


def test_listen_unix_replaces_a_stale_socket_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for _ in range(2):
        sock = service.listen_unix(path)
        assert path.stat().st_mode & 0o777 == 0o600
        sock.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_listen_tcp(address: str) -> None:
    with service.listen_tcp(address, 0) as sock:
        assert not sock.getblocking()
        with socket.create_connection(sock.getsockname()[:2], 5):
            pass


def test_control_says_ready_answers_reports_and_forgets(tmp_path: Path) -> None:
    async def body() -> None:
        told: list[Any] = []

        async def answer(message: Any, channel: Channel) -> wire.Message | None:
            told.append(message)
            return wire.Ack(message.id) if isinstance(message, wire.DropBottle) else None

        sock = service.listen_unix(tmp_path / "s")
        control = service.Control("test", sock, answer, frozenset({os.getuid()}))
        server = await control.start()
        control.report({"kind": "early"})
        assert (control.daemon(), control.lost) == (None, 1)
        first = await asyncio.to_thread(BlockingChannel.connect, str(tmp_path / "s"), 5)
        assert await asyncio.to_thread(first.recv) == wire.Ready("test", os.getpid())
        first.send(wire.Done(5))
        first.send(wire.DropBottle(3, 16))
        assert await asyncio.to_thread(first.recv) == wire.Ack(3)
        assert told == [wire.Done(5), wire.DropBottle(3, 16)]
        control.report({"kind": "dns"})
        assert await asyncio.to_thread(first.recv) == wire.Report({"kind": "lost", "layer": "test", "count": 1})
        assert await asyncio.to_thread(first.recv) == wire.Report({"kind": "dns"})

        second = await asyncio.to_thread(BlockingChannel.connect, str(tmp_path / "s"), 5)
        await asyncio.to_thread(second.recv)
        control.report({"kind": "new"})  # goes to the newest only
        assert await asyncio.to_thread(second.recv) == wire.Report({"kind": "new"})
        second.sock.sendall(b"\xff" * 8)  # not the protocol
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(second.recv)
        control.report({"kind": "again"})
        assert await asyncio.to_thread(first.recv) == wire.Report({"kind": "again"})
        first.close()
        while control.channels:
            await asyncio.sleep(0.01)
        assert control.daemon() is None
        second.close()
        server.close()

    asyncio.run(asyncio.wait_for(body(), 20))


def test_a_daemon_that_does_not_read_loses_events_and_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async def answer(message: Any, channel: Channel) -> None:
            return None

        sock = service.listen_unix(tmp_path / "s")
        control = service.Control("test", sock, answer, frozenset({os.getuid()}))
        server = await control.start()
        slow = await asyncio.to_thread(BlockingChannel.connect, str(tmp_path / "s"), 5)
        await asyncio.to_thread(slow.recv)
        for _ in range(100):
            control.report({"kind": "x" * 65536})
        assert 0 < control.lost < 100
        lost = control.lost
        channel = control.daemon()
        assert channel is not None
        while channel.backlog_bytes:
            await asyncio.to_thread(slow.recv)
        for _ in range(100 - lost):
            if slow.pending():
                slow.recv()
        control.report({"kind": "end"})
        got: list[Any] = []
        while not got or got[-1].event["kind"] != "end":
            got.append(await asyncio.to_thread(slow.recv))
        assert got[-2].event == {"kind": "lost", "layer": "test", "count": lost}
        slow.close()
        server.close()

    asyncio.run(asyncio.wait_for(body(), 20))


def test_a_stranger_is_turned_away(tmp_path: Path) -> None:
    async def body() -> None:
        async def answer(message: Any, channel: Channel) -> None:
            raise AssertionError

        sock = service.listen_unix(tmp_path / "s")
        control = service.Control("test", sock, answer, frozenset({os.getuid() + 1}))
        server = await control.start()
        stranger = await asyncio.to_thread(BlockingChannel.connect, str(tmp_path / "s"), 5)
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(stranger.recv)
        assert not control.channels
        stranger.close()
        server.close()

    asyncio.run(body())


_SERVICE = """
import asyncio, sys
from agentmon import service
async def main():
    if sys.argv[1] == "fail":
        raise ValueError("broken")
    if sys.argv[1] == "end":
        return
    print("ready", flush=True)
    await asyncio.Event().wait()
service.run(main)
"""


def start(how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SERVICE, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_run_ends_with_sigterm_and_not_with_sigint() -> None:
    with start("serve") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(("how", "status"), [("end", 0), ("fail", 1)])
def test_run_passes_on_how_main_ended(how: str, status: int) -> None:
    with start(how) as process:
        _out, err = process.communicate(timeout=10)
        assert process.returncode == status
        assert ("broken" in err) == (how == "fail")
