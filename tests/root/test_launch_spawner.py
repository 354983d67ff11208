"""The spawner on the real kernel: gate, exit statuses, signals, terminals, adoption, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.errors import AgentmonError, BadInput, HostLacks
from agentmon.launch.client import Spawner
from agentmon.launch.spec import Exited, Spawned
from tests.support.launch_place import UID, Place, comm, drive, once, read_all, run, started, state, until

pytestmark = pytest.mark.root


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.make()
    try:
        yield place
    finally:
        place.unmake()


@pytest.mark.parametrize(
    ("argv", "code", "signum"),
    [
        (("true",), 0, 0),
        (("sh", "-c", "exit 7"), 7, 0),
        (("sh", "-c", "kill -TERM $$"), 143, 15),
        (("nosuchcommand",), 127, 0),
        (("/etc/hostname",), 126, 0),
    ],
)
def test_exit_status_is_the_commands_own(place: Place, argv: tuple[str, ...], code: int, signum: int) -> None:
    _out, err, line, exited = once(place, place.spec(*argv))
    assert (line["exit"], line["signal"]) == (code, signum), err
    assert exited == Exited(99, "r1", code, signum)


def test_streams_pass_through_and_the_user_may_open_them_anew(place: Place) -> None:
    out, err, line, _ = once(place, place.spec("sh", "-c", "cat >/dev/stdout; echo oops >/dev/stderr"), b"hello")
    assert (out, err, line["exit"]) == (b"hello", b"oops\n", 0)


def test_nothing_of_the_command_runs_before_the_thaw(place: Place) -> None:
    (place.leaf / "cgroup.freeze").write_text("1")

    async def body(spawner: Spawner) -> None:
        spawned = await spawner.spawn(place.spec("sh", "-c", "echo ran"))
        assert (place.leaf / "cgroup.procs").read_text().split() == [str(spawned.pid)]
        assert select.select([spawned.fds[1]], [], [], 0.1) == ([], [], [])
        (place.leaf / "cgroup.freeze").write_text("0")
        assert await read_all(spawned.fds[1]) == b"ran\n"
        await spawner.exits.get()
        for fd in spawned.fds:
            os.close(fd)

    drive(place, body)


def test_terminal_is_the_commands_own(place: Place) -> None:
    script = "tty >/dev/null && stty size && stty -echo && echo $(ps -o tty= -p $$) && exec 3<>/dev/tty && echo ctty"
    out, _, line, _ = once(place, place.spec("sh", "-c", script, tty=True, rows=33, cols=101))
    assert line["exit"] == 0, out
    assert b"33 101\r\n" in out and out.endswith(b"ctty\r\n")


def test_control_c_on_the_terminal_interrupts_the_command_not_the_bottle(place: Place) -> None:
    async def body(spawner: Spawner) -> None:
        code = (
            "import os, signal, sys, time\nsignal.signal(2, lambda *a: (os.write(1, b'caught'), sys.exit(5)))\n"
            "print('up', flush=True)\nwhile True: time.sleep(0.05)"
        )
        spawned = await spawner.spawn(place.spec("/usr/bin/python3", "-c", code, tty=True))
        master, status = spawned.fds
        seen = b""
        while b"up" not in seen:
            seen += await asyncio.to_thread(os.read, master, 100)
        os.write(master, b"\x03")
        assert b"caught" in await read_all(master)
        assert json.loads(await read_all(status))["exit"] == 5
        await spawner.exits.get()
        os.close(master)
        os.close(status)

    drive(place, body)


TRAPS = {
    signal.SIGTERM: ("TERM", 40), signal.SIGINT: ("INT", 41), signal.SIGHUP: ("HUP", 42), signal.SIGQUIT: ("QUIT", 43),
    signal.SIGUSR1: ("USR1", 44),
}  # fmt: skip


@pytest.mark.parametrize("signum", TRAPS)
def test_signals_reach_the_command(place: Place, signum: int) -> None:
    async def body(spawner: Spawner) -> Exited:
        script = "".join(f"trap 'exit {code}' {name};" for name, code in TRAPS.values())
        script += "echo up; sleep 60 & wait"
        spawned = await started(spawner, place.spec("sh", "-c", script), b"up\n")
        await spawner.signal(99, signum)
        exited = await spawner.exits.get()
        for fd in spawned.fds:
            os.close(fd)
        return exited

    before = signal.signal(signum, signal.SIG_IGN)  # as it is for what a shell started with `&`, or nohup did
    try:
        assert drive(place, body).exit == TRAPS[signum][1]
    finally:
        signal.signal(signum, before)


def test_stop_and_continue(place: Place) -> None:
    async def body(spawner: Spawner) -> None:
        spawned = await started(spawner, place.spec("sh", "-c", "echo up; read x; exit 3"), b"up\n")
        command = next(int(p) for p in (place.leaf / "cgroup.procs").read_text().split() if comm(int(p)) == "sh")
        await spawner.signal(99, signal.SIGTSTP)
        until(lambda: state(command) == "T")
        await spawner.signal(99, signal.SIGCONT)
        os.write(spawned.fds[0], b"\n")
        assert (await spawner.exits.get()).exit == 3
        for fd in spawned.fds:
            os.close(fd)

    drive(place, body)


def test_cgroup_kill_is_reported_as_a_kill(place: Place) -> None:
    async def body(spawner: Spawner) -> Exited:
        spawned = await started(spawner, place.spec("sh", "-c", "echo up; sleep 60"), b"up\n")
        (place.leaf / "cgroup.kill").write_text("1")
        exited = await spawner.exits.get()
        for fd in spawned.fds:
            os.close(fd)
        return exited

    assert drive(place, body) == Exited(99, "r1", 137, 9)


def test_a_process_that_outlives_the_command_dies_with_it(place: Place) -> None:
    once(place, place.spec("sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & exit 0"))
    until(lambda: not (place.leaf / "cgroup.procs").read_text())


def test_a_daemon_that_dies_leaves_job_and_status_and_the_next_adopts(place: Place) -> None:
    async def first() -> Spawned:
        spawner = Spawner(place.socket)
        assert await spawner.start() == []
        spawned = await spawner.spawn(place.spec("sh", "-c", "read x; exit 9"))
        spawner._disconnect()  # as if killed: nothing is said
        return spawned

    async def second() -> Exited:
        spawner = Spawner(place.socket)
        jobs = await spawner.start()
        assert [(j.slot, j.run, j.pid) for j in jobs] == [(99, "r1", spawned.pid)]
        os.write(spawned.fds[0], b"\n")
        exited = await spawner.exits.get()
        await spawner.close()
        return exited

    spawned = asyncio.run(first())
    assert asyncio.run(second()) == Exited(99, "r1", 9, 0)
    assert json.loads(os.read(spawned.fds[3], 1000)) == {"exit": 9, "signal": 0}
    for fd in spawned.fds:
        os.close(fd)


def test_without_daemon_and_jobs_the_spawner_ends(place: Place) -> None:
    async def body() -> int:
        spawner = Spawner(place.socket)
        await spawner.start()
        await spawner.close()
        return spawner.pid

    pid = asyncio.run(body())
    until(lambda: not Path(f"/proc/{pid}").exists() or state(pid) == "Z")
    assert not place.socket.exists()


def test_a_killed_spawner_is_noticed(place: Place) -> None:
    async def body() -> None:
        spawner = Spawner(place.socket)
        await spawner.start()
        os.kill(spawner.pid, signal.SIGKILL)
        await asyncio.wait_for(spawner.lost.wait(), 5)
        with pytest.raises(AgentmonError, match="has gone"):
            await spawner.signal(1, 15)
        assert await spawner.start() == []  # a new one over the stale socket
        await spawner.close()

    asyncio.run(body())


def test_what_cannot_be_launched_is_said_and_leaves_nothing(place: Place) -> None:
    async def body(spawner: Spawner) -> None:
        with pytest.raises(HostLacks, match="No such file"):
            await spawner.spawn(place.spec("true", netns="agentmon-no-such"))
        with pytest.raises(HostLacks, match="does not take the job"):
            await spawner.spawn(place.spec("true", cgroup="/sys/nowhere"))
        with pytest.raises(BadInput, match="private inside"):
            await spawner.spawn(place.spec("true", ro=("/run",)))
        with pytest.raises(BadInput, match="no resource limit"):
            await spawner.spawn(place.spec("true", rlimits={"nosuch": 1}))
        with pytest.raises(BadInput, match="no running command"):
            await spawner.signal(99, 15)
        assert (place.leaf / "cgroup.procs").read_text() == ""

    drive(place, body)


def test_a_file_system_that_cannot_be_set_up_is_the_launchers_failure(place: Place) -> None:
    _, err, line, exited = once(place, place.spec("true", trust="/nosuch/bundle.pem"))
    assert line["exit"] == exited.exit == 125 and "error" in line
    assert b"/nosuch/bundle.pem" in err


def test_who_asked_must_reach_what_is_shown(place: Place, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "secret").mkdir(parents=True)
    (closed / "secret/file").write_text("x")
    closed.chmod(0o700)
    for directory in (tmp_path, *tmp_path.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)

    async def body(spawner: Spawner) -> None:
        for changes in ({"ro": (f"{closed}/secret",)}, {"rw": (f"{closed}/secret",)}, {"cwd": f"{closed}/secret"}):
            with pytest.raises(BadInput, match="Permission denied"):
                await spawner.spawn(place.spec("true", owner=UID, **changes))
        with pytest.raises(BadInput, match="No such file"):
            await spawner.spawn(place.spec("true", ro=("/nosuch/path",)))
        out, _, line, _ = await run(spawner, place.spec("cat", f"{closed}/secret/file", ro=(f"{closed}/secret",)))
        assert (out, line["exit"]) == (b"x", 0)  # root may show it
        out, _, line, _ = await run(spawner, place.spec("id", "-u", owner=UID, cwd=str(place.home)))
        assert (out, line["exit"]) == (f"{UID}\n".encode(), 0)

    drive(place, body)


def test_only_root_may_speak_to_it(place: Place) -> None:
    async def body(spawner: Spawner) -> None:
        assert place.socket.stat().st_mode & 0o777 == 0o600
        place.socket.chmod(0o666)
        code = (
            "import socket,sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
            "s.connect(sys.argv[1]); print(s.recv(10))"
        )
        user = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
        out = await asyncio.to_thread(
            subprocess.run, [*user, "/usr/bin/python3", "-c", code, str(place.socket)],
            capture_output=True, check=False,
        )  # fmt: skip
        assert out.stdout == b"b''\n", out.stderr

    for directory in (place.tmp, *place.tmp.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    drive(place, body)


def test_started_by_hand_it_says_who_starts_it() -> None:
    out = subprocess.run([sys.executable, "-m", "agentmon.launch.spawner"], capture_output=True, text=True, check=False)
    assert out.returncode == 2 and "hint: agentmon daemon" in out.stderr
