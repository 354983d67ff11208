"""Who is in a bottle's network namespace without being of the bottle: found by a look over /proc, told once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon import addresses
from agentmon.daemon.strangers import Strangers


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[Path]:
    """A directory like /proc, in which two processes are in the namespace of slot 16."""
    (tmp_path / "netns").mkdir()
    space = tmp_path / "netns" / addresses.netns(16)
    space.touch()
    inode = space.stat().st_ino
    for pid, where in ((10, inode), (11, inode), (12, inode + 1), (13, None)):
        directory = tmp_path / "proc" / str(pid)
        (directory / "ns").mkdir(parents=True)
        (directory / "stat").write_text(f"{pid} (a ) b) S " + " ".join(map(str, range(4, 30))))
        if where is not None:
            (directory / "ns/net").symlink_to(f"net:[{where}]")
    (tmp_path / "proc/self").mkdir()
    yield tmp_path


def test_those_that_are_not_of_the_bottle_once(proc: Path) -> None:
    strangers = Strangers(lambda: {}, lambda slot, pid: (slot, pid) == (16, 10), print, proc / "netns", proc / "proc")
    assert strangers.look([16, 17]) == [(16, 11)]
    assert strangers.look([16, 17]) == []
    stat = proc / "proc/11/stat"
    stat.write_text(stat.read_text().replace(" 22 ", " 99 "))  # the number belongs to another process now
    assert strangers.look([16]) == [(16, 11)]
    assert strangers.look([17]) == [] and strangers.look([16]) == [(16, 11)]


def test_the_real_proc_is_read() -> None:
    """Without a bottle nobody is told of, and no process of this host makes the look fail."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert Strangers(lambda: {}, lambda slot, pid: False, print).look([65000]) == []
    finally:
        child.communicate(b"\n")
