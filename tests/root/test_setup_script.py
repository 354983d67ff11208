"""scripts/setup.sh on hosts that it cannot serve, and the choice of an interpreter; in a copy, with a stubbed PATH.

Root, because a foreign /etc/os-release and another user are bwrap's work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
DEBIAN = 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n'


class Host:
    """A copy of the scripts, a directory of stubs in front of PATH, and a home directory."""

    def __init__(self, directory: Path) -> None:
        self.checkout, self.stubs, self.home = directory / "checkout", directory / "stubs", directory / "home"
        for part in ("scripts", "requirements"):
            shutil.copytree(ROOT / part, self.checkout / part)
        self.stubs.mkdir()
        self.home.mkdir()
        self.release = directory / "os-release"
        self.release.write_text(DEBIAN)

    def stub(self, name: str, script: str) -> None:
        write_script(self.stubs / name, script)

    def python(self, version: str, script: str) -> Path:
        path = self.home / ".pyenv/versions" / version / "bin/python3"
        path.parent.mkdir(parents=True)
        return write_script(path, script)

    def run(self, script: str, *, user: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        sandbox = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", str(self.release), "/etc/os-release"]
        sandbox += ["--unshare-user", "--uid", str(user)] if user else []
        env = {"PATH": f"{self.stubs}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.home)} | environment
        argv = [*sandbox, str(self.checkout / "scripts" / script)]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)


def write_script(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def refused(done: subprocess.CompletedProcess[str], what: str, remedy: str) -> None:
    assert done.returncode == 4, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-2].startswith("error: ") and what in lines[-2]
    assert lines[-1].startswith("hint: ") and remedy in lines[-1]


def test_another_system_is_told_where_agentmon_runs(host: Host) -> None:
    host.stub("uname", "echo Darwin")
    refused(host.run("setup.sh"), "this is Darwin", "virtual machine")


@pytest.mark.parametrize(
    ("release", "named"),
    [
        ('ID=fedora\nVERSION_ID=43\nPRETTY_NAME="Fedora Linux 43"\n', "Fedora Linux 43"),
        ('ID=ubuntu\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04 LTS"\n', "Ubuntu 22.04 LTS"),
        ('ID=debian\nVERSION_ID="11"\n', "debian 11"),
    ],
)
def test_an_unsupported_distribution_is_named(host: Host, release: str, named: str) -> None:
    host.release.write_text(release)
    refused(host.run("setup.sh"), named, "virtual machine")


def test_a_host_without_cgroup_v2_is_told_how_to_get_it(host: Host) -> None:
    host.stub("awk", "true")  # finds no cgroup2 in mountinfo
    refused(host.run("setup.sh"), "no cgroup v2", "systemd.unified_cgroup_hierarchy=1")


def test_what_only_root_can_add_is_said_to_others(host: Host) -> None:
    host.stub("dpkg-query", '[ "$4" != bubblewrap ] && echo installed')
    refused(host.run("setup.sh", user=1000), "missing: bubblewrap", "sudo make setup")


@pytest.mark.parametrize(("failing", "what"), [("update", "apt-get update"), ("install", "could not install")])
def test_a_package_manager_that_fails_is_reported(host: Host, failing: str, what: str) -> None:
    host.stub("dpkg-query", '[ "$4" != bubblewrap ] && echo installed')
    host.stub("apt-get", f'case "$*" in *{failing}*) exit 100;; esac')
    done = host.run("setup.sh")
    refused(done, what, "run this again")
    assert "setup: installing with apt-get: bubblewrap" in done.stderr


def test_a_missing_user_is_said_to_others(host: Host) -> None:
    host.stub("getent", '[ "$2" != agentmon-relay ]')
    refused(host.run("setup.sh", user=1000), "user agentmon-relay is missing", "sudo make setup")


def test_packages_that_cannot_be_had_are_an_error_and_the_next_run_starts_again(host: Host) -> None:
    makes_a_venv = 'mkdir -p .venv/bin; cp "$0" .venv/bin/python'
    script = f'case "$*" in *platform*) echo 3.13.0;; *venv*) {makes_a_venv};; *) exit 1;; esac'
    python = write_script(host.home / "python", script)
    for _ in range(2):
        done = host.run("setup.sh", AGENTMON_PYTHON=str(python))
        refused(done, "pip could not install", "run this again")
        assert "making .venv with Python 3.13.0" in done.stderr


def test_the_newest_python_that_really_runs_is_found(host: Host) -> None:
    host.python("3.18.0", "exit 127")  # a version switcher's shim
    host.python("3.16.1", "echo 3.16.1 /somewhere/python")
    host.python("3.16.0", "echo 3.16.0 /elsewhere/python")
    assert host.run("find-python.sh").stdout == "3.16.1 /somewhere/python\n"


def test_of_one_version_the_distributions_own_is_taken(host: Host) -> None:
    found = host.run("find-python.sh").stdout.split()
    host.python("3.11.0", f"echo {found[0]} /not/this/one")
    assert host.run("find-python.sh").stdout.split() == found


def test_a_broken_interpreter_is_no_candidate(host: Host) -> None:
    """The real probe: a Python whose ssl cannot be imported is passed over."""
    host.python("3.19.0", f'exec {shutil.which("python3", path="/usr/bin")} -I -c "raise ImportError"')
    assert not host.run("find-python.sh").stdout.startswith("3.19")


def test_a_checkout_that_is_set_up_is_left_alone() -> None:
    stamp = ROOT / ".venv/agentmon-setup"
    if not stamp.exists():
        pytest.skip("this .venv was not made by scripts/setup.sh")
    before = stamp.stat().st_mtime_ns
    done = subprocess.run(
        [ROOT / "scripts/setup.sh"], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert stamp.stat().st_mtime_ns == before
