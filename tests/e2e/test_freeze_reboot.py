"""Frozen bottles and a reboot: their commands start again with the files, environment, policy and budgets they had."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.ledger.reader import Reader
from tests.e2e.test_bottle import HEADERS, Shell
from tests.support.live import Job, World, until

pytestmark = pytest.mark.e2e
LARGE = "claude-scripted-in1200-out100"
AGENT = """
import json, os, subprocess, sys
session = os.path.expanduser("~/.agent/session.json")
os.makedirs(os.path.dirname(session), exist_ok=True)
steps = json.load(open(session)) if os.path.exists(session) else []
children = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
log = open("agent.log", "a", buffering=1)
scratch, cache = open("/tmp/scratch", "a+"), open("/var/tmp/cache", "a+")
def tell():
    for file in (scratch, cache):
        file.flush(); file.seek(0)
    print(json.dumps({"steps": steps, "scratch": scratch.read(), "cache": cache.read(), "key": os.environ["API_KEY"],
        "cwd": os.getcwd(), "words": sys.argv[1:], "uid": os.getuid(), "log": open("agent.log").read()}), flush=True)
tell()
for line in sys.stdin:
    steps.append(line.strip())
    for file in (log, scratch, cache):
        file.write(line)
    with open(session, "w") as file:
        json.dump(steps, file)
    tell()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("freeze")) as made:
        tree = made.root / "tree"
        tree.mkdir()
        user = pwd.getpwnam("agentmon-job")
        os.chown(tree, user.pw_uid, user.pw_gid)
        made.cwd = tree
        made.start_daemon()
        yield made


def agent(world: World, name: str, *options: str) -> Job:
    python = ("/usr/bin/python3", "-c", AGENT, "--task", "mend it")
    return world.run("--name", name, "--env", "API_KEY=sk-frozen", *options, "--", *python)


def row(world: World, name: str) -> dict[str, Any]:
    found = [r for r in world.rows("ps") if r["bottle"] == name]
    return found[0] if found else {}


def saved(world: World) -> list[Path]:
    return sorted((world.root / "var/lib/agentmon/saved").iterdir())


def results(world: World, name: str) -> list[tuple[str, str]]:
    with Reader(str(world.root / "var/lib/agentmon/ledger/ledger.db")) as reader:
        return [(r["policy"], r["result"].partition(":")[0]) for r in reader.enforcement(bottle=name)]


def test_a_resume_without_a_reboot_thaws_and_forgets_what_was_saved(world: World) -> None:
    job = agent(world, "thawed")
    assert json.loads(job.line())["steps"] == []
    world.agentmon("freeze", "thawed")
    assert row(world, "thawed")["phase"] == "frozen" and row(world, "thawed")["saved"] and len(saved(world)) == 1
    assert world.agentmon("resume", "thawed").stdout == "thawed: resumed (thawed)\n"
    until(lambda: not saved(world))
    job.say("one")
    assert json.loads(job.line())["steps"] == ["one"]
    assert [policy for policy, _ in results(world, "thawed")] == ["freeze", "save", "resume"]
    world.agentmon("freeze", "thawed")
    job.process.kill()  # its terminal was closed: what was saved stays
    job.process.communicate()
    until(lambda: row(world, "thawed").get("slot", 0) is None)
    assert "frozen (saved)" in world.agentmon("ps").stdout
    world.agentmon("kill", "thawed")
    assert not saved(world) and not row(world, "thawed")


def test_after_a_reboot_the_command_starts_again_in_the_saved_state(world: World) -> None:
    job = agent(world, "coder", "--rw", str(world.root / "tree"))
    first = json.loads(job.line())
    for step in ("read", "edit"):
        job.say(step)
        last = json.loads(job.line())
    spender = Shell(world, "spender", "--provider", "claude", "--budget", "3000", "--shutdown", "freeze")
    for _ in range(2):
        assert spender.message(LARGE)[0] == 200
    body = {"model": LARGE, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
    spender.job.say(f"curl -sS -m 10 {HEADERS} -d '{json.dumps(body)}' https://api.anthropic.com/v1/messages")
    until(lambda: ("save", "saved") in results(world, "spender"))
    world.agentmon("freeze", "coder")
    assert world.agentmon("run", "--name", "coder", "--", "true", check=False).returncode == 125
    for path in (p for top in saved(world) for p in (top, *top.rglob("*"))):
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode) & 0o077) == (0, 0), path

    world.reboot()
    assert not world.run_dir.exists()
    world.jobs.clear()
    world.start_daemon()
    assert {r["bottle"]: (r["phase"], r["slot"]) for r in world.rows("ps")} == {
        "coder": ("frozen", None), "spender": ("frozen", None),
    }  # fmt: skip

    missing(world)
    back = world.resume("coder")
    found = json.loads(back.line())
    assert found == last == first | {"steps": ["read", "edit"], "scratch": "read\nedit\n", "cache": "read\nedit\n",
                                     "log": "one\nread\nedit\n"}  # fmt: skip
    assert found["key"] == "sk-frozen" and found["words"] == ["--task", "mend it"]
    assert row(world, "coder")["phase"] == "running" and len(row(world, "coder")["processes"]) >= 5
    back.say("test")
    assert json.loads(back.line())["steps"] == ["read", "edit", "test"]
    back.process.stdin.close()  # type: ignore[union-attr]
    back.process.stdin = None
    status, _, said = back.end()
    assert status == 0 and "resumed (restarted" in said
    assert results(world, "coder") == [
        ("freeze", results(world, "coder")[0][1]),
        ("save", "saved"),
        ("resume", "restarted"),
    ]


def missing(world: World) -> None:
    """Every resume that cannot be is refused, and can be tried again."""
    tree, away = world.root / "tree", world.root / "away"
    tree.rename(away)
    world.cwd = world.root
    done = world.agentmon("resume", "coder", check=False)
    assert done.returncode == 2 and f"{tree} is not there any more" in done.stderr and "stays" in done.stderr
    away.rename(tree)
    world.cwd = tree
    done = world.agentmon("resume", "--all", check=False)
    assert done.stdout == "no bottle is running\n", done.stderr
    done = world.agentmon("freeze", "coder", check=False)
    assert done.returncode == 2 and "agentmon resume coder" in done.stderr
    home = next(top / "home.tar" for top in saved(world) if b'"coder"' in (top / "bottle.json").read_bytes())
    shutil.copy(home, world.root / "copy")
    home.write_bytes(b"x" * home.stat().st_size)
    done = world.agentmon("resume", "coder", check=False)
    assert done.returncode == 1 and "the private files cannot be restored" in done.stderr, done.stderr
    until(lambda: row(world, "coder").get("slot", 0) is None)
    shutil.copy(world.root / "copy", home)


def test_a_spent_budget_outlives_the_reboot_too(world: World) -> None:
    done = world.agentmon("resume", "spender", check=False)
    assert done.returncode == 3 and "bottle spender spent its claude budget" in done.stderr, done.stderr
    until(lambda: row(world, "spender").get("slot", 0) is None)
    done = world.agentmon("resume", "spender", "--budget", "3000", check=False)
    assert done.returncode == 2 and "already spent" in done.stderr
    job = world.resume("spender", "--budget", "100000")
    shell = object.__new__(Shell)
    shell.world, shell.name, shell.job = world, "spender", job
    assert shell("echo up") == "up" and shell.message(LARGE)[0] == 200
    (line,) = [r for r in world.rows("budget", "show", "spender") if r["scope"] == "bottle"]
    assert line["tokens"] == 100_000 and line["used"] == 4 * (1200 + 64)
    assert shell.end() == 0
    assert not saved(world) and world.rows("ps") == []
    said = [r for r in world.rows("audit", "--action", "resume") if r["target"] == "spender"]
    assert [r["detail"]["result"] for r in said][-1] == "done" and "already spent" in said[1]["detail"]["result"]
