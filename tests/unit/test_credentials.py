"""Credentials: the type that cannot be printed, the sources, what is taken out of a request and put in."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
from pathlib import Path

import msgspec
import pytest

from agentmon import wire
from agentmon.credentials import sources
from agentmon.credentials.secret import MAX_BYTES, Secret
from agentmon.credentials.sources import Store
from agentmon.errors import AgentmonError
from agentmon.proxy import inject

VALUE = "sk-planted-4711"


# ── the type ──


def test_nothing_that_prints_or_writes_a_secret_shows_it() -> None:
    secret = Secret(VALUE)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", f"{secret!r}", f"{[secret]}", "%s" % secret]  # noqa: UP031
    assert all(VALUE not in text and "Secret(…)" in text for text in shown)
    for write in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode, msgspec.to_builtins, vars):
        with pytest.raises(TypeError) as caught:
            write(secret)
        assert VALUE not in str(caught.value)
    assert secret.reveal() == VALUE


def test_secrets_are_compared_and_never_hashed() -> None:
    assert Secret("a") == Secret("a") and Secret("a") != Secret("b") and Secret("a") != "a"
    with pytest.raises(TypeError):
        hash(Secret("a"))


@pytest.mark.parametrize("value", ["", " sk-1", "sk-1\r\nx-evil: 1", "sk-1\n", "ä", "sk-1\0", "a" * (MAX_BYTES + 1)])
def test_what_could_not_be_a_header_is_refused_without_being_quoted(value: str) -> None:
    with pytest.raises(AgentmonError) as caught:
        Secret(value)
    assert caught.value.hint and (len(value) < 2 or value.strip() not in caught.value.message)


def test_a_message_with_values_shows_their_names_only() -> None:
    message = wire.SetCredentials(1, 16, "run-1", {"anthropic": VALUE})
    assert VALUE not in repr(message) and "anthropic" in f"{message}"


# ── sources ──


@pytest.fixture
def store(tmp_path: Path) -> Store:
    tmp_path.chmod(0o700)
    commands = {"told": (sys.executable, "-c", f"print('{VALUE}')")}
    return Store(commands, tmp_path, owner=os.getuid())


def put(store: Store, name: str, text: str = VALUE, mode: int = 0o600) -> Path:
    file = store.directory / name
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_is_read_without_its_line_end(store: Store, end: str) -> None:
    put(store, "k", VALUE + end)
    assert store.read("k").reveal() == VALUE


def test_a_command_prints_one_and_sees_no_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.read("told").reveal() == VALUE and store.signature("told") == ()
    monkeypatch.setenv("PLANTED", VALUE)
    shows = Store({"env": (sys.executable, "-c", "import os; print(os.environ.get('PLANTED', 'nothing'))")})
    assert shows.read("env").reveal() == "nothing"


def test_the_systemd_directory_comes_after_the_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd = tmp_path / "systemd"
    systemd.mkdir(mode=0o700)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(systemd))
    assert sources.store({}).systemd == systemd
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "not/absolute")
    assert sources.store({}).systemd is None
    both = Store({}, tmp_path, systemd, owner=os.getuid())
    put(Store(directory=systemd), "k", "from-systemd", 0o400)
    assert both.read("k").reveal() == "from-systemd"
    put(both, "k", "from-file")
    assert both.read("k").reveal() == "from-file"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(store: Store, mode: int) -> None:
    file = put(store, "k", mode=mode)
    with pytest.raises(AgentmonError, match=f"mode {mode:04o}") as caught:
        store.read("k")
    assert caught.value.hint == f"chmod 600 {file}"


def refused(store: Store, name: str) -> AgentmonError:
    with pytest.raises(AgentmonError) as caught:
        store.read(name)
    assert f"{name!r}" in caught.value.message and caught.value.hint
    assert VALUE not in caught.value.message + caught.value.hint
    return caught.value


def test_what_cannot_be_trusted_is_refused_and_says_why(store: Store, tmp_path: Path) -> None:
    assert "is not on this host" in refused(store, "gone").message
    put(store, "k")
    (tmp_path / "link").symlink_to(tmp_path / "k")
    assert "link" in refused(store, "link").message
    (tmp_path / "dir").mkdir()
    assert "no regular file" in refused(store, "dir").message
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "no regular file" in refused(store, "pipe").message
    put(store, "two", f"{VALUE}\nsecond line\n")
    assert "one line" in refused(store, "two").message
    put(store, "none", "")
    put(store, "long", "a" * MAX_BYTES + "bc")
    assert "has 0" in refused(store, "none").message and "characters" in refused(store, "long").message
    foreign = Store({}, tmp_path, owner=os.getuid() + 1)
    assert "belongs to uid" in refused(foreign, "k").message
    tmp_path.chmod(0o777)
    assert "written by others" in refused(store, "k").message


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((sys.executable, "-c", f"print('{VALUE}'); raise SystemExit('{VALUE}')"), "ended with status 1"),
        ((sys.executable, "-c", "import time; time.sleep(60)"), "did not end"),
        (("/nonexistent/command",), "No such file"),
        ((sys.executable, "-c", f"print('{VALUE}\\n{VALUE}')"), "one line"),
    ],
)
def test_a_command_that_fails_is_told_without_its_output(argv: tuple[str, ...], said: str) -> None:
    assert said in refused(Store({"k": argv}, timeout_s=1.0), "k").message


def test_a_signature_changes_with_the_file(store: Store) -> None:
    seen = {store.signature("k")}
    put(store, "k")
    seen.add(store.signature("k"))
    new = put(store, "new", "x")
    new.replace(store.directory / "k")
    seen.add(store.signature("k"))
    assert len(seen) == 3


# ── requests ──

ROUTE = wire.Route("h.example", auth_header="x-team-key", auth_credential="k")


def test_own_headers_are_found_however_they_are_written() -> None:
    names = ["Authorization", "X_API_KEY", "x-goog-api-key", "Cookie", "X-Team-Key", "x-other", "content-type"]
    assert inject.own_headers(names, ROUTE) == names[:5]
    assert inject.own_headers(["x-team-key"], wire.Route("h.example", auth_none=True)) == []
    assert [inject.strips(r) for r in (None, wire.Route("h"), wire.Route("h", auth_none=True), ROUTE)] == [
        False, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "left"),
    [
        ("/a", "/a"),
        ("/a?x=1&y=%20", "/a?x=1&y=%20"),
        ("/a?key=s", "/a"),
        ("/a?x=1&key=s&y=2", "/a?x=1&y=2"),
        ("/a?key=s&y=2;API_KEY=s;z", "/a?y=2;z"),
        ("/a?k%65y=s&%2561pi-key=s&access_token", "/a"),
        ("/a?key%3Ds&monkey=1", "/a?monkey=1"),
        ("/a?&&x", "/a?&&x"),
    ],
)
def test_query_keys_are_taken_out_and_the_rest_stays(target: str, left: str) -> None:
    assert inject.without_keys(target) == left


@pytest.mark.parametrize(
    ("header", "value", "sent"),
    [
        ("authorization", "abc", "Bearer abc"),
        ("authorization", "Basic YQ==", "Basic YQ=="),
        ("x-api-key", "abc", "abc"),
    ],
)
def test_a_bare_token_is_a_bearer_token(header: str, value: str, sent: str) -> None:
    assert inject.header_value(wire.Route("h", auth_header=header, auth_credential="k"), Secret(value)) == sent
