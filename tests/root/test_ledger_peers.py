"""What needs root: peers of other users, a ledger that has dropped its privileges, a disk that is really full."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from agentmon.ledger.reader import Reader
from tests.support.ledger_rig import ROOT, LedgerProcess, Peer, budget, scope, until, usage

pytestmark = pytest.mark.root

LEDGER_USER, PROXY_USER, STRANGER = "daemon", "nobody", "bin"  # users that every Debian has


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="agentmon-ledger-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def process(directory: Path) -> Iterator[LedgerProcess]:
    process = LedgerProcess(directory, user=LEDGER_USER, proxy_user=PROXY_USER)
    os.chown(directory / "db", pwd.getpwnam(LEDGER_USER).pw_uid, -1)
    process.start()
    os.chmod(process.socket, 0o666)  # so that the ledger, not the file's mode, refuses
    yield process
    process.close()


def as_user(name: str, process: LedgerProcess, body: str) -> tuple[str, str]:
    """stdout and stderr of `body`, run with `peer` connected as another user; it imports first, as a service does."""
    code = f"""
import os, sys
from agentmon import wire
from tests.support.ledger_rig import Peer, usage
uid = {pwd.getpwnam(name).pw_uid}
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
peer = Peer({process.socket!r})
{body}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    return done.stdout, done.stderr


def test_the_ledger_runs_as_its_own_user_without_capabilities(process: LedgerProcess) -> None:
    assert process.process is not None
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == [str(pwd.getpwnam(LEDGER_USER).pw_uid)] * 4
    assert status["CapEff"].strip("0") == status["CapPrm"].strip("0") == ""
    assert status["NoNewPrivs"] == "1"
    assert os.stat(process.path).st_mode & 0o777 == 0o600


def test_a_proxy_may_charge_and_nothing_else(process: LedgerProcess) -> None:
    daemon = Peer(process.socket)
    daemon.ask(wire.OpenRun, 1, "b1", "run1", "", (scope("bottle", "b1", budget("claude", 100)),), {})
    out, err = as_user(
        PROXY_USER,
        process,
        """
hold = peer.ask(wire.Reserve, 1, "claude", "m", 10, 10, "k")
assert peer.ask(wire.Progress, hold.hold, usage(10, 1)).value is False
assert not peer.ask(wire.Settle, hold.hold, usage(10, 200, "msg")).duplicate
assert peer.ask(wire.Release, hold.hold).id
assert peer.ask(wire.Totals, 1).value[0]["used"] == 210
b = wire.BudgetDef("claude", 10**9)
for kind, *fields in (
    (wire.OpenRun, 2, "x", "y", "", (), {}), (wire.CloseRun, 1, "run1"), (wire.SetBudget, "bottle", "b1", "", b, 0),
    (wire.Enforced, 1, "b1", "run1", "cutoff", "budget", "x", 1, "y"), (wire.Audit, 0, "a", "b"),
):
    assert peer.ask(kind, *fields).error == "Refused", kind
assert peer.unasked == [], peer.unasked
print("as it should be")
""",
    )
    assert out == "as it should be\n", err
    daemon.ask(wire.Totals, 1)
    assert [c.threshold for c in daemon.unasked] == [100]
    daemon.close()


def test_a_stranger_hears_nothing(process: LedgerProcess) -> None:
    _, err = as_user(STRANGER, process, "")
    assert "ConnectionResetError" in err


def test_a_reader_as_root_leaves_nothing_the_ledger_cannot_open(process: LedgerProcess) -> None:
    """Reading after the ledger has gone creates SQLite's side files: they must belong to the ledger."""
    assert process.stop() == 0
    with Reader(process.path) as reader:
        assert reader.budgets() == []
        owners = {path.stat().st_uid for path in Path(process.path).parent.iterdir()}
    assert owners == {pwd.getpwnam(LEDGER_USER).pw_uid}
    process.start()
    daemon = Peer(process.socket)
    assert isinstance(daemon.ask(wire.OpenRun, 1, "b1", "run1", "", (), {}), wire.Done)
    daemon.close()


def test_a_full_disk_refuses_loses_nothing_and_recovers(directory: Path) -> None:
    disk = directory / "db"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "agentmon-test", str(disk)], check=True)
    process = LedgerProcess(directory)
    try:
        process.start()
        daemon = Peer(process.socket)
        daemon.ask(wire.OpenRun, 1, "b1", "run1", "", (), {})
        held = daemon.ask(wire.Reserve, 1, "claude", "m", 5, 5, "held").hold
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"\0" * 4096)
        recorded = 0
        answer: Any = None
        for n in range(200):
            answer = daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, f"k{n}")
            if isinstance(answer, wire.Failed):
                break
            answer = daemon.ask(wire.Settle, answer.hold, usage(1, 0, f"msg{n}", raw=b"x" * 30_000))
            if isinstance(answer, wire.Failed):
                break
            recorded += 1
        assert (answer.error, "disk is full" in answer.message) == ("unavailable", True), answer
        assert daemon.ask(wire.Settle, held, usage(7, 0, "held")).error == "unavailable"
        ballast.unlink()
        settled = until(
            lambda: isinstance(answer := daemon.ask(wire.Settle, held, usage(7, 0, "held")), wire.Settled) and answer,
            "recovery",
        )
        assert not settled.duplicate
        daemon.close()
        assert process.stop() == 0
        assert "disk is full" in process.said() and "recording again" in process.said()
        with Reader(process.path) as reader:
            assert reader.check() == []
            assert len(reader.rows()) == recorded + 1
    finally:
        process.close()
        subprocess.run(["umount", str(disk)], check=True)
