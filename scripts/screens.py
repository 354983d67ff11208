#!/usr/bin/env python3
"""Draw docs/images/*.svg: what a terminal showed of the real program, with the stand-in internet around it. Root; tmux.

sudo .venv/bin/python scripts/screens.py
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.e2e.test_top import Terminal  # noqa: E402
from tests.support.live import World, until  # noqa: E402

IMAGES = ROOT / "docs/images"
_ASK = """
echo up
body='{"model": "claude-scripted-in900-out300", "max_tokens": 400, "messages": [{"role": "user", "content": "go on"}]}'
for n in $(seq 60); do
    curl -s -o /dev/null -H "x-api-key: of-the-demo" -H "anthropic-version: 2023-06-01" -d "$body" \\
        https://api.anthropic.com/v1/messages
    sleep 0.3
done
"""


def main() -> int:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp, World(Path(tmp)) as world:
        manifests = world.root / "etc/agentmon/bottles"
        manifests.mkdir(parents=True)
        (manifests / "ci.yml").write_text("budget: {claude: 400000}\n")
        (manifests / "review.yml").write_text("extends: ci\nallow: [api.anthropic.com]\nbudget: {claude: 60000}\n")
        world.start_daemon()
        lost = "curl -s https://www.forbidden.example/; curl -s http://203.0.113.20:8080/; echo up; exec sleep 90"
        jobs = [
            world.run("--name", "build-17", "--allow", "www.allowed.example", "--", "sh", "-c", lost),
            world.run("--name", "review-3", "--policy", "review", "--", "sh", "-c", _ASK),
            world.run("--name", "nightly", "--budget", "claude=9000", "--", "sh", "-c", "echo up; exec sleep 90"),
        ]
        for job in jobs:
            job.line(30)
        world.agentmon("cut", "nightly")
        until(lambda: world.rows("usage"), 30)
        terminal = Terminal(world, Path(tmp), 100, 30)
        try:
            terminal.wait("forbidden.example")
            until(lambda: re.search(r"k/60\.0k +\d", terminal.seen()), 30)
            svg("top", terminal.seen("-e"), 100)
            terminal.press("q")
        finally:
            terminal.close()
        svg("events", "$ agentmon events\n" + world.agentmon("events", "--verdict", "refused").stdout, 100)
        world.agentmon("kill", "--all")
    return 0


def svg(name: str, text: str, columns: int) -> None:
    console = Console(width=columns, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text.rstrip()))
    text = console.export_svg(title="agentmon", unique_id=name)
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)  # nothing is loaded: the reader's own font does
    (IMAGES / f"{name}.svg").write_text(text)
    print(f"docs/images/{name}.svg")


if __name__ == "__main__":
    assert subprocess.run(["tmux", "-V"], check=False).returncode == 0
    sys.exit(main())
