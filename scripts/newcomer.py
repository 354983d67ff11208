#!/usr/bin/env python3
"""Walk a newcomer's path: a fresh clone, then the console sessions of README.md as they stand, each timed.

    ```console            "$ LINE" is a command, "NAME$ LINE" is typed into the shell that the command before it opened,
                          "> LINE" continues a command; all else must be printed, in this order
    ```console set-up     the same; changes the host (packages, users, /usr/local/bin): left out with --set-up-done

Times, process ids and addresses that a session shows stand for any. Exit 1: something was not as the page says.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```console[ ]?(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_TYPED = re.compile(r"^\w+\$ ")
_ANY = re.compile(r"\b\d\d:\d\d:\d\d\b|\(pid \d+\)|\b\d+(?:\.\d+)? ?m?s\b")
_STEP_S = 900.0


@dataclass
class Step:
    """One command of a session, what is typed into it, and the lines that it has to print among others."""

    command: str
    kind: str  # what stands behind ```console
    typed: list[str] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)


def steps(page: str) -> Iterator[Step]:
    """The commands of every console block of a page, in order."""
    for block in _BLOCK.finditer(page):
        step: Step | None = None
        for line in block["body"].splitlines():
            if line.startswith("$ "):
                if step is not None:
                    yield step
                step = Step(line[2:], block["info"].strip())
            elif step is None:
                raise ValueError(f"a console block begins with {line!r}; its first line is `$ command`")
            elif line.startswith("> "):
                step.command += "\n" + line[2:]
            elif _TYPED.match(line):
                step.typed.append(line.partition("$ ")[2])
            else:
                step.printed.append(line)
        if step is not None:
            yield step


def lacking(wanted: Sequence[str], printed: str) -> str | None:
    """The first wanted line that is not among the printed ones after those before it; None: all are."""
    lines = iter([_ANY.sub("?", line.strip()) for line in printed.splitlines()])
    for line in wanted:
        if _ANY.sub("?", line.strip()) not in lines:
            return line
    return None


def run(step: Step, place: Path, env: dict[str, str]) -> tuple[float, str]:
    """(seconds, what is wrong or ""). As root a command's `sudo` is left out: it would change PATH."""
    command = re.sub(r"^sudo ", "", step.command) if os.geteuid() == 0 else step.command
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-c", command], cwd=place, env=env, text=True, input="\n".join([*step.typed, ""]),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_STEP_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        return time.monotonic() - began, f"it did not end in {e.timeout:.0f} s"
    took = time.monotonic() - began
    line = lacking(step.printed, done.stdout)
    if line is not None:
        return took, f"it did not print {line!r}, but:\n{done.stdout}"
    if done.returncode and not step.typed:  # a shell's status is its last line's
        return took, f"exit status {done.returncode}:\n{done.stdout}"
    return took, ""


def walk(pages: Sequence[str], place: Path, env: dict[str, str], leave_out: Collection[str] = ()) -> bool:
    """Run the sessions of `pages` in the clone at `place`, but for those of the kinds in `leave_out`; prints a line a
    step. True if all was as they say."""
    began = time.monotonic()
    for page in pages:
        for step in steps((place / page).read_text()):
            shown = step.command.partition("\n")[0]
            if step.kind in leave_out:
                print(f"  left out  {page}: $ {shown}")
                continue
            took, wrong = run(step, place, env)
            print(f"{took:8.1f} s  {page}: $ {shown}" + ("" if not wrong else "   WRONG"), flush=True)
            if wrong:
                print(f"error: {page}: {shown}: {wrong}", file=sys.stderr)
                return False
    print(f"{time.monotonic() - began:8.1f} s  from the first command to the last line")
    return True


def clone(place: Path) -> float:
    """A fresh clone of what is committed; seconds."""
    began = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(place)], check=True)
    return time.monotonic() - began


def in_place_of_set_up(place: Path) -> dict[str, str]:
    """An environment where `agentmon` is the clone's, run by this checkout's .venv."""
    (place / ".venv").symlink_to(ROOT / ".venv")
    command = place / ".bin/agentmon"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH={place} exec {place}/.venv/bin/python -m agentmon.cli "$@"\n')
    command.chmod(0o755)
    return {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(place)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Walk the README's path in a fresh clone, and time it.")
    parser.add_argument("--set-up-done", action="store_true", help="leave out what changes the host; use this .venv")
    parser.add_argument("pages", nargs="*", default=["README.md"], help="pages whose sessions are run, in order")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="agentmon-newcomer-", dir="/var/tmp"))
    try:
        place.chmod(0o755)
        here = place / "agentmon"
        print(f"{clone(here):8.1f} s  git clone")
        env = dict(os.environ) | (in_place_of_set_up(here) if options.set_up_done else {})
        return 0 if walk(options.pages, here, env, {"set-up"} if options.set_up_done else ()) else 1
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(main())
