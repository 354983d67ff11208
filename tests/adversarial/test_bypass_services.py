"""Ways past names: resolver, relay, proxy, and what is left after a cut, tried from inside a bottle.

Each row says what comes back; whatever it is, nothing may have arrived at a server that the policy does not name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.adversarial.bypass_bottle import ATTEMPTS, PYTHON, Inside
from tests.support.live import World, until

pytestmark = pytest.mark.adversarial
RESOLVER, RELAY, PROXY = "10.213.0.2", "10.213.0.3", "10.213.0.4"
WWW, OTHER, BAD = "www.allowed.example", "other.allowed.example", "www.forbidden.example"
INSPECTED, METERED = "direct.allowed.example", "api.anthropic.com"
RULES = (
    f"{WWW}:443", f"http://{WWW}", "*.wild.example:443", f"https://{INSPECTED}/ok/*", "tcp://v4only.allowed.example:9000",
    "tcp://*.race.example:9000",
    *(f"tcp://{n}.allowed.example:9000" for n in ("loopback", "metadata", "mapped")),
)  # fmt: skip
HEADERS = ("x-api-key: k", "anthropic-version: 2023-06-01", "content-type: application/json")
SMUGGLED = (f"GET /smuggled HTTP/1.1\\r\\nHost: {BAD}", "", "")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("services")) as made:
        made.start_daemon()
        yield made


@pytest.fixture(scope="module")
def bottle(world: World) -> Iterator[Inside]:
    rules = [word for rule in RULES for word in ("--allow", rule)]
    neighbour = Inside(world, "bypass-neighbour", "--allow", f"{OTHER}:443")
    shell = Inside(world, "bypass-names", *rules, "--provider", "claude", "--budget", "100000")
    yield shell
    for inside in (shell, neighbour):
        inside.job.say("exit 0")
        inside.job.end()


@pytest.fixture(autouse=True)
def nothing_leaks(world: World) -> Iterator[None]:
    """No byte at a forbidden host, and no request for a host or path that no rule names."""
    before = world.counters()
    yield
    after = world.counters()
    assert after["forbidden"] == before["forbidden"]
    for seen in after["requests"][len(before["requests"]) :]:
        assert seen["host"] in {WWW, INSPECTED, METERED} and seen["path"] != "/smuggled", seen
        assert seen["host"] != INSPECTED or seen["path"].startswith("/ok/"), seen


# ── names ──


@pytest.mark.parametrize(
    "kind", ["2", "5", "6", "10", "12", "15", "16", "33", "35", "64", "65", "99", "252", "255", "257"]
)
@pytest.mark.parametrize("host", [WWW, "v4only.allowed.example", "a.wild.example", BAD])
def test_a_question_for_more_than_addresses(world: World, bottle: Inside, host: str, kind: str) -> None:
    asked = dict(world.counters()["dns"])
    assert bottle.tries("dns", RESOLVER, host, kind).startswith("refused")
    assert world.counters()["dns"] == asked


@pytest.mark.parametrize("way", ["dns", "dns_tcp"])
@pytest.mark.parametrize(
    "host", [f"secret-payload.{BAD}", f"secret.{WWW}", "wild.example", "allowed.example", f"{OTHER}"]
)
def test_a_message_in_the_labels_of_a_denied_name(world: World, bottle: Inside, way: str, host: str) -> None:
    asked = dict(world.counters()["dns"])
    assert bottle.tries(way, RESOLVER, host, "1").startswith("refused")
    assert world.counters()["dns"] == asked
    assert until(lambda: world.events("bypass-names", kind="dns", host=host))[0]["verdict"] == "refused"


@pytest.mark.parametrize("kind", ["1", "28"])
@pytest.mark.parametrize("host", ["loopback", "metadata", "mapped"])
def test_an_allowed_name_that_leads_to_a_protected_address(bottle: Inside, host: str, kind: str) -> None:
    assert bottle.tries("dns", RESOLVER, f"{host}.allowed.example", kind).startswith("refused")


def test_no_connect_is_faster_than_the_layers_that_its_answer_opened(bottle: Inside) -> None:
    assert bottle.tries("race", RESOLVER, "*.race.example", "9000", "120") == "0 lost"


# ── relay ──

GET = ("GET / HTTP/1.1", f"Host: {WWW}", "Connection: close")


def test_the_relay_works_at_all(bottle: Inside) -> None:
    assert bottle.tries("request", RELAY, "443", WWW, *GET) == "200"
    assert bottle.tries("request", PROXY, "80", "-", *GET) == "200"


NOT_HERE = ("none", "198.51.100.10", OTHER, BAD, f"x.{WWW}", "agentmon.internal", "-")
SERVER_NAMES = [
    *((RELAY, sni) for sni in (*NOT_HERE, METERED, INSPECTED, f"{WWW}.")),
    *((PROXY, sni) for sni in NOT_HERE),
]


@pytest.mark.parametrize(("server", "sni"), SERVER_NAMES)
def test_a_server_name_that_is_not_for_here(world: World, bottle: Inside, server: str, sni: str) -> None:
    assert bottle.tries("request", server, "443", sni, *GET).startswith("refused")
    assert until(lambda: [e for e in world.events("bypass-names") if e["layer"] in {"relay", "proxy"}])


# ── proxy ──


def at(host: str, *more: str, line: str = "GET / HTTP/1.1") -> tuple[str, ...]:
    return (line, f"Host: {host}", *more)


PLAIN = {
    "another host": (at(BAD), "403"),
    "metered host without TLS": (at(METERED), "403"),
    "port of TLS": (at(f"{WWW}:443"), "403"),
    "address": (at("198.51.100.10"), "403"),
    "metadata": (at("169.254.169.254"), "403"),
    "absolute form, another host": (at(WWW, line=f"GET http://{BAD}/ HTTP/1.1"), "403"),
    "absolute form, another Host": (at(BAD, line=f"GET http://{WWW}/ HTTP/1.1"), "403"),
    "absolute form, https": (at(METERED, line=f"GET https://{METERED}/v1/models HTTP/1.1"), "403"),
    "absolute form, user info": (at(WWW, line=f"GET http://{WWW}@{BAD}/ HTTP/1.1"), "400"),
    "two hosts": (at(WWW, f"Host: {BAD}"), "403"),
    "no host": (("GET / HTTP/1.1",), "403"),
    "no host, 1.0": (("GET / HTTP/1.0",), "403"),
    "space before the colon": (("GET / HTTP/1.1", f"Host : {BAD}", f"Host: {WWW}"), "400"),
    "CONNECT": (at(f"{BAD}:443", line=f"CONNECT {BAD}:443 HTTP/1.1"), "400"),
    "CONNECT to what is allowed": (at(f"{WWW}:80", line=f"CONNECT {WWW}:80 HTTP/1.1"), "400"),
    "h2c": (at(WWW, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), "403"),
    "websocket": (at(WWW, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"), "403"),
    "length and chunks": (at(WWW, "Content-Length: 6", "Transfer-Encoding: chunked", "", "0", "", *SMUGGLED), "400"),
    "chunks and length": (at(WWW, "Transfer-Encoding: chunked", "Content-Length: 4", "", "0", "", *SMUGGLED), "400"),
    "unknown coding": (at(WWW, "Transfer-Encoding: xchunked", "Content-Length: 5", "", "0", "", *SMUGGLED), "400"),
    "two codings": (at(WWW, "Transfer-Encoding: chunked, identity", "", "0", "", *SMUGGLED), "400"),
    "vertical tab": (at(WWW, "Transfer-Encoding:\\x0bchunked", "Content-Length: 5", "", "0", "", *SMUGGLED), "400"),
    "two lengths": (at(WWW, "Content-Length: 5", "Content-Length: 50", "", "0", "", *SMUGGLED), "400"),
    "signed length": (at(WWW, "Content-Length: +5", "", "0", "", *SMUGGLED), "400"),
    "bare line feed": (
        at(WWW, "X: y\\nTransfer-Encoding: chunked", "Content-Length: 5", "", "0", "", *SMUGGLED), "400",
    ),
    "NUL": (at(WWW, "X\\0: y"), "400"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "status"), PLAIN.values(), ids=list(PLAIN))
def test_a_plain_request_that_says_two_things(bottle: Inside, lines: tuple[str, ...], status: str) -> None:
    if "" in lines:  # with a body
        lines = ("POST /echo HTTP/1.1", *lines[1:])
    assert bottle.tries("request", PROXY, "80", "-", *lines).split()[0] == status


@pytest.mark.parametrize("server", [RELAY, PROXY], ids=["relay", "proxy"])
def test_http2_without_asking(bottle: Inside, server: str) -> None:
    answer = bottle.tries("request", server, "80", "-", "PRI * HTTP/2.0", "", "SM", "", "")
    assert answer.startswith("refused") or set(answer.split()) <= {"400", "403"}


BODY = json.dumps(
    {"model": "claude-scripted-in5-out5", "max_tokens": 8, "messages": [{"role": "user", "content": "h"}]}
)
UNCLEAR = (
    "//v1/messages", "/v1//messages", "/v1/messages/", "/v1/messages;x=1", "/v1/%2e%2e/v1/messages",
    "/x/../v1/messages",
    "/v1/models/%2e%2e/messages", "/v1/models/..%2fmessages", "/v1/models/..;/messages", "/v1/models%2f..%2fmessages",
    "/V1/messages", "/v1/messages%00", "/v1/messages%20", "/v1/messages/batches", "/v1/complete", "/v1/files",
    "/v1/models/%252e%252e/messages", "*",
)  # fmt: skip


def posted(path: str, method: str = "POST", host: str = METERED) -> tuple[str, ...]:
    return (f"{method} {path} HTTP/1.1", f"Host: {host}", *HEADERS, f"content-length: {len(BODY)}", "", BODY)


@pytest.mark.parametrize("path", UNCLEAR)
def test_a_path_of_a_metered_host_that_nothing_meters(world: World, bottle: Inside, path: str) -> None:
    served = len(world.counters()["served"]["calls"])
    assert bottle.tries("request", PROXY, "443", METERED, *posted(path)) == "403"
    assert len(world.counters()["served"]["calls"]) == served


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "OPTIONS", "TRACE", "DELETE", "X"])
def test_a_method_of_a_metered_host_that_nothing_meters(bottle: Inside, method: str) -> None:
    assert bottle.tries("request", PROXY, "443", METERED, *posted("/v1/messages", method)) == "403"


@pytest.mark.parametrize("host", [WWW, BAD, "api.openai.com", f"{METERED}:8443", f"{METERED}:80", ""])
def test_a_host_that_is_not_the_server_name(bottle: Inside, host: str) -> None:
    assert bottle.tries("request", PROXY, "443", METERED, *posted("/v1/messages", host=host)) == "403"


@pytest.mark.parametrize("spelling", ["/v1/messages?beta=1", "/v1/messages?"])
def test_a_spelling_that_passes_is_metered(world: World, bottle: Inside, spelling: str) -> None:
    def requests() -> int:
        return next((r["requests"] for r in world.rows("usage", "--by", "bottle") if r["bottle"] == bottle.name), 0)

    before = requests()
    assert bottle.tries("request", PROXY, "443", METERED, *posted(spelling)) == "200"
    until(lambda: requests() == before + 1)


def test_a_target_with_a_fragment_is_refused(bottle: Inside) -> None:
    """Servers differ in whether what follows belongs to the path."""
    assert bottle.tries("request", PROXY, "443", METERED, *posted("/v1/messages#x")) == "403"


PATHS = (
    "/no",
    "/ok/../no",
    "/ok/%2e%2e/no",
    "/ok/..%2fno",
    "/ok/..;/no",
    "/ok//../no",
    "/ok/%5c..%5cno",
    "/OK/x",
    "/ok",
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_outside_the_rule(bottle: Inside, path: str) -> None:
    lines = (f"GET {path} HTTP/1.1", f"Host: {INSPECTED}")
    assert bottle.tries("request", PROXY, "443", INSPECTED, *lines) == "403"


# ── cut and budget ──


def test_after_a_cut_nothing_but_the_word_of_it(world: World) -> None:
    rules = ("--allow", "udp://direct.allowed.example:9000", "--allow", "tcp://direct.allowed.example:9000")
    shell = Inside(world, "bypass-cut", *rules, "--allow", f"{WWW}:443", "--provider", "claude", "--budget", "1000")
    shell("getent ahostsv4 direct.allowed.example; getent ahostsv6 direct.allowed.example")
    flows = [f"{kind}={host}=9000" for kind in ("tcp", "udp") for host in ("198.51.100.11", "2001:db8:1::11")]
    shell(f"{PYTHON} -I {ATTEMPTS} keeps_talking {' '.join(flows)} >/dev/null 2>&1 &")
    until(lambda: shell("cat /tmp/flows 2>/dev/null; echo").split() == ["tcp4", "tcp6", "udp4", "udp6"])
    world.agentmon("cut", "bypass-cut")
    until(lambda: shell("echo $(wc -l < /tmp/flows) $(cat /tmp/flows)") == "1")
    for way, *where in (
        ("tcp", "198.51.100.11", "9000"), ("tcp", "2001:db8:1::11", "9000"), ("udp", "198.51.100.11", "9000"),
        ("udp", "2001:db8:1::11", "9000"), ("tcp", RELAY, "443"), ("tcp", RELAY, "80"), ("dns", RESOLVER, WWW, "1"),
        ("tcp", "203.0.113.10", "80"),
    ):  # fmt: skip
        assert shell.tries(way, *where).startswith("refused"), (way, where)
    for _ in range(5):  # retrying and forking change nothing
        assert shell.tries("request", PROXY, "443", METERED, *posted("/v1/messages")) == "403"
    assert shell.tries("tcp_from_orphan", "198.51.100.11", "9000").startswith("refused")
    world.agentmon("resume", "bypass-cut")
    shell.job.say("exit 0")
    shell.job.end()


def test_hanging_up_before_the_bill_is_charged(world: World) -> None:
    body = (
        '{"model":"claude-scripted-in100-out400-chunks40-pace50","max_tokens":500,"stream":true,'
        '"messages":[{"role":"user","content":"h"}]}'
    )
    shell = Inside(world, "bypass-abort", "--provider", "claude", "--budget", "2000")
    headers = " ".join(f"-H '{header}'" for header in HEADERS)
    codes = [
        shell(
            f"curl -sN -m 0.5 -o /dev/null -w '%{{http_code}}\\n' {headers} -d '{body}' https://{METERED}/v1/messages"
        )
        for _ in range(8)
    ]
    assert codes[-1] == "403" and codes.count("200") <= 4, codes
    (row,) = [r for r in world.rows("usage", "--by", "bottle") if r["bottle"] == "bypass-abort"]
    assert row["weighted"] >= 600 * codes.count("200") and row["incomplete"] == codes.count("200")
    shell.job.say("exit 0")
    shell.job.end()
