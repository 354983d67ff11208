"""What a person is told of refusals: a line when `run` ends on a terminal, and `events` with groups and filters."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.live import COMMAND, ROOT, World

pytestmark = pytest.mark.e2e
TRIES = "for i in 1 2 3; do curl -sS -m 5 https://www.forbidden.example/; done; curl -sS -m 5 http://203.0.113.10/"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("told")) as made:
        made.start_daemon()
        yield made


def on_terminal(world: World, *words: str) -> str:
    """What `run` writes to a terminal as its standard error."""
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [*COMMAND, "run", *words], cwd=ROOT, env=world.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=theirs, timeout=40, check=False,
        )  # fmt: skip
        assert done.returncode in {0, 7}, done
        os.set_blocking(ours, False)
        try:
            return os.read(ours, 1 << 16).decode()
        except BlockingIOError:
            return ""
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_is_told_at_the_end_what_was_refused_and_a_pipe_is_not(world: World) -> None:
    said = on_terminal(world, "--name", "told", "--", "sh", "-c", f"({TRIES}) 2>/dev/null")
    times = sum(event["count"] for event in world.events("told", verdict="refused"))
    assert times >= 4  # libc asks for both families
    assert "note:" in said
    assert f"refused {times} times, see: agentmon events --bottle told --verdict refused" in said
    assert "refused" not in on_terminal(world, "--", "true")
    piped = world.agentmon("run", "--", "sh", "-c", f"({TRIES}) 2>/dev/null", check=False)
    assert piped.stderr == ""

    shown = world.agentmon("events", "--bottle", "told", "--verdict", "refused", "--since", "10m").stdout
    lines = shown.splitlines()
    (name,) = [n for n, line in enumerate(lines) if "www.forbidden.example: refused by the resolver" in line]
    assert f"no rule allows it ({times - 1} times)" in lines[name] and "curl (pid " in lines[name]
    assert lines[name + 1] == "    allow it: agentmon allow told www.forbidden.example"
    (address,) = [n for n, line in enumerate(lines) if "203.0.113.10:80: refused by bpf" in line]
    assert lines[address + 1] == "    allow it: agentmon allow told tcp://203.0.113.10:80"
    only = world.agentmon("events", "--bottle", "told", "--host", "*.forbidden.example", "--layer", "resolver").stdout
    assert only.splitlines() == lines[name : name + 2]


def test_a_follower_with_filters_is_told_each_wanted_event_among_many_others(world: World) -> None:
    """History first, then what comes, in order, however late."""
    wanted = ("--kind", "dns", "--verdict", "refused", "--layer", "resolver", "--host", "*.late.example")
    job = world.run("--name", "late", "--", "sh", "-c", 'while read -r name; do getent hosts "$name"; echo asked; done')

    def ask(*names: str) -> None:
        for name in names:
            job.say(name)
            assert job.line(60) == "asked"

    ask("history.late.example", "other.example")
    follower = subprocess.Popen(
        [*COMMAND, "events", "-f", "--bottle", "late", *wanted, "--json"], cwd=ROOT, env=world.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert follower.stdout is not None
    read, known = b"", {""}

    def told() -> str:
        """The next name that was not told before: counts of repeats come when they come."""
        host = ""
        while host in known:
            host = str(json.loads(line())["host"])
        known.add(host)
        return host

    def line() -> bytes:
        nonlocal read
        while b"\n" not in read:
            assert select.select([follower.stdout], [], [], 60)[0], "the follower is told nothing more"
            data = os.read(follower.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
            assert data, "the follower has ended"
            read += data
        first, _, read = read.partition(b"\n")
        return first

    try:
        assert told() == "history.late.example"
        for late in ("first", "second", "third"):
            ask(*(f"n{number}.{late}.example" for number in range(15)), f"{late}.late.example")
            assert told() == f"{late}.late.example"
    finally:
        follower.kill()
        follower.communicate()
    assert job.process.stdin is not None
    job.process.stdin.close()
    assert job.process.wait(60) == 0
