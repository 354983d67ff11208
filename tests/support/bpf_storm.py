"""Processes in a bottle that repeat steps as fast as they can and hold each one to the errno it must have."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STORM = r"""
import collections, ctypes, ipaddress, json, mmap, os, select, socket, struct, sys
procs, netns, rounds, guarded = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
progress = memoryview(mmap.mmap(int(sys.argv[5]), 8)).cast("Q")
os.nice(10) # what is done to the programs meanwhile comes first
fd = os.open(netns, os.O_RDONLY)
assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
with open(procs, "w") as f: f.write(str(os.getpid()))
if guarded:
    with socket.socket() as s: s.setsockopt(24941, 1, struct.pack("=Q", 7))
def mark(to):
    a = ipaddress.ip_address(to[0])
    a = a.packed if a.version == 6 else bytes(10) + b"\xff\xff" + a.packed
    return struct.pack("=16sHBxI", a, to[1], 6, 0)
def family(to): return socket.AF_INET6 if ":" in to[0] else socket.AF_INET
kept = {f: socket.socket(f, socket.SOCK_DGRAM) for f in (socket.AF_INET, socket.AF_INET6)}
refused = {f: socket.socket(f) for f in kept}
def connect(to): # what a refusal leaves behind is an unconnected socket, to be used again
    s = refused[family(to)]
    number = s.connect_ex(to)
    if number != 1:
        s.close()
        refused[family(to)] = socket.socket(family(to))
    return number
def vouched(to):
    with socket.socket(family(to)) as s:
        try: s.setsockopt(24941, 3, marks[to])
        except OSError as e: return -e.errno
        return s.connect_ex(to)
def sendto(to):
    try: kept[family(to)].sendto(b"x", to)
    except OSError as e: return e.errno
    return 0
acts = {"connect": connect, "sendto": sendto, "vouched": vouched}
steps = [(acts[op], tuple(to), number, op) for op, to, number in json.loads(sys.stdin.readline())]
marks = {to: mark(to) for _, to, _, _ in steps}
print("ready", flush=True)
sys.stdin.readline()
done, wrong, got = 0, [], collections.Counter()
switches, before = 0, None
while rounds < 0 or done < rounds:
    pattern = ""
    for act, to, number, op in steps:
        answer = act(to)
        if number is None: pattern += str(answer) + " "
        elif answer != number: wrong.append((op, to, answer))
    if pattern:
        got[pattern] += 1
        switches += before is not None and pattern != before
        before = pattern
    done += 1
    progress[0] = done
    if rounds < 0 and done % 8 == 0 and select.select([0], [], [], 0)[0]: break
print(json.dumps({"rounds": done, "wrong": wrong[:9], "got": got, "switches": switches}), flush=True)
"""

Step = tuple[str, tuple[str, int], int | None]
"""What to do, to where, and the errno it must have (None: noted as a pattern)."""


class Storm:
    """One process. `rounds` < 0: until :meth:`end`."""

    def __init__(self, cgroup_dir: Path, netns: str, steps: list[Step], rounds: int = -1, guarded: str = "") -> None:
        argv = [sys.executable, "-c", STORM, str(cgroup_dir / "cgroup.procs"), netns, str(rounds), guarded]
        shared = os.memfd_create("storm")
        os.truncate(shared, 8)
        self._progress = mmap.mmap(shared, 8)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*argv, str(shared)], stdin=pipe, stdout=pipe, text=True, pass_fds=[shared])
        os.close(shared)
        self.pid = self._process.pid
        self._write(json.dumps(steps))
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def begin(self) -> None:
        self._write("go")

    def done(self) -> int:
        """Rounds so far."""
        return int.from_bytes(self._progress[:], sys.byteorder)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Stop it and take its count: rounds, the first wrong answers, patterns."""
        out, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0
        found: dict[str, Any] = json.loads(out)
        return found

    def kill(self) -> None:
        """Whatever became of it; idempotent."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
