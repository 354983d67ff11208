"""What a proxy worker refuses: names, targets, hosts and bottles that no rule covers, and spent budgets."""

from __future__ import annotations

import socket
import ssl

import pytest

from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import CLAUDE, OPENAI, ask, message, read_until
from tests.support.proxy_upstream import reply

pytestmark = pytest.mark.root


def test_what_no_endpoint_covers_is_refused_and_told(rig: Rig) -> None:
    response = rig.request(CLAUDE, "/v1/complete", b"{}")
    assert (response.status, response.headers["x-should-retry"]) == (403, "false")
    assert response.json["error"]["type"] == "egress_denied" and response.json["error"]["host"] == CLAUDE
    event = rig.wait_event(kind="request", reason="endpoint")
    assert event["verdict"] == "refused" and event["detail"] == {
        "method": "POST",
        "path": "/v1/complete",
        "status": 403,
    }
    assert "no rule helps" in event["hint"]
    assert rig.upstream.seen == []


@pytest.mark.parametrize(
    "head",
    [
        "Host: evil.example.org",
        "Host: api.anthropic.com\r\nHost: evil.example.org",
        "Host: api.anthropic.com:8443",
        "X-No: host",
    ],
)
def test_the_host_header_must_be_the_sni(rig: Rig, head: str) -> None:
    sock = rig.connect(CLAUDE)
    sock.sendall(f"GET /v1/models HTTP/1.1\r\n{head}\r\n\r\n".encode())
    response = proxy_rig.Response.read(sock)
    sock.close()
    assert response.status in (400, 403) and rig.upstream.seen == []


def test_an_absolute_target_must_name_the_same_host(rig: Rig) -> None:
    assert rig.request(CLAUDE, "https://evil.example.org/v1/models").status == 403
    assert rig.upstream.seen == []
    assert rig.request(CLAUDE, f"https://{CLAUDE}/v1/models").status == 200
    assert rig.upstream.seen[-1].target == "/v1/models"


def test_connect_is_refused(rig: Rig) -> None:
    sock = rig.connect(CLAUDE)
    sock.sendall(b"CONNECT evil.example.org:443 HTTP/1.1\r\nHost: evil.example.org\r\n\r\n")
    assert not read_until(sock, b"\r\n").startswith(b"HTTP/1.1 200")
    sock.close()
    assert rig.upstream.seen == []


def test_a_name_outside_the_policy_gets_no_certificate(rig: Rig) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        rig.connect("evil.example.org", verify=False)
    assert rig.wait_event(kind="request", reason="default", host="evil.example.org")["verdict"] == "refused"


def test_no_sni_gets_no_certificate(rig: Rig) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        rig.connect(None, verify=False)
    rig.wait_event(kind="request", reason="sni")


def test_plain_http_to_a_metered_host_is_refused(rig: Rig) -> None:
    rig.bottle("api.anthropic.com")
    response = rig.request(CLAUDE, "/v1/messages", ask(), port=80)
    assert response.status == 403 and rig.upstream.seen == []


def test_plain_http_of_a_bare_host_rule_passes(rig: Rig) -> None:
    rig.bottle("www.example.org", inspected=())
    rig.upstream.script = reply(200, b"hello")
    assert rig.request("www.example.org", "/x", port=80).body == b"hello"
    assert rig.request("other.example.org", "/x", port=80).status == 403
    assert rig.lookups.asked[-1] == (proxy_rig.SLOT, "www.example.org", 80)


def test_a_stranger_is_closed_without_a_word(rig: Rig) -> None:
    sock = socket.create_connection((rig.address, 80), 5, (rig.source[:-2] + "77", 0))
    sock.settimeout(5)
    with pytest.raises(ConnectionResetError):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: agentmon.internal\r\n\r\n")
        if sock.recv(10) == b"":
            raise ConnectionResetError
    sock.close()


def test_an_upgrade_is_refused(rig: Rig) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    response = rig.request(OPENAI, "/v1/embeddings", headers=headers)
    assert response.status == 403 and rig.upstream.seen == []


def test_observe_lets_an_unknown_host_through_and_says_so(rig: Rig) -> None:
    rig.bottle(mode="observe")
    assert rig.request("new.example.org", "/").status == 200
    assert rig.wait_event(kind="request", verdict="observed")["host"] == "new.example.org"


def test_a_spent_budget_is_a_403_that_nothing_retries(rig: Rig) -> None:
    rig.bottle(budget=10)
    rig.upstream.script = reply(200, message(10, 0))
    assert rig.request(CLAUDE, "/v1/messages", ask()).status == 200
    assert rig.nothing_held()
    response = rig.request(CLAUDE, "/v1/messages", ask())
    error = response.json["error"]
    assert (response.status, error["type"], response.headers["x-should-retry"]) == (403, "budget_exhausted", "false")
    assert (error["scope"], error["tokens"], error["used"]) == ("bottle", 10, 10)


def test_introspection(rig: Rig) -> None:
    assert rig.request("agentmon.internal", "/healthz", port=80).json["status"] == "ok"
    assert rig.request("agentmon.internal", "/allowlist", port=80).json["rules"] == list(rig.view.rules)
    assert rig.request("agentmon.internal", "/budget", port=80).json["budgets"][0]["tokens"] == 1_000_000
    assert rig.request("agentmon.internal", "/secrets", port=80).status == 404
