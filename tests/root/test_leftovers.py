"""What the kernel itself puts onto the host is not left behind by anybody; a pin beside it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, pathlib, subprocess
from agentmon.cli import leftovers
bpffs = pathlib.Path("/sys/fs/bpf")
before = leftovers.snapshot()["pin"]
subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], check=True)
mounted = leftovers.snapshot()["pin"]
(bpffs / "someone").mkdir()
for pin in (bpffs / "maps_debug", bpffs / "someone/progs"):
    os.symlink("/nowhere", pin)
pinned = leftovers.snapshot()["pin"]
names = {str(entry) for entry in bpffs.iterdir()}
print(json.dumps([*map(sorted, (before, mounted, pinned, names))]))
"""


def test_a_bpffs_that_is_first_mounted_meanwhile_leaves_nothing() -> None:
    """In a mount namespace of its own. Only the two iterators of the kernel are not counted."""
    script = 'while umount /sys/fs/bpf 2>/dev/null; do :; done; exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    before, mounted, pinned, names = json.loads(done.stdout)
    assert before == mounted == []
    assert pinned == ["/sys/fs/bpf/maps_debug", "/sys/fs/bpf/someone/progs"]
    assert {Path(name).name for name in names} - {"someone", "maps_debug"} <= {"maps.debug", "progs.debug"}
