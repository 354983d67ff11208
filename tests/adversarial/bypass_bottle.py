"""A shell in a bottle from which the attempts of bypass_attempts.py are made."""

from __future__ import annotations

from pathlib import Path

from tests.support.live import Job, World

PYTHON = "/usr/bin/python3"
ATTEMPTS = Path(__file__).with_name("bypass_attempts.py")
SHELL = ("sh", "-c", 'while read -r line; do eval "$line"; echo "[done]"; done')


class Inside:
    """A shell in a bottle."""

    def __init__(self, world: World, name: str, *options: str) -> None:
        self.name, self.world = name, world
        self.job: Job = world.run("--name", name, *options, "--", *SHELL)
        assert self("echo up") == "up"

    def __call__(self, text: str, seconds: float = 20.0) -> str:
        self.job.say(text)
        out = []
        while (line := self.job.line(seconds)) != "[done]":
            out.append(line)
        return "\n".join(out)

    def tries(self, *words: str) -> str:
        return self(" ".join((PYTHON, "-I", str(ATTEMPTS), *(f"'{word}'" for word in words))))

    @property
    def addresses(self) -> tuple[str, str]:
        row = next(r for r in self.world.rows("ps") if r["bottle"] == self.name)
        return row["addr4"], row["addr6"]
