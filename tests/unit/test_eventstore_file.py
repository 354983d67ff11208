"""Events on disk: filters, continuing, the size cap, the age limit, a damaged file."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from agentmon.events import Event
from agentmon.ledger.events_store import EventStore, EventsTrouble, read

DAY_NS = 86400 * 10**9
NOW = 1_780_000_000 * 10**9


def event(n: int, *, kind: str = "connect", bottle: str = "b1", size: int = 0) -> Event:
    return Event(kind, "refused", bottle, pid=n, ts_ns=NOW + n, detail={"pad": "x" * size} if size else {})


def test_what_is_appended_is_read_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "events.db")
    store = EventStore(path)
    store.append([event(n) for n in range(2500)])
    store.append([])
    found = list(read(path))
    assert [e for _, e in found] == [event(n) for n in range(2500)]
    last = found[-1][0]
    assert list(read(path, after=last)) == []
    store.append([event(3000)])
    assert [e.pid for _, e in read(path, after=last)] == [3000]
    store.close()
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_filters(tmp_path: Path) -> None:
    path = str(tmp_path / "events.db")
    store = EventStore(path)
    store.append([event(1), event(2, kind="dns"), event(3, bottle="b2"), event(4, kind="dns", bottle="b2")])
    store.close()
    assert [e.pid for _, e in read(path, bottle="b2")] == [3, 4]
    assert [e.pid for _, e in read(path, kind="dns")] == [2, 4]
    assert [e.pid for _, e in read(path, kind="dns", bottle="b1")] == [2]
    assert [e.pid for _, e in read(path, since_ns=NOW + 3)] == [3, 4]
    assert [e.pid for _, e in read(path, limit=2)] == [1, 2]


def test_a_limit_over_several_chunks(tmp_path: Path) -> None:
    path = str(tmp_path / "events.db")
    store = EventStore(path)
    store.append([event(n) for n in range(2500)])
    store.close()
    assert len(list(read(path, limit=2000))) == 2000
    assert len(list(read(path, limit=2001))) == 2001


def test_the_cap_drops_the_oldest_and_the_file_stays_small(tmp_path: Path) -> None:
    path = str(tmp_path / "events.db")
    cap = 1 << 20
    store = EventStore(path, max_bytes=cap)
    for batch in range(60):
        store.append([event(batch * 100 + n, size=1000) for n in range(100)])
    found = [e.pid for _, e in read(path)]
    assert found == list(range(6000 - len(found), 6000)) and len(found) > 300
    assert store.trimmed == 6000 - len(found)
    store.close()
    assert Path(path).stat().st_size <= cap * 1.3


def test_one_batch_over_the_cap_keeps_its_end(tmp_path: Path) -> None:
    path = str(tmp_path / "events.db")
    store = EventStore(path, max_bytes=1)
    store.append([event(n, size=1000) for n in range(3000)])
    assert next(reversed([e.pid for _, e in read(path)])) == 2999
    store.append([event(1, size=3 << 20)])
    store.close()


def test_the_age_limit(tmp_path: Path) -> None:
    path = str(tmp_path / "events.db")
    store = EventStore(path, max_age_s=86400)
    store.append([event(0), event(DAY_NS // 2)])
    store.append([event(DAY_NS + 1)])
    assert [e.pid for _, e in read(path)] == [DAY_NS // 2, DAY_NS + 1]
    assert store.trimmed == 1
    store.close()


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    path.write_bytes(b"nonsense " * 1000)
    store = EventStore(str(path))
    assert store.replaced == f"{path}.damaged" and Path(store.replaced).exists()
    store.append([event(1)])
    assert len(list(read(str(path)))) == 1
    store.close()


def test_trouble(tmp_path: Path) -> None:
    with pytest.raises(EventsTrouble, match="no events to read"):
        list(read(str(tmp_path / "none.db")))
    with pytest.raises(EventsTrouble):
        EventStore(str(tmp_path / "none" / "events.db"))
    (tmp_path / "text").write_bytes(b"nonsense " * 1000)
    with pytest.raises(EventsTrouble, match="not a database"):
        list(read(str(tmp_path / "text")))
    path = str(tmp_path / "events.db")
    store = EventStore(path)
    other = apsw.Connection(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(EventsTrouble, match="locked"):
        store.append([event(1)])
    other.close()
    store._db.pragma("max_page_count", 1)
    with pytest.raises(EventsTrouble, match="disk is full"):
        store.append([event(n, size=1000) for n in range(100)])
    store._db.pragma("max_page_count", 1 << 20)
    store.append([event(1)])
    assert [e.pid for _, e in read(path)] == [1]
    store.close()
