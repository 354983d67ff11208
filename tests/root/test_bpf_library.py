"""docs/ebpf-library.md: its program runs as it stands, says what the page says, and leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ebpf import cgroup
from ebpf.fake import FakeBpf
from ebpf.programs import CgroupPrograms
from ebpf.spec import Bpf

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/ebpf-library.md").read_text()
PREPARE = "ip link set lo up; ip addr add 198.51.100.7/32 dev lo; ip addr add 203.0.113.5/32 dev lo"
LISTEN = """
import socket, subprocess, sys
listeners = [socket.create_server((address, 443)) for address in ("198.51.100.7", "203.0.113.5")]
sys.exit(subprocess.run([sys.executable, "-"], stdin=sys.stdin).returncode)
"""


def test_the_guides_program_runs_and_leaves_nothing() -> None:
    (program,) = re.findall(r"```python root\n(.*?)```", GUIDE, re.DOTALL)
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", f'{PREPARE}; exec "$@"', "sh", sys.executable, "-c", LISTEN],
        input=program, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, *events = done.stdout.splitlines()
    assert (first, second) == ("198.51.100.7 errno 0", "203.0.113.5 errno 1")
    (event,) = events
    assert re.fullmatch(r"python\S* connect 203\.0\.113\.5 443 refused default", event), event
    assert not (cgroup.find_v2() / "guide").exists() and not Path("/sys/fs/bpf/guide").exists()


def test_every_public_name_says_what_it_does() -> None:
    names = [name for name in vars(Bpf) if not name.startswith("_")]
    assert len(names) > 15
    for name in names:
        for keeper in (CgroupPrograms, FakeBpf):
            assert callable(getattr(keeper, name)), f"{keeper.__name__} has no {name}"
