"""Locked, read-only, damaged, replaced, foreign, of the future: what callers hear, what stderr says, and recovery."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from agentmon import errors, service, wire
from agentmon.channel import Channel
from agentmon.ledger import migrations
from agentmon.ledger.client import LedgerClient, LedgerUnavailable
from agentmon.ledger.reader import Reader
from agentmon.ledger.server import Roles, Server
from agentmon.ledger.state import Now, Owner
from agentmon.ledger.store import LedgerTrouble, Store
from tests.support.ledger_rig import LedgerProcess, Peer, ledger, uid_for_drop, until, usage


@pytest.fixture
def process(tmp_path: Path) -> Iterator[LedgerProcess]:
    with ledger(tmp_path) as process:
        yield process


def opened(process: LedgerProcess) -> Peer:
    daemon = Peer(process.socket)
    assert isinstance(daemon.ask(wire.OpenRun, 1, "b1", "run1", "", (), {}), wire.Done)
    return daemon


def reserve(daemon: Peer, key: str) -> object:
    return daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, key)


def test_locked_by_another_process(process: LedgerProcess) -> None:
    daemon = opened(process)
    hold = daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, "a")
    unsent = daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, "unsent")
    other = apsw.Connection(process.path)
    other.execute("BEGIN IMMEDIATE")
    refused = daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, "b")
    assert (refused.error, "locked" in refused.message) == ("unavailable", True)

    async def patient() -> wire.Settled:
        client = LedgerClient(process.socket)
        with pytest.raises(LedgerUnavailable, match="locked") as caught:
            await client.reserve(1, "claude", "m", input=1, output=1, key="c")
        assert caught.value.hint
        brief = LedgerClient(process.socket, timeout_s=0.3)
        releasing = asyncio.ensure_future(brief.release(unsent.hold))
        given_up, _ = await asyncio.wait([releasing], timeout=1.0)  # it is as patient as a settlement
        assert not given_up
        settling = asyncio.ensure_future(client.settle(hold.hold, usage(5, request_id="msg")))
        await asyncio.sleep(0)
        await asyncio.to_thread(other.close)
        await releasing
        settled = await settling
        await client.close()
        await brief.close()
        return settled

    assert asyncio.run(asyncio.wait_for(patient(), 30)).duplicate is False
    assert isinstance(reserve(daemon, "b"), wire.Granted)
    daemon.close()
    assert process.said().count("error: ledger: ") == 1 and "recording again" in process.said()


def test_read_only_file_and_directory() -> None:
    """As a user whom permission bits bind; root drops to one."""
    directory = Path(tempfile.mkdtemp(prefix="agentmon-ledger-"))
    directory.chmod(0o755)
    user = uid_for_drop()
    process = LedgerProcess(directory, user=user)
    place = Path(process.path).parent
    try:
        if user:
            os.chown(place, pwd.getpwnam(user).pw_uid, -1)
        process.start()
        daemon = opened(process)
        for path in place.iterdir():
            path.chmod(0o444)
        place.chmod(0o555)
        process.kill()
        process.start()
        daemon.close()
        daemon = Peer(process.socket)
        refused = daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, "b")
        assert (refused.error, "read-only" in refused.message) == ("unavailable", True), refused
        assert refused.hint and refused.message in process.said()
        place.chmod(0o755)
        for path in place.iterdir():
            path.chmod(0o644)
        until(lambda: isinstance(reserve(daemon, "c"), wire.Granted), f"recovery: {process.said()}")
        daemon.close()
    finally:
        process.close()
        shutil.rmtree(directory)


def test_a_damaged_page_is_found_at_the_start(process: LedgerProcess) -> None:
    opened(process).close()
    assert process.stop() == 0
    with open(process.path, "r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(6 * 4096))
    with Reader(process.path) as reader:
        assert reader.check()
    process.start()
    daemon = Peer(process.socket)
    refused = daemon.ask(wire.Totals, 1)
    assert (refused.error, "damaged" in refused.message) == ("unavailable", True), refused
    daemon.close()
    with open(process.path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4 * 4096))
    with pytest.raises(LedgerTrouble, match="damaged"):
        Reader(process.path)


def test_a_file_that_is_deleted_under_the_ledger(process: LedgerProcess) -> None:
    daemon = opened(process)
    os.rename(process.path, process.path + ".gone")
    refused = daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, "a")
    assert (refused.error, "deleted or replaced" in refused.message) == ("unavailable", True)
    os.rename(process.path + ".gone", process.path)
    until(lambda: isinstance(reserve(daemon, "a"), wire.Granted), "the original is taken again")
    daemon.close()


@pytest.mark.parametrize("content", [b"this is no database, it is a text\n" * 200])
def test_not_a_database(tmp_path: Path, content: bytes) -> None:
    process = LedgerProcess(tmp_path)
    Path(process.path).write_bytes(content)
    try:
        process.start()
        daemon = Peer(process.socket)
        refused = daemon.ask(wire.Totals, 1)
        assert "not a database" in refused.message
        daemon.close()
    finally:
        process.close()
    assert Path(process.path).read_bytes() == content


def _exit_of(process: LedgerProcess) -> int:
    process.start(ready=False)
    assert process.process is not None
    return process.process.wait(20)


def test_the_database_of_something_else(tmp_path: Path) -> None:
    process = LedgerProcess(tmp_path)
    apsw.Connection(process.path).execute("CREATE TABLE t (x)")
    assert _exit_of(process) == 1
    assert "is not a ledger of agentmon" in process.said() and "hint: " in process.said()


def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    process = LedgerProcess(tmp_path)
    store = Store(process.path)
    store.open()
    store.close()
    db = apsw.Connection(process.path)
    db.execute("INSERT INTO migrations VALUES (99, 'from the future', 0)")
    db.close()
    assert _exit_of(process) == 1
    assert "schema version 99" in process.said() and "hint: install" in process.said()
    with pytest.raises(migrations.SchemaTooNew):
        Reader(process.path)


def test_migrations_are_one_transaction_with_their_record(tmp_path: Path) -> None:
    """From nothing to now, from now to the next; a migration that fails leaves version and schema as they were."""
    db = apsw.Connection(str(tmp_path / "l.db"))
    now = migrations.MIGRATIONS[-1].version
    assert migrations.version_of(db) == 0
    assert migrations.migrate(db) == now

    def breaks(db: apsw.Connection) -> None:
        db.execute("CREATE TABLE half (x)")
        db.execute("CREATE TABLE half (x)")

    with pytest.raises(apsw.SQLError):
        migrations.migrate(db, [*migrations.MIGRATIONS, migrations.Migration(now + 1, "breaks", breaks)])
    assert migrations.version_of(db) == now and not db.in_transaction
    assert not db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").get
    works = migrations.Migration(now + 1, "works", lambda db: db.execute("CREATE TABLE whole (x)"))
    assert migrations.migrate(db, [*migrations.MIGRATIONS, works]) == now + 1
    known = [(m.version, m.what) for m in migrations.MIGRATIONS]
    assert db.execute("SELECT version, what FROM migrations").fetchall() == [*known, (now + 1, "works")]
    db.close()


def test_a_writer_that_fails_unforeseen_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers lose their connection at once instead of waiting for a thread that is gone."""
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))

    def alter() -> None:
        raise RuntimeError("unforeseen")

    async def body() -> None:
        sock = service.listen_unix(tmp_path / "l.sock")
        store = Store(str(tmp_path / "l.db"), alter=alter)
        server = Server(store, sock, Roles(frozenset({os.geteuid()}), frozenset()))
        await server.start()
        channel = await Channel.connect(str(tmp_path / "l.sock"))
        with pytest.raises(errors.AgentmonError, match="writer has failed"):
            await asyncio.wait_for(server.failed(), 20)
        await server.stop()
        server.worker.join(20)
        channel.close()

    asyncio.run(body())
    assert seen == [RuntimeError]


def test_a_commit_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """The disk fails after the last write of a batch: the caller hears it, memory and file are as before."""
    failing: list[apsw.Error] = []

    def alter() -> None:
        if failing:
            raise failing.pop()

    store, owner, now = Store(str(tmp_path / "l.db"), alter=alter), Owner("b", 1, 1), Now(10**18, 1)
    store.run([(wire.OpenRun(1, 1, "b1", "run1", "", (), {}), owner)], now)
    for error, word in (
        (apsw.FullError("full"), "full"),
        (apsw.IOError("io"), "disk failed"),
        (apsw.Error("odd"), "failed"),
    ):
        failing.append(error)
        with pytest.raises(LedgerTrouble, match=word):
            store.run([(wire.Reserve(1, 1, "claude", "m", 1, 1, word), owner)], now)
        (lines,) = store.run([(wire.Totals(1, 1), owner)], now).answers
        assert lines == wire.Done(1, [])
    assert store.owners() == set()
    failing[:] = [apsw.FullError("full"), apsw.ConstraintError("odd")]  # the batch fails, then its single questions
    with pytest.raises(LedgerTrouble, match="full"):
        store.run([(wire.Totals(1, 1), owner)], now)
    store.close()
