"""`agentmon drift` as a nightly job runs it, against a stand-in whose answers change: every kind of drift is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentmon.drift import calls

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
KEY = "sk-drift-planted-0123456789"


@dataclass
class Place:
    """A host of its own with a key and a baseline, and the provider beside it."""

    directory: Path
    port: int
    env: dict[str, str]

    def drift(self, *words: str, ca: str = "ca.pem") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "agentmon.cli", "drift", "--baseline", str(self.directory / "baselines"),
             "--connect", f"127.0.0.1:{self.port}", "--ca", str(self.directory / ca), *words],
            cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr and KEY not in done.stdout + done.stderr
        return done

    def differences(self, change: str, provider: str = "claude") -> tuple[int, list[dict[str, Any]]]:
        (self.directory / "change").write_text(change)
        try:
            done = self.drift("--provider", provider, "--json", ca="both.pem")
        finally:
            (self.directory / "change").write_text("")
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["differences"]

    def asked(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.directory / "log.json").read_text())
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("drift")
    keys = directory / "root/etc/agentmon/credentials"
    keys.mkdir(parents=True)
    for name in ("anthropic", "openai"):
        (keys / name).write_text(KEY + "\n")
        (keys / name).chmod(0o600)
    server = subprocess.Popen([sys.executable, "-m", "tests.support.drift_provider", str(directory)], cwd=ROOT,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        made = Place(directory, port, os.environ | {"AGENTMON_ROOT": str(directory / "root"), "PYTHONPATH": str(ROOT)})
        done = made.drift("--record", ca="both.pem")
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        server.communicate(timeout=20)


@pytest.mark.parametrize("provider", calls.PROVIDERS)
def test_the_same_provider_has_not_drifted(place: Place, provider: str) -> None:
    before = len(place.asked())
    assert place.differences("", provider) == (0, [])
    target = calls.target(provider)
    assert target is not None and len(place.asked()) - before == len(target.calls)
    said = place.drift("--provider", provider, ca="both.pem")
    assert f"at most {target.most_tokens} tokens" in said.stderr and "nothing differs" in said.stdout


KINDS = [  # (change, weight of the worst, a part of where it is told)
    ("issuer", "changed", "TLS issuers"),
    ("protocol", "changed", "ALPN"),
    ("field added", "changed", "region"),
    ("field gone", "changed", "stop_sequence"),
    ("field retyped", "changed", "stop_sequence"),
    ("usage field gone", "breaks", "usage.output_tokens"),
    ("usage field retyped", "breaks", "usage.input_tokens"),
    ("input counted otherwise", "breaks", "input is counted as in messages"),
    ("event gone", "changed", "stream: ping"),
    ("usage event gone", "breaks", "stream: message_delta"),
    ("event added", "changed", "stream: mood"),
    ("events in another order", "changed", "stream: order"),
    ("header gone", "changed", "header anthropic-ratelimit-tokens-remaining"),
    ("endpoint gone", "breaks", "count"),
]


@pytest.mark.parametrize(("change", "weight", "where"), KINDS, ids=[k[0] for k in KINDS])
def test_each_kind_of_drift(place: Place, change: str, weight: str, where: str) -> None:
    status, found = place.differences(change)
    assert status == 1 and found
    assert found[0]["weight"] == weight, found
    assert any(where in d["where"] for d in found), found


def test_another_version_of_the_sdk_is_noted_and_is_no_drift(place: Place) -> None:
    kept = place.directory / "baselines/claude.json"
    text = kept.read_text()
    kept.write_text(text.replace('"sdk": "', '"sdk": "0.0.'))
    try:
        status, found = place.differences("")
        assert status == 0 and [d["where"] for d in found] == ["SDK"]
    finally:
        kept.write_text(text)


def test_only_shapes_are_kept_and_bodies_where_asked_for(place: Place) -> None:
    text = (place.directory / "baselines/claude.json").read_text()
    assert "word0" not in text and KEY not in text and '"usage.input_tokens"' in text
    saved = place.directory / "saved"
    assert place.drift("--provider", "claude", "--save", str(saved), ca="both.pem").returncode == 0
    assert {p.name for p in saved.iterdir()} == {
        "claude-messages-200.json", "claude-stream-200.sse", "claude-count-200.json", "claude-error-400.json",
    }  # fmt: skip
    assert b"message_start" in (saved / "claude-stream-200.sse").read_bytes()


def test_what_goes_wrong_says_what_to_do(place: Place) -> None:
    def wrong(status: int, *words: str, said: str, change: str = "", ca: str = "ca.pem") -> None:
        (place.directory / "change").write_text(change)
        done = place.drift(*words, ca=ca)
        (place.directory / "change").write_text("")
        assert done.returncode == status and said in done.stderr and "hint: " in done.stderr, done.stderr

    wrong(2, "--provider", "nobody", said="no check is written for the provider 'nobody'")
    wrong(2, "--provider", "claude", "--credential", "none", said="credential 'none' is not on this host")
    wrong(2, "--provider", "claude", "--baseline", "/nonexistent", said="--record makes it")
    wrong(1, "--provider", "claude", said="is not reached", change="issuer")  # a certificate nobody vouches for
    wrong(1, "--provider", "claude", said="no whole answer", change="hangs up")
    wrong(1, "--provider", "claude", said="look at it with --save", change="no JSON")
    wrong(4, "--provider", "claude", said="holds no certificates", ca="change")
    bad = place.directory / "root/etc/agentmon/credentials/bad"
    bad.write_text("invalid-key\n")
    bad.chmod(0o600)
    wrong(3, "--provider", "claude", "--credential", "bad", said="refuses the key (401)")
    kept = place.directory / "old"
    kept.mkdir()
    (kept / "claude.json").write_text("{}")
    wrong(2, "--provider", "claude", "--baseline", str(kept), said="no baseline of this version")
