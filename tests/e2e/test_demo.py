"""`agentmon demo` as a user runs it: everything as it should be, twice, and nothing left when it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.cli import leftovers
from tests.internet import links, untraced
from tests.support.live import alone, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "agentmon.cli", "demo"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


@pytest.fixture(autouse=True, scope="module")
def no_other_agentmon() -> Iterator[None]:
    with alone():
        yield


def test_everything_is_as_it_should_be() -> None:
    done = subprocess.run([*DEMO, "--json"], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["start"]) == ["netns", "veth", "tables", "rules", "programs", "services", "probe"]
    assert all(result["start"].values()), result["start"]
    assert [call["status"] for call in result["calls"]] == [200] * 5
    assert [(r["attempt"], r["receiver_bytes"]) for r in result["refused"]] == [
        ("curl", 0),
        ("ctypes-connect", 0),
        ("udp-sendto", 0),
        ("dns", 0),
    ]
    for refusal in result["refused"]:
        assert {"pid", "comm", "reason", "layer", "hint"} <= set(refusal["event"])
    cutoff = result["cutoff"]
    assert (cutoff["status"], cutoff["type"], cutoff["resumed"]) == (403, "budget_exhausted", True)
    assert cutoff["used"] >= cutoff["budget"]
    assert cutoff["latency_ns"] <= 20_000_000
    assert 0 <= cutoff["stream_ended_ns_after"] <= 250_000_000
    assert result["ledger"]["tokens"] == result["ledger"]["provider_tokens"] > cutoff["budget"]
    assert result["leftovers"] == []


def test_for_people_it_ends_with_the_verdict() -> None:
    done = subprocess.run(DEMO, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("All as it should be.")
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "step", ["the stand-in internet", "the daemon", "bottle", "is ready", "resuming", "the next call"]
)
def test_an_interrupted_demo_leaves_nothing(step: str, number: int) -> None:
    """At every stage; progress is shown on stderr when AGENTMON_DEBUG is set. Not traced: the whole demos above are."""
    before = leftovers.snapshot()
    environment = untraced() | {"PYTHONPATH": str(ROOT), "AGENTMON_DEBUG": "1"}
    demo = subprocess.Popen(DEMO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with demo:
        assert demo.stderr is not None
        seen = []
        while step not in (line := demo.stderr.readline()):
            seen.append(line)
            assert line, "".join(seen)
        demo.send_signal(number)
        out, err = demo.communicate(timeout=90)
    assert demo.returncode == 128 + number, err
    assert "Traceback" not in err + out
    assert leftovers.since(before) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_still_starting_ends_before_the_demo_does(number: int) -> None:
    """The stand-in internet waits for its turn here: the demo has a process that has not answered yet."""
    environment = ENVIRONMENT | {"AGENTMON_DEBUG": "1"}
    with (
        links.only_one(60),
        subprocess.Popen(DEMO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo,
    ):
        starting = until(lambda: [pid for pid in children(demo.pid) if b"tests.internet" in command_line(pid)])
        demo.send_signal(number)
        out, err = demo.communicate(timeout=30)
        assert not any(Path(f"/proc/{pid}").exists() for pid in starting)
    assert demo.returncode == 128 + number
    assert out == "" and "error" not in err and "Traceback" not in err


def children(pid: int) -> list[str]:
    """proc_pid_children(5), of the main thread."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # gone meanwhile
        return b""


def test_a_running_daemon_is_left_alone() -> None:
    environment = ENVIRONMENT | {"AGENTMON_DEBUG": "0"}
    daemon = subprocess.Popen(
        [*DEMO[:-1], "daemon", "--until-idle"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    with daemon:
        try:
            wait_for_daemon(daemon)
            done = subprocess.run(DEMO, env=environment, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 4
            assert "error: an agentmon daemon is already running" in done.stderr
            assert "hint: " in done.stderr
            assert daemon.poll() is None
        finally:
            daemon.terminate()
            daemon.wait(30)


def wait_for_daemon(daemon: subprocess.Popen[bytes]) -> None:
    argv = [*DEMO[:-1], "ps", "--json"]
    deadline = time.monotonic() + 30
    while subprocess.run(argv, env=ENVIRONMENT, capture_output=True, check=False).returncode != 0:
        assert daemon.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
