"""The dashboard in a real terminal (tmux), beside a real daemon: seen, and driven by keys."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import ROOT, World, until

pytestmark = pytest.mark.e2e


class Terminal:
    """A tmux server of its own with one window, in which `agentmon top` runs."""

    def __init__(self, world: World, tmp: Path, columns: int, lines: int) -> None:
        self._socket = str(tmp / f"tmux-{columns}")
        command = f"exec {sys.executable} -m agentmon.cli top"
        env = [word for key, value in world.own.items() for word in ("-e", f"{key}={value}")]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(lines), *env, "-c", str(ROOT),
                   command)  # fmt: skip

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *words], capture_output=True, text=True, timeout=20, check=False
        )
        return done.stdout

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def seen(self, *options: str) -> str:
        return self._tmux("capture-pane", "-p", *options)

    def wait(self, text: str, seconds: float = 20.0) -> str:
        return str(
            until(lambda: text in (seen := self.seen()) and seen, seconds, f"{text!r} is not seen:\n{self.seen()}")
        )

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: apt-get install tmux")
    with World(tmp_path_factory.mktemp("top")) as made:
        made.start_daemon()
        yield made


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (160, 48)])
def test_a_session(world: World, tmp_path: Path, columns: int, lines: int) -> None:
    script = "curl -s -m 2 https://www.forbidden.example/; echo up; exec sleep 60"
    job = world.run("--name", f"build-{columns}", "--budget", "claude=100000", "--", "sh", "-c", script)
    assert job.line(20) == "up"
    terminal = Terminal(world, tmp_path, columns, lines)
    try:
        terminal.wait(f"build-{columns}")
        terminal.wait("www.forbidden.example")
        terminal.press("Down", "c")
        terminal.wait(f"cut off build-{columns}?")
        terminal.press("y")
        until(lambda: [row["phase"] for row in world.rows("ps")] == ["cut"])
        terminal.wait(" cut ")
        terminal.press("r")
        terminal.wait(f"resume build-{columns}?")
        terminal.press("y")
        until(lambda: [row["phase"] for row in world.rows("ps")] == ["running"])
        terminal.press("k")
        terminal.wait(f"kill build-{columns}?")
        terminal.press("n")
        terminal.press("k")
        terminal.wait(f"kill build-{columns}?")
        terminal.press("y")
        until(lambda: not world.rows("ps"))
        terminal.press("q")
    finally:
        terminal.close()
    assert job.end()[0] != 0


def test_one_look_for_scripts(world: World) -> None:
    job = world.run("--name", "once", "--budget", "claude=5000", "--", "sh", "-c", "echo up; exec sleep 60")
    assert job.line(20) == "up"
    value = json.loads(world.agentmon("top", "--once", "--json").stdout)
    (line,) = [line for line in value["lines"] if line["bottle"] == "once"]
    assert line["budget"]["tokens"] == 5000 and line["budget"]["remaining"] == 5000 and line["processes"] >= 1
    assert "once" in world.agentmon("top", "--once").stdout
    done = world.agentmon("top", check=False)
    assert done.returncode == 2 and "needs a terminal" in done.stderr and "--once" in done.stderr
    world.agentmon("kill", "once")
