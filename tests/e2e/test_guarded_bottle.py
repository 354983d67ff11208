"""A bottle with a guarded Python in it: what the guard sees works, what goes past it is refused or told, with the
native module; and processes of the host in a bottle's namespace, or of a bottle in the host's, are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon import addresses
from tests.adversarial.bypass_bottle import Inside
from tests.support.live import ROOT, Job, World, until

pytestmark = pytest.mark.e2e
ECHO = ("direct.allowed.example:9000", "198.51.100.11:9000")
RULES = ("www.allowed.example:443", f"tcp://{ECHO[0]}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("guarded")
    with World(directory, f"bottles_dir: {directory}/bottles\n") as made:
        (directory / "bottles").mkdir()
        made.start_daemon()
        yield made


def guarded(world: World, mode: str) -> tuple[Job, dict[str, str]]:
    """A guarded process in a bottle of its own, and what it said."""
    manifest = world.tmp / f"bottles/{mode}.yml"
    manifest.write_text(f"guard: {mode}\nallow: {json.dumps(RULES)}\n")
    options = ("--name", mode, "--policy", str(manifest), "--ro", str(ROOT), "--env", f"PYTHONPATH={ROOT}")
    job = world.run(*options, "--", "/usr/bin/python3", str(ROOT / "tests/e2e/guarded_job.py"), *ECHO)
    return job, dict(job.line(30).split(" ", 1) for _ in range(4))


def test_strict(world: World) -> None:
    job, said = guarded(world, "strict")
    assert said == {"vouching": "active", "https": "200", "direct": "echoed", "ctypes": "EPERM"}
    event = until(lambda: world.events("strict", kind="bypass"))[0]
    told = {k: event[k] for k in ("verdict", "reason", "layer", "comm", "dst", "port", "proto", "syscall")}
    assert told == {
        "verdict": "refused", "reason": "unvouched", "layer": "bpf", "comm": "python3", "dst": "198.51.100.11",
        "port": 9000, "proto": "tcp", "syscall": "connect",
    }  # fmt: skip
    assert any(name in Path(event["library"]).name for name in ("libffi", "_ctypes")), event
    assert event["offset"] > 0 and event["library"] in event["library_evidence"]
    assert "python3" in event["exe"] and "guarded_job.py" in event["cmdline"] and "guard: observe" in event["hint"]
    rows = {row["bottle"]: row for row in world.rows("ps")}
    assert (rows["strict"]["guard"], rows["strict"]["guarded"]) == ("strict", 1)
    assert len(world.events("strict", kind="bypass")) == 1
    assert "called by" in world.agentmon("events", "--bottle", "strict", "--kind", "bypass").stdout
    job.say("")
    assert job.end()[0] == 0


def test_observe(world: World) -> None:
    job, said = guarded(world, "observe")
    assert said == {"vouching": "active", "https": "200", "direct": "echoed", "ctypes": "connected"}
    event = until(lambda: world.events("observe", kind="bypass"))[0]
    assert (event["verdict"], event["reason"], event["dst"]) == ("observed", "unvouched", "198.51.100.11")
    assert any(name in Path(event["library"]).name for name in ("libffi", "_ctypes")), event
    assert "(guard: observe)" in world.agentmon("events", "--bottle", "observe", "--kind", "bypass").stdout
    job.say("")
    assert job.end()[0] == 0


def test_off(world: World) -> None:
    job, said = guarded(world, "off")
    assert said == {"vouching": "inactive", "https": "200", "direct": "echoed", "ctypes": "connected"}
    job.say("")
    assert job.end()[0] == 0
    assert world.events("off", kind="bypass") == []


def test_what_this_host_can_do_is_said(world: World) -> None:
    code = "import json; from agentmon.cli.control import ask; print(json.dumps(ask('status')))"  # no command yet
    done = subprocess.run([sys.executable, "-c", code], env=world.env, capture_output=True, text=True, check=True)
    status = json.loads(done.stdout)
    assert {"vouch", "origin"} <= set(status["features"]) and set(status["features"]).isdisjoint(status["left_out"])


def test_a_process_of_the_host_in_a_bottles_namespace(world: World) -> None:
    inside = Inside(world, "visited")
    slot = next(row["slot"] for row in world.rows("ps") if row["bottle"] == "visited")
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{addresses.netns(slot)}", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as stranger:
        assert stranger.stdin is not None
        events = until(lambda: world.events("visited", kind="escape"), 20)
        told = {k: events[0][k] for k in ("verdict", "layer", "pid", "comm", "cmdline", "reason")}
        assert told == {
            "verdict": "observed", "layer": "daemon", "pid": stranger.pid, "comm": "cat", "cmdline": "cat",
            "reason": "stranger",
        }  # fmt: skip
        assert events[0]["exe"].endswith("cat")
        shown = world.agentmon("events", "--bottle", "visited", "--kind", "escape").stdout
        assert f"cat (pid {stranger.pid}) is in the bottle's network namespace" in shown
        assert len(until(lambda: world.events("visited", kind="escape"))) == 1
        stranger.stdin.close()
    inside("true")
    inside.job.end()


def test_a_process_of_a_bottle_in_a_foreign_namespace(world: World) -> None:
    """Nobody inside can get there; root on the host can put one there, by its cgroup. It is refused and told."""
    inside = Inside(world, "escaped")
    slot = next(row["slot"] for row in world.rows("ps") if row["bottle"] == "escaped")
    leaf = next(Path("/sys/fs/cgroup").rglob(f"agentmon/b{slot}/job/cgroup.procs"))
    name = f"am-escape-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        text = (
            "import socket, sys\nopen(sys.argv[1], 'w').write('0')\n"
            "try: socket.create_connection(('203.0.113.77', 80), 3)\nexcept OSError as e: print(e.errno)\ninput()"
        )
        with subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{name}", "python3", "-c", text, str(leaf)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as stray:  # fmt: skip
            assert stray.stdout is not None
            assert stray.stdout.readline() == "1\n"  # EPERM
            event = until(lambda: world.events("escaped", kind="escape"))[0]
            assert (event["verdict"], event["reason"], event["layer"]) == ("refused", "netns", "bpf")
            assert (event["pid"], event["dst"]) == (stray.pid, "203.0.113.77")
            stray.communicate("\n")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    inside.job.end()
