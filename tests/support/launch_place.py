"""Where the spawner's tests launch: a cgroup, a network namespace, a home, and what is said to a spawner there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import select
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentmon.launch.client import Spawner
from agentmon.launch.etc import etc_files
from agentmon.launch.spec import Exited, LaunchSpec, Spawned

UID = 61234
_SERIAL = itertools.count()


def _cgroup2() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if tail.split()[0] == "cgroup2":
            return Path(head.split()[4])
    pytest.fail("cgroup v2 is not mounted")


def until(what: Callable[[], Any], seconds: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        select.select([], [], [], 0.005)
    pytest.fail("nothing came of it in time")


class Place:
    """A leaf cgroup, a network namespace, a home, and a spawner of the test's own."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.name = f"agentmon-test-{os.getpid()}-{next(_SERIAL)}"
        self.parent = _cgroup2() / self.name
        self.leaf = self.parent / "leaf"
        self.home = tmp / "home"
        self.socket = tmp / "spawner.sock"

    def make(self) -> None:
        self.leaf.mkdir(parents=True)
        self.home.mkdir()
        os.chown(self.home, UID, UID)
        self.tmp.chmod(0o755)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True)

    def unmake(self) -> None:
        for leaf in self.parent.iterdir() if self.parent.exists() else ():
            if leaf.is_dir():
                (leaf / "cgroup.kill").write_text("1")
                until(lambda leaf=leaf: not (leaf / "cgroup.procs").read_text())
                leaf.rmdir()
        self.parent.rmdir()
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def spec(self, *argv: str, **changes: Any) -> LaunchSpec:
        values: dict[str, Any] = {
            "slot": 99, "bottle": "test", "run": "r1", "argv": argv,
            "env": {"PATH": "/usr/bin:/bin", "HOME": "/home/job"},
            "cwd": "/", "uid": UID, "gid": UID, "home": "/home/job", "home_source": str(self.home), "netns": self.name,
            "cgroup": str(self.leaf),
            "files": etc_files(
                bottle="test", user="job", uid=UID, gid=UID, home="/home/job", nameservers=["198.51.100.53"]
            ),
        }  # fmt: skip
        return LaunchSpec(**values | changes)


def drive(place: Place, body: Callable[[Spawner], Awaitable[Any]]) -> Any:
    """Run `body` with a started spawner; the process must have ended afterwards."""

    async def main() -> Any:
        spawner = Spawner(place.socket)
        await spawner.start()
        try:
            return await asyncio.wait_for(body(spawner), 20)
        finally:
            await spawner.close()

    return asyncio.run(main())


async def read_all(fd: int) -> bytes:
    def read() -> bytes:
        out = b""
        with contextlib.suppress(OSError):  # EIO: the other side of a pty has closed
            while data := os.read(fd, 65536):
                out += data
        return out

    return await asyncio.to_thread(read)


async def run(spawner: Spawner, spec: LaunchSpec, stdin: bytes = b"") -> tuple[bytes, bytes, dict[str, int], Exited]:
    spawned = await spawner.spawn(spec)
    if spec.tty:
        master, status = spawned.fds
        out, err = await read_all(master), b""
        os.close(master)
    else:
        stdin_w, stdout_r, stderr_r, status = spawned.fds
        os.write(stdin_w, stdin)
        os.close(stdin_w)
        out, err = await read_all(stdout_r), await read_all(stderr_r)
        os.close(stdout_r)
        os.close(stderr_r)
    line = json.loads(await read_all(status))
    os.close(status)
    return out, err, line, await spawner.exits.get()


def once(place: Place, spec: LaunchSpec, stdin: bytes = b"") -> tuple[bytes, bytes, dict[str, int], Exited]:
    return drive(place, lambda spawner: run(spawner, spec, stdin))


async def started(spawner: Spawner, spec: LaunchSpec, word: bytes) -> Spawned:
    spawned = await spawner.spawn(spec)
    assert await asyncio.to_thread(os.read, spawned.fds[1], 100) == word
    return spawned


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
