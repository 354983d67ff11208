"""The daemon's edges on the real kernel: cgroup tree, namespace cookies, the process behind a port, the lock."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon import paths
from agentmon.daemon import lock, whose
from agentmon.daemon.cgroups import Tree, find_v2
from agentmon.daemon.netns_cookie import netns_cookie
from agentmon.errors import HostLacks
from tests.support.live import until

pytestmark = pytest.mark.root


@pytest.fixture
def tree() -> Iterator[Tree]:
    made = Tree(find_v2() / f"agentmon-test-{os.getpid()}-tree")
    made.open()
    yield made
    for slot in made.slots():
        made.kill(slot)
        until(lambda slot=slot: not made.populated(slot))
        made.remove(slot)
    made.close()
    assert not made.parent.exists()


def sleeper(leaf: Path) -> subprocess.Popen[bytes]:
    """A process that forks, in `leaf`."""
    script = f"echo $$ > {leaf}/cgroup.procs; sleep 1000 & wait"
    return subprocess.Popen(["sh", "-c", script])


def test_a_bottle_starts_frozen_is_killed_whole_and_leaves_nothing(tree: Tree) -> None:
    number = tree.make(16, pids=100)
    assert number == tree.bottle(16).stat().st_ino == tree.cgroup_id(16)
    assert (tree.job(16) / "cgroup.freeze").read_text().strip() == "1"
    process = sleeper(tree.job(16))
    until(lambda: process.pid in tree.processes(16))
    assert tree.populated(16) and tree.slots() == {16}
    tree.freeze(16, frozen=False)
    until(lambda: len(tree.processes(16)) == 2)
    tree.freeze(16, frozen=True)
    tree.kill(16)
    until(lambda: not tree.populated(16))
    assert process.wait(5) == -9
    tree.remove(16)
    assert tree.slots() == frozenset()
    tree.kill(16)
    tree.remove(16)  # idempotent


def test_a_slot_in_use_is_refused(tree: Tree) -> None:
    tree.make(17)
    with pytest.raises(FileExistsError):
        tree.make(17)


def test_a_busy_cgroup_is_an_error_at_the_deadline(tree: Tree) -> None:
    tree.make(18)
    tree.freeze(18, frozen=False)
    process = sleeper(tree.job(18))
    until(lambda: tree.populated(18))
    with pytest.raises(OSError, match="busy"):
        tree.remove(18, deadline_s=0.05)
    tree.kill(18)
    process.wait(5)


def test_the_cookie_is_the_namespaces_own() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        (own,) = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 71, 8))
    assert netns_cookie("/proc/self/ns/net") == own
    process = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
    try:
        here = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != here)
        assert netns_cookie(f"/proc/{process.pid}/ns/net") not in {0, own}
    finally:
        process.kill()
        process.wait()
    with pytest.raises(FileNotFoundError):
        netns_cookie("/run/netns/there-is-none")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_process_behind_a_port_is_named(family: socket.AddressFamily) -> None:
    code = (
        f"import socket, sys; s = socket.socket({int(family)}, socket.SOCK_DGRAM); s.bind(('', 0)); "
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    found = whose.process([os.getpid(), process.pid], "udp", port)
    assert (found["pid"], found["ppid"], found["uid"]) == (process.pid, os.getpid(), os.geteuid())
    assert found["comm"].startswith("python") and "import socket" in found["cmdline"]
    process.communicate("")
    assert whose.process([os.getpid()], "udp", port) == {}
    assert whose.process([process.pid], "udp", port) == {}


def test_one_daemon_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", tmp_path / "run")
    monkeypatch.setattr(paths, "LOCK", tmp_path / "run/daemon.lock")
    monkeypatch.setattr(paths, "CONTROL_SOCKET", tmp_path / "run/control.sock")
    first = lock.take()
    with pytest.raises(HostLacks, match="already running"):
        lock.take(wait_s=0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(paths.CONTROL_SOCKET))
        listener.listen()
        with pytest.raises(HostLacks, match="already running"):
            lock.take(wait_s=30)  # it answers: no need to wait
    paths.LOCK.unlink()  # an ending daemon removes its directory under a waiting one
    second = lock.take(wait_s=1)
    os.close(first)
    os.close(second)


def test_an_ending_daemon_removes_the_directory_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", tmp_path / "run")
    monkeypatch.setattr(paths, "LOCK", tmp_path / "run/daemon.lock")
    monkeypatch.setattr(paths, "CONTROL_SOCKET", tmp_path / "run/control.sock")
    really_open, times = os.open, iter(range(3))

    def open_late(*args: Any) -> int:
        if next(times, None) is not None:
            paths.RUN.rmdir()
        return really_open(*args)

    monkeypatch.setattr(os, "open", open_late)
    held = lock.take(wait_s=10)
    assert os.fstat(held).st_ino == paths.LOCK.stat().st_ino
    os.close(held)


def test_without_cgroup_v2_the_remedy_is_named(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n32 31 0:29 / /c rw - cgroup cgroup rw,cpu\n")
    with pytest.raises(HostLacks, match="cgroup v2 is not mounted") as caught:
        find_v2(str(mountinfo))
    assert "mount -t cgroup2" in caught.value.hint
    mountinfo.write_text("41 31 0:38 / /a\\040b rw,relatime - cgroup2 cgroup2 rw\n")
    assert find_v2(str(mountinfo)) == Path("/a b")
