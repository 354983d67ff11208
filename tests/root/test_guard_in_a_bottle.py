"""Self-check and native audit beside the real programs: who vouches, and which file layer 3 has seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentmon.audit_native import report, sightings, tree
from ebpf.spec import Event, Guard
from tests.support.bpf_lab import Bottle, Lab, entry

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
KNOWN = "198.51.100.7"
ENTER = 'echo $$ > "$0" && exec nsenter --net="$1" "${@:2}"'


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    assert bpf_lab.programs.features() >= {"vouch", "origin"}, bpf_lab.programs.left_out
    return bpf_lab


@pytest.fixture(scope="module")
def audit() -> report.Audit:
    """This very environment: seconds, and the same for each."""
    return report.audit(tree.of_venv(Path(sys.prefix)))


def inside(lab: Lab, bottle: Bottle, *module: str) -> list[str]:
    """The command line that runs a Python module in the bottle's cgroup and namespace."""
    return ["bash", "-c", ENTER, str(bottle.directory / "cgroup.procs"), lab.netns, sys.executable, "-m", *module]


@pytest.mark.parametrize(
    ("guard", "vouching"), [(Guard.OBSERVE, "active"), (Guard.STRICT, "active"), (Guard.OFF, "inactive")]
)
def test_selfcheck_says_whether_the_kernel_vouches(lab: Lab, bottle: Bottle, guard: Guard, vouching: str) -> None:
    bottle.apply(allow=(entry(f"{KNOWN}/32", 443),), guard=guard)
    done = subprocess.run(
        inside(lab, bottle, "agentmon.guard", "check", "--json", "--allow", f"{KNOWN}:443", f"{KNOWN}:443"),
        cwd=ROOT,
        env=os.environ | {"AGENTMON_BOTTLE": "b1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bottle"] == {"name": "b1", "vouching": vouching}
    assert found["destinations"] == [{"destination": f"{KNOWN}:443", "refused": False}]
    # It asked its own hook only: nothing left, and layer 3 saw no connect at all.
    assert lab.received() == [] and lab.programs.read() == []


@pytest.mark.parametrize(
    ("way", "package", "file"), [("uvloop", "uvloop", "loop.cpython"), ("pycurl", "pycurl", "libcurl-")]
)
def test_the_audit_says_which_file_layer_3_has_seen(
    lab: Lab, bottle: Bottle, audit: report.Audit, way: str, package: str, file: str
) -> None:
    bottle.apply(allow=(entry(f"{KNOWN}/32", 443),), guard=Guard.STRICT)
    events: list[Event] = []
    module = "tests.support.bypass_clients.guarded"
    command = [*inside(lab, bottle, module, way, KNOWN, "443"), f"tcp://{KNOWN}:443"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as client:
        deadline = time.monotonic() + 60
        while client.poll() is None:
            assert time.monotonic() < deadline
            events += lab.programs.read()
            time.sleep(0.005)
    events += lab.programs.read()
    told = [{"kind": e.kind, "library": e.library, "dst": str(e.dst), "port": e.port} for e in events]
    data = report.to_dict(audit, sightings.collect(told))
    seen = {f["path"].rpartition("/")[2]: f for f in data["findings"] if f["layer3"] == "seen"}
    (found,) = [f for name, f in seen.items() if name.startswith(file)]
    assert found["package"] == package and found["past_the_guard"]
    assert found["seen"]["destinations"] == [f"{KNOWN}:443"]
