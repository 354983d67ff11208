"""service.drop and the group of a socket: what only root can try."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from agentmon import service

pytestmark = pytest.mark.root


def test_a_dropped_process_has_nothing_left() -> None:
    code = """
import os, sys
from agentmon import service
service.drop("nobody")
status = open("/proc/self/status").read() if os.access("/proc/self/status", os.R_OK) else ""
print(os.getresuid(), os.getresgid(), sorted(os.getgroups()))
print([line for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "CapAmb", "NoNewPrivs"))])
try:
    os.setuid(0)
except PermissionError:
    print("no way back")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ids, status, back = done.stdout.splitlines()
    nobody = pwd.getpwnam("nobody")
    assert ids == f"{(nobody.pw_uid,) * 3} {(nobody.pw_gid,) * 3} {[nobody.pw_gid]}"
    assert status.count("0000000000000000") == 3
    assert "NoNewPrivs:\\t1" in status
    assert back == "no way back"


def test_an_unknown_user_is_an_error() -> None:
    with pytest.raises(KeyError, match="nobody-at-all"):
        service.drop("nobody-at-all")


def test_a_socket_for_a_group(tmp_path: Path) -> None:
    service.listen_unix(tmp_path / "s", group="nogroup").close()
    stat = (tmp_path / "s").stat()
    assert (stat.st_mode & 0o777, stat.st_uid, stat.st_gid) == (0o660, 0, grp.getgrnam("nogroup").gr_gid)
    assert os.geteuid() == 0
