"""The process around a proxy worker: starting, dropping root, faults in its hooks, its log, no ledger."""

from __future__ import annotations

import contextlib
import json
import pwd
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from agentmon import trust
from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import CLAUDE, OPENAI, ask, begin, last_row, message, read_all
from tests.support.proxy_upstream import reply

pytestmark = pytest.mark.root


def test_an_exception_in_a_hook_closes_the_flow_and_is_reported(tmp_path: Path) -> None:
    prelude = (
        "import agentmon.proxy.edge as e\n"
        "def boom(self, connection, flow): raise RuntimeError('injected')\n"
        "e.Hooks.on_responseheaders = boom"
    )
    rig = proxy_rig.start(tmp_path, prelude=prelude)
    try:
        rig.bottle()
        rig.upstream.script = reply(200, message())
        sock = begin(rig, ask())
        assert b"usage" not in read_all(sock)
        event = rig.wait_event(kind="request", reason="hook responseheaders")
        assert "injected" in event["detail"]["error"]
        assert last_row(rig, 0)[6:] == ("estimate", 0)
        assert rig.nothing_held()
    finally:
        rig.stop()


def test_a_worker_drops_root_and_still_does_all_its_work(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to other users
        directory = Path(name)
        directory.chmod(0o755)
        rig = proxy_rig.start(directory, user="nobody")
        try:
            status = Path(f"/proc/{rig.proxy.pid}/status").read_text()
            assert f"Uid:\t{pwd.getpwnam('nobody').pw_uid}\t" in status and "CapEff:\t0000000000000000" in status
            assert "NoNewPrivs:\t1" in status
            rig.bottle()
            rig.upstream.script = reply(200, message())
            assert rig.request(CLAUDE, "/v1/messages", ask()).status == 200
            assert len(rig.rows(1)) == 1
            assert stat.S_IMODE((directory / "ca" / trust.KEY_FILE).stat().st_mode) == 0o600
        finally:
            rig.stop()


def test_a_first_request_that_does_not_come_in_time_is_closed(tmp_path: Path) -> None:
    rig = proxy_rig.start(tmp_path, ledger=False, prelude="import agentmon.proxy.edge_connection as e\ne.HEAD_S = 0.2")
    try:
        rig.bottle()
        sock = rig.connect(None, 80)
        sock.sendall(b"GET / HTTP/1.1\r\n")
        assert sock.recv(10) == b""
        sock.close()
        assert "no request within" in rig.wait_event(reason="limit")["detail"]["error"]
        sock = rig.connect(CLAUDE)
        assert rig.request(CLAUDE, "/v1/models", sock=sock).status == 200
        sock.close()
    finally:
        rig.stop()


def test_log_levels(rig: Rig) -> None:
    rig.bottle(log="full")
    for path in ("/v1/models", "/v1/models/one?k=v"):  # each has a line of its own, when it is over
        assert rig.request(CLAUDE, path).status == 200
        told = rig.wait_event(kind="request", verdict="allowed")
        rig.events.remove(told)
        assert told["detail"].pop("ms") >= 0
        assert told["detail"] == {"method": "GET", "path": path.partition("?")[0], "status": 200}
    rig.bottle(log="off")
    assert rig.request(OPENAI, "/quiet").status == 403
    rig.bottle()
    assert rig.request(CLAUDE, "/loud").status == 403
    assert rig.wait_event(kind="request", reason="endpoint", host=CLAUDE)
    assert not [e for e in rig.events if e.get("reason") == "endpoint" and e["host"] == OPENAI]


def test_a_client_that_does_not_trust_us_is_reported(rig: Rig) -> None:
    sock = socket.create_connection((rig.address, 443), 10, (rig.source, 0))
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(sock, server_hostname=CLAUDE)
    sock.close()
    assert "roots" in rig.wait_event(reason="client-tls")["hint"]


def start_worker(directory: Path, **changes: Any) -> tuple[int, str]:
    """(status, last words) of a worker that cannot start."""
    config = {
        "socket": str(directory / "p.sock"), "lookup_socket": "", "ledger_socket": "", "user": "", "listen": [],
        "pool4": "127.0.0.0/16", "ca_dir": str(directory / "ca"),
    } | changes  # fmt: skip
    (directory / "p.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "agentmon.proxy", str(directory / "p.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    assert "authority" in start_worker(tmp_path)[1]
    trust.ensure_ca(tmp_path / "ca")
    status, words = start_worker(tmp_path, upstream_proxy="http://10.0.0.1:3128")
    assert status == 2 and "not supported" in words and "hint:" in words
    status, words = start_worker(tmp_path, upstream_ca=["/no/such.pem"])
    assert status == 4 and "/no/such.pem cannot be read" in words
    status, words = start_worker(tmp_path, providers={"x": {"like": "nobody", "hosts": ["x"]}})
    assert status == 2 and "providers: x" in words
    (tmp_path / "ca" / trust.KEY_FILE).write_bytes(b"damaged")
    assert start_worker(tmp_path)[0] == 4


def test_a_rig_that_does_not_come_up_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="broken on purpose"):
        proxy_rig.start(tmp_path, prelude="raise SystemExit('broken on purpose')")
    config = str(tmp_path / "ledger.json").encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert config not in path.read_bytes()


def test_without_a_ledger_metered_requests_are_503_and_others_pass(tmp_path: Path) -> None:
    rig = proxy_rig.start(tmp_path, ledger=False)
    try:
        rig.bottle()
        response = rig.request(CLAUDE, "/v1/messages", ask())
        assert (response.status, response.json["error"]["type"]) == (503, "ledger_unavailable")
        assert response.headers["x-should-retry"] == "false"
        assert rig.upstream.seen == []
        assert rig.request(CLAUDE, "/v1/models").status == 200
        assert rig.request("agentmon.internal", "/budget", port=80).status == 503
    finally:
        rig.stop()
