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
from tests.internet import Internet, links, world

pytestmark = pytest.mark.root

NETNS = Path("/run/netns", world.NETNS)


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
def test_a_signal_removes_everything(number: int, tmp_path: Path) -> None:
    before = leftovers.snapshot()
    argv = [sys.executable, "-m", "tests.internet", str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert ready(process)
        process.send_signal(number)
        process.send_signal(number)  # an impatient one
        assert process.wait(20) == 0
    assert leftovers.since(before) == []


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


def test_bad_use_is_told() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.internet"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "python -m tests.internet DIR" in done.stderr


def wait_for(condition: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
