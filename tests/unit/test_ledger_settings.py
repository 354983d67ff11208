"""`ledger: postgresql://…` from the settings to the ledger's process: what is refused, what it is told, who reads."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from agentmon import paths
from agentmon.daemon import shared_ledger, specs
from agentmon.errors import BadInput, DaemonUnreachable, HostLacks
from agentmon.ledger import opening
from agentmon.ledger.asking import AskingReader
from agentmon.policy.settings import Settings, parse
from tests.support.ledger_rig import LedgerProcess, database
from tests.support.postgres_rig import Server

REMOTE = "postgresql://agentmon@db.example:6543/books?sslmode=verify-full"


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host's resolver says."""
    shared_ledger._address.cache_clear()
    known = {"db.example": "203.0.113.9", "six.example": "2001:db8::9", "localhost": "127.0.0.1"}

    def look_up(host: str, port: int, **_named: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:secret@h/d", "a password stands in the URL"),
        ("postgresql://u:@h/d", "a password stands in the URL"),
        ("postgres://h/d?password=secret", "a password stands in the URL"),
        ("postgresql://h:secret/d", "no URL"),
        ("postgresql://h/d?port=secret", "no URL"),
        ("postgresql://h/d?secret", "no URL"),
    ],
)
def test_a_url_that_is_refused_is_not_quoted(url: str, said: str) -> None:
    with pytest.raises(BadInput, match=rf"s\.yml:1: ledger: .*{said}") as caught:
        parse(f"ledger: {url}\n", "s.yml")
    assert caught.value.hint and "u:secret" not in caught.value.message + caught.value.hint


def test_a_remote_database_is_looked_up_and_let_through() -> None:
    settings = parse(f"ledger: {REMOTE}\ncredentials: {{ledger: {{command: [/bin/echo, x]}}}}\n", "s.yml")
    found = shared_ledger.config(settings)["database"]
    assert (found["url"], found["hostaddr"], found["command"]) == (REMOTE, "203.0.113.9", ["/bin/echo", "x"])
    json.dumps(found)
    assert [(str(a), port) for a, port in specs.host_spec(settings).service_dials] == [("203.0.113.9", 6543)]
    ledger = next(spec for spec in specs.services(settings, settings.pool) if spec.name == "ledger")
    assert ledger.config["database"] == found


def test_a_socket_and_a_file_need_no_way() -> None:
    for url in ("postgresql:///books?host=/run/postgresql", "postgresql://u@/books", "postgresql://%2Frun%2Fpg/d"):
        settings = parse(f"ledger: {url}\n", "s.yml")
        assert shared_ledger.config(settings)["database"]["hostaddr"] == "", url
        assert specs.host_spec(settings).service_dials == ()
    assert shared_ledger.config(Settings()) == {}
    assert "database" not in next(iter(specs.services(Settings(), Settings().pool))).config


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("postgresql://none.example/d", HostLacks, "has no address"),
        ("postgresql://localhost/d", BadInput, "not reached from the ledger's namespace"),
        ("postgresql://a.example,b.example/d", BadInput, "several hosts"),
        ("postgresql:///d?host=a.example,b.example", BadInput, "several hosts"),
    ],
)
def test_what_cannot_be_reached_is_said_at_the_start(url: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        shared_ledger.config(parse(f"ledger: {url}\n", "s.yml"))
    assert getattr(caught.value, "hint", "")


def test_a_credential_that_has_changed_replaces_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse(f"ledger: {REMOTE}\n", "s.yml")
    without = shared_ledger.config(settings)
    monkeypatch.setattr(
        shared_ledger.sources, "store", lambda commands: shared_ledger.sources.Store(commands, directory=tmp_path)
    )
    (tmp_path / "ledger").write_text("one")
    first = shared_ledger.config(settings)
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").rename(tmp_path / "ledger")
    assert without != first != shared_ledger.config(settings)
    assert "one" not in json.dumps(first)


def test_commands_ask_whom_the_daemon_has_started(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "SVC", tmp_path)
    monkeypatch.setattr(paths, "SETTINGS", tmp_path / "settings.yml")
    (tmp_path / "settings.yml").write_text(f"ledger: {REMOTE}\n")
    with pytest.raises(DaemonUnreachable, match="no ledger runs here") as caught:
        opening.opened()
    assert caught.value.hint == "agentmon daemon"
    process = LedgerProcess(tmp_path, **database(postgres.new())).start()
    try:
        with opening.opened() as reader:
            assert isinstance(reader, AskingReader)
            assert reader.usage() == []
            with pytest.raises(Exception, match="read-only"):
                reader.dicts("DELETE FROM totals RETURNING *", ())
    finally:
        process.close()
