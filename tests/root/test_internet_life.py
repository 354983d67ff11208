"""The stand-in internet's beginning and end: one at a time, gone with its starter, and a killed one is cleaned up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.cli import leftovers
from tests.internet import Internet, links, taken, untraced, world
from tests.support.nf_lab import WEB4, WEB6, Lab

pytestmark = pytest.mark.root

NETNS = Path("/run/netns", world.NETNS)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def second(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "tests.internet", str(tmp_path)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        yield process
        process.kill()


def ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return "ca.pem" in process.stdout.readline()


def test_a_killed_run_is_cleaned_up_by_the_next(second: subprocess.Popen[str]) -> None:
    assert ready(second)
    second.kill()
    second.wait()
    assert NETNS.exists()
    with Internet() as net:
        assert net.queries("www.allowed.example") == 0
    assert not NETNS.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_removes_everything(
    number: int, tmp_path: Path, lanes_picture: Callable[[], leftovers.Snapshot]
) -> None:
    before = lanes_picture()
    argv = [sys.executable, "-m", "tests.internet", str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert ready(process)
        process.send_signal(number)
        process.send_signal(number)  # an impatient one
        assert process.wait(20) == 0
    assert leftovers.since(before, look=lanes_picture) == []


def test_it_ends_with_the_process_that_started_it(second: subprocess.Popen[str]) -> None:
    assert ready(second)
    assert second.stdin is not None
    second.stdin.close()
    assert second.wait(20) == 0
    assert not NETNS.exists()


def test_a_second_one_waits_for_the_first(second: subprocess.Popen[str]) -> None:
    assert ready(second)
    with pytest.raises(links.Busy, match="another stand-in internet"), links.only_one(0):
        pass
    assert second.stdin is not None
    second.stdin.close()
    with links.only_one(20):
        wait_for(lambda: second.poll() is not None)


def test_what_the_host_is_connected_to_is_not_taken_under_way(lab: Lab) -> None:
    """A segment of such a connection would be counted as a bottle's leak."""
    sock = lab.connect("", WEB4)
    nets = (f"{WEB4}/32", f"{WEB6}/128")
    assert lab.inside("", lambda: taken.free(nets, 0.2)) == {WEB4}
    sock.close()
    assert lab.inside("", lambda: taken.free(nets, 20)) == set()
    with lab.connect("", WEB6):
        assert lab.inside("", lambda: taken.peers(nets)) == {WEB6}
        assert lab.inside("", lambda: taken.peers(("10.0.0.0/8",))) == set()


def test_it_does_not_begin_while_the_host_is_connected_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taken, "peers", lambda _: {world.FORBIDDEN[0]})
    monkeypatch.setattr(links, "_OTHERS_S", 0.0)
    with pytest.raises(links.Busy, match=f"connected to {world.FORBIDDEN[0]}"), links.only_one(60), links.joined():
        pass
    assert not NETNS.exists()


def test_bad_use_is_told() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.internet"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "python -m tests.internet DIR" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_start_ends_quietly(number: int, tmp_path: Path) -> None:
    """While it waits for another one, which goes on."""
    argv = [sys.executable, "-m", "tests.internet", str(tmp_path)]
    with (
        links.only_one(60),
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=untraced()
        ) as process,  # coverage has a handler of its own, and earlier
    ):
        wait_for(lambda: handles(process.pid, signal.SIGTERM))  # the later of the two
        process.send_signal(number)
        assert process.communicate(timeout=20) == (b"", b"")
        assert process.returncode == 0


def test_a_directory_that_is_gone_is_told_in_a_line(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.internet", str(tmp_path / "gone")]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: the stand-in internet cannot run: ") and "gone/ca.pem" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not NETNS.exists()


def handles(pid: int, number: int) -> bool:
    """Whether the process has its own handler for the signal: proc(5), SigCgt."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def wait_for(condition: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
