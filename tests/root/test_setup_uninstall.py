"""scripts/uninstall.sh in a private copy of the host: namespaces of network, mounts and processes, its own /etc, /run,
/var/lib, bpffs and a cgroup subtree in place of the mount. What agentmon leaves goes, what others have stays."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.daemon.cgroups import find_v2

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
PRIVATE_HOST = """
set -e
checkout=$1 cgroup=$2 unified=$3
mount -t tmpfs none /mnt; cp -a /etc /mnt/etc; mount --bind /mnt/etc /etc
for directory in /run /var/lib; do mount -t tmpfs none $directory; done
mount -t bpf bpf /sys/fs/bpf
mount --bind "$cgroup" "$unified"
mkdir -p /run/netns /run/agentmon /var/lib/agentmon /etc/agentmon /sys/fs/bpf/agentmon "$unified/agentmon/b16/job"
touch /run/agentmon/daemon.lock
sleep 600 & echo $! >"$unified/agentmon/b16/job/cgroup.procs"
ip netns add am-16; ip link add am16 type veth peer name eth0 netns am-16
ip netns add other; ip link add keep0 type veth peer name keep1
nft add table inet agentmon; nft add table inet keep
for family in "-4 rule add from 10.213.0.0/16" "-6 rule add from fd61:6d6f:6e::/64"; do
    ip $family iif lo lookup local priority 1
    ip $family fwmark 0/0x1000000 unreachable priority 0
    ip $family fwmark 0x1000000/0x1000000 lookup main priority 1001
    ip $family unreachable priority 1002
done
ip rule add from 10.9.0.0/16 lookup main priority 7
cd "$checkout"
"""
REPORT = """
echo users: $(getent passwd | grep -c '^agentmon-') groups: $(getent group | grep -c '^agentmon')
echo netns: $(ip netns | cut -d' ' -f1)
echo links: $(ip -o link | cut -d' ' -f2 | sort)
echo tables: $(nft list tables)
echo rules: $(ip rule; ip -6 rule)
cd /; echo left: $(ls -d run/agentmon var/lib/agentmon etc/agentmon sys/fs/bpf/agentmon "$3/agentmon" "$1/.venv")
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    path = find_v2() / f"agentmon-test-uninstall-{os.getpid()}"
    path.mkdir()
    yield path
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)


def run_private(script: str, checkout: Path, cgroup: Path) -> subprocess.CompletedProcess[str]:
    for part in ("scripts", "Makefile"):
        source, target = ROOT / part, checkout / part
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (checkout / ".venv").mkdir()
    argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]
    argv += [PRIVATE_HOST + script, "sh", str(checkout), str(cgroup), str(find_v2())]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_everything_of_ours_goes_and_nothing_of_others(tmp_path: Path, cgroup: Path) -> None:
    done = run_private("scripts/uninstall.sh\n" + REPORT, tmp_path, cgroup)
    assert done.returncode == 0, done.stderr
    seen = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in done.stdout.splitlines())
    assert done.stdout.startswith("users: 0 groups: 0\n")
    assert seen["netns"] == "other"
    assert seen["links"].split() == ["keep0@keep1:", "keep1@keep0:", "lo:"]
    assert seen["tables"] == "table inet keep"
    assert "10.213." not in seen["rules"] and "fd61:" not in seen["rules"]
    assert seen["rules"].count("from all lookup local") == 2 and "10.9.0.0/16" in seen["rules"]
    assert seen["left"] == ""


def test_not_while_a_daemon_runs(tmp_path: Path, cgroup: Path) -> None:
    script = "exec 9>/run/agentmon/daemon.lock; flock 9; scripts/uninstall.sh || echo status $?\n" + REPORT
    done = run_private(script, tmp_path, cgroup)
    assert "error: the agentmon daemon is running\nhint: " in done.stderr
    assert "status 4\n" in done.stdout
    (netns,) = (line for line in done.stdout.splitlines() if line.startswith("netns:"))
    assert "am-16" in netns.split()


def test_not_while_something_is_attached(tmp_path: Path, cgroup: Path) -> None:
    """Its namespace would stay closed, and what was moved into a cgroup of agentmon's would be killed."""
    state = 'mkdir /run/agentmon/state; echo \'{"attached":{"what":"x"}}\' >/run/agentmon/state/16.json; '
    done = run_private(state + "scripts/uninstall.sh || echo status $?\n" + REPORT, tmp_path, cgroup)
    assert "still attached" in done.stderr and "agentmon detach" in done.stderr
    assert "status 4\n" in done.stdout and "am-16" in done.stdout


def test_not_without_root(tmp_path: Path) -> None:
    argv = ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--uid", "1000", str(ROOT / "scripts/uninstall.sh")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "hint: sudo make uninstall" in done.stderr
