"""What counts as left behind: the comparison, not the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agentmon.cli import leftovers


def test_a_difference_says_kind_and_direction() -> None:
    before = {"link": frozenset({"lo", "eth0"}), "pin": frozenset({"/a"})}
    after = {"link": frozenset({"lo", "am16"}), "pin": frozenset({"/a"})}
    assert leftovers.difference(before, after) == ["link: left behind: am16", "link: removed: eth0"]


def test_a_host_nobody_changes_is_the_same_twice() -> None:
    """Kinds that other users of this host do not touch meanwhile."""
    first, second = leftovers.snapshot(), leftovers.snapshot()
    assert first["rule"] == second["rule"]
    assert set(first) == {
        "namespace", "link", "rule", "route", "nft table", "pin", "mount", "cgroup", "process", "state", "sysctl"
    }  # fmt: skip


def test_this_process_is_never_left_over_and_another_is_whoever_it_is() -> None:
    own = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()[:160]
    argv = [sys.executable, "-c", "input()", "agentmon-of-a-test"]
    line = " ".join(argv)
    before = leftovers.snapshot()["process"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE), subprocess.Popen(argv, stdin=subprocess.PIPE):
        after = leftovers.snapshot()["process"]
    assert {line, f"{line} (2)"} <= after - before
    assert own not in before | after


def test_since_gives_cleaning_up_a_moment() -> None:
    before = leftovers.snapshot()
    gone = {kind: lines | {"was here"} if kind == "link" else lines for kind, lines in before.items()}
    assert "link: removed: was here" in leftovers.since(gone, within_s=0.2)
