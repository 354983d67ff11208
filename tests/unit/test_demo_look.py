"""What is not there is not seen: every fact of a bottle that does not run is False."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentmon.cli.demo import look


def test_a_bottle_that_does_not_run_has_no_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look.paths, "SVC", tmp_path)
    row = {"slot": 64999, "addr4": "203.0.113.99", "addr6": "2001:db8::99", "phase": "starting"}
    assert look.start(row) == dict.fromkeys(look.NAMES, False)


def test_services_are_seen_only_while_all_of_them_live(tmp_path: Path) -> None:
    assert look.services(tmp_path) is False
    (tmp_path / "relay.pid").write_text(str(os.getpid()))
    (tmp_path / "ledger.pid").write_text(f"{os.getpid()}\n")
    assert look.services(tmp_path) == "ledger relay"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "proxy.pid").write_text(str(gone.pid))
    assert look.services(tmp_path) is False
