"""firewalld itself, in the lab's host, with a bus and a configuration of its own: Debian's package, unpacked and not
installed (scripts/setup-firewalld.sh), so that it never holds the machine that runs the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.nf_lab import Lab, until

UNPACKED = Path(__file__).parents[2] / ".cache" / "firewalld" / "root"
MISSING = "firewalld is not unpacked: sudo scripts/setup-firewalld.sh"
_PYTHON = "/usr/bin/python3"  # the packages python3-dbus and python3-gi are of this one
_BUS = """<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="false"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/>
  </policy>
</busconfig>
"""


def present() -> bool:
    return (UNPACKED / "usr/sbin/firewalld").exists()


class Firewalld:
    """Running, with the zones of the package; `cmd` is firewall-cmd."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.directory = Path(tempfile.mkdtemp(prefix="agentmon-firewalld-"))
        shutil.copytree(UNPACKED / "etc/firewalld", self.directory / "etc")
        (self.directory / "bus.conf").write_text(_BUS.format(path=self.directory / "bus"))
        site = UNPACKED / "usr/lib/python3/dist-packages"
        address = f"unix:path={self.directory / 'bus'}"
        self._env = {**os.environ, "PYTHONPATH": str(site), "DBUS_SYSTEM_BUS_ADDRESS": address}
        self._started: list[subprocess.Popen[Any]] = []
        try:
            self._start("dbus-daemon", f"--config-file={self.directory / 'bus.conf'}", "--nofork", "--nopidfile")
            until((self.directory / "bus").exists)
            self._start(
                _PYTHON, str(UNPACKED / "usr/sbin/firewalld"), "--nofork", "--nopid",
                f"--system-config={self.directory / 'etc'}", f"--default-config={UNPACKED / 'usr/lib/firewalld'}",
                f"--log-file={self.directory / 'firewalld.log'}", "--log-target=file",
            )  # fmt: skip
            until(self.running, 30, "firewalld does not answer")
        except BaseException as e:
            e.add_note(self.log())
            self.close()
            raise

    def _start(self, *argv: str) -> None:
        with (self.directory / "log").open("a") as log:
            start = lambda: subprocess.Popen(argv, env=self._env, stdout=log, stderr=log)  # noqa: E731
            self._started.append(self._lab.run(start))

    def _cmd(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [_PYTHON, str(UNPACKED / "usr/bin/firewall-cmd"), *words]
        return self._lab.run(lambda: subprocess.run(argv, env=self._env, text=True, capture_output=True, check=False))

    def running(self) -> bool:
        return self._cmd("--state").stdout.strip() == "running"

    def cmd(self, *words: str) -> str:
        done = self._cmd(*words)
        assert done.returncode == 0, (words, done.stderr, self.log())
        return done.stdout.strip()

    def log(self) -> str:
        return "\n".join(
            f.read_text() for f in (self.directory / "log", self.directory / "firewalld.log") if f.exists()
        )

    def close(self) -> None:
        for process in reversed(self._started):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory)
