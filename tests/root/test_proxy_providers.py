"""Every provider's answers through a real proxy worker: what the client gets is what was sent, and the row is right.

Also METERING torture cases 12, 13, 18, 20, 23, 24 over real sockets.
"""

from __future__ import annotations

import gzip
import json
import ssl
import threading
from typing import Any

import pytest

from agentmon import wire
from agentmon.providers.registry import load
from tests.support import proxy_rig
from tests.support.provider_cases import CASES, DONE, Case, aws_event, frame, say
from tests.support.proxy_rig import Response, Rig
from tests.support.proxy_talk import (
    CLAUDE,
    OPENAI,
    ask,
    begin,
    closing,
    fresh,
    last_row,
    message,
    opening,
    read_until,
)
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root

PROVIDERS = load()
HOSTS = sorted({case.host or PROVIDERS[case.provider].hosts[0] for case in CASES.values()})


@pytest.fixture
def rig(running: Rig) -> Rig:
    fresh(running)
    inspected = tuple(host for provider in PROVIDERS.values() for host in provider.hosts)
    running.bottle(*(f"{host}:443" for host in HOSTS), inspected=inspected, budget=1 << 40)
    return running


def host_of(case: Case) -> str:
    return case.host or PROVIDERS[case.provider].hosts[0]


def request_of(case: Case) -> bytes | None:
    """What the client asks: its own include_usage, so that nothing is taken out."""
    if case.method == "GET":
        return None
    wants = {"stream_options": {"include_usage": True}} if "completions" in case.path else {}
    return json.dumps({"model": "asked-for", "stream": case.sse} | wants).encode()


def with_own_id(case: Case, number: int) -> Case:
    """The same answer under an id that no other test has settled."""
    body, headers = case.body, case.headers
    if "aws-1" in headers.values():
        headers = headers | {"x-amzn-requestid": f"aws-{number}"}
    own = b'"id-%d"' % number
    return Case(**{f: getattr(case, f) for f in case.__dataclass_fields__} | {
        "body": body.replace(b'"id-1"', own), "headers": headers,
    })  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_answer_passes_unchanged_and_becomes_its_row(rig: Rig, name: str) -> None:
    before = len(rig.rows(0))
    if name == "bedrock invoke claude stream":  # ids inside base64 are those of no other case
        case = CASES[name]
    else:
        case = with_own_id(CASES[name], 100 + list(CASES).index(name))
    step = max(1, len(case.body) // 7)
    pieces = [case.body[i : i + step] for i in range(0, len(case.body), step)]
    kind = case.headers.get("content-type", "")
    rig.upstream.script = chunked(list(pieces), case.headers | {"content-type": kind})
    response = rig.request(host_of(case), case.path, request_of(case), method=case.method)
    assert (response.status, response.body) == (200, case.body)
    got = last_row(rig, before)
    fresh_in, read, five, hour, output, _ = case.row
    assert got == (case.provider, got[1], fresh_in, read, five + hour, output, "wire", 1)
    assert got[1] in {case.model, "asked-for", "m-1", "d-1"}
    assert rig.nothing_held()


def test_a_stream_of_any_provider_that_breaks_off_is_an_estimate(rig: Rig) -> None:
    for name in ("gemini sse", "gemini array", "mistral stream", "bedrock converse stream", "vertex claude stream"):
        before = len(rig.rows(0))
        case = with_own_id(CASES[name], 300 + list(CASES).index(name))
        rig.upstream.script = broken_off(case.body[: len(case.body) * 2 // 3], case.headers["content-type"])
        response = rig.request(host_of(case), case.path, request_of(case))
        assert response.broken
        got = last_row(rig, before)
        assert (got[0], got[6:]) == (case.provider, ("estimate", 0)) and got[5] >= 4096
    assert rig.nothing_held()


def broken_off(body: bytes, kind: str) -> Any:
    async def script(_seen: Any, writer: Any) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        writer.write(b"%x\r\n%s\r\n" % (len(body), body))
        await writer.drain()
        writer.close()

    return script


def test_free_endpoints_of_every_provider_take_no_hold_and_give_no_row(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.upstream.script = reply(200, b'{"input_tokens": 1000, "totalTokens": 1000, "usage": {"input_tokens": 5}}')
    asked = [
        (CLAUDE, "/v1/messages/count_tokens"),
        (OPENAI, "/v1/responses/input_tokens"),
        ("generativelanguage.googleapis.com", "/v1beta/models/m:countTokens"),
        (host_of(CASES["vertex claude json"]), "/v1/projects/p/locations/l/publishers/anthropic/models/"
         "count-tokens:rawPredict"),
        (host_of(CASES["vertex claude json"]), "/v1/projects/p/locations/l/publishers/google/models/m:countTokens"),
        (host_of(CASES["bedrock converse"]), "/model/m/count-tokens"),
    ]  # fmt: skip
    for host, path in asked:
        assert rig.request(host, path, b"{}").status == 200, path
    assert rig.held() == 0 and len(rig.rows(0)) == before


def test_what_no_declaration_covers_reaches_no_provider(rig: Rig) -> None:
    for host in HOSTS:
        for path in ("/v1/unheard/of", "/v1/messages/batches", "/v1/batches", "/async-invoke", "/"):
            got = rig.request(host, path, b"{}")
            assert (got.status, got.json["error"]["type"]) == (403, "egress_denied"), (host, path)
    for host, path in ((OPENAI, "/v1/realtime?model=m"), ("chatgpt.com", "/backend-api/codex/responses")):
        wanted = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        assert rig.request(host, path, headers=wanted).status == 403
    google, path = "generativelanguage.googleapis.com", "/v1beta/models/m:generateContent"
    assert rig.request(google, f"{path}?%24httpMethod=POST", headers={"Content-Length": "0"}).status == 403
    assert rig.upstream.seen == [] and rig.held() == 0
    assert rig.request(google, path, headers={"X-HTTP-Method-Override": "POST"}).status == 200
    assert "x-http-method-override" not in rig.upstream.seen[-1].headers


# ── include_usage ──


def honest_chat(seen: Any) -> list[bytes]:
    """What the real service sends for this very request: usage, and null usage before it, only when asked."""
    asked = (json.loads(seen.body).get("stream_options") or {}).get("include_usage")
    null = {"usage": None} if asked else {}

    def chunk(**more: Any) -> bytes:
        value = {"id": "chatcmpl-same", "object": "chat.completion.chunk", "model": "gpt-x"} | more
        return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    texts = ["", "hé 🙂", ',"usage":null,', '{"choices":[],"usage":{"prompt_tokens":1}}', "\n\ndata: [DONE]\n\n"]
    said = [chunk(choices=[{"index": 0, "delta": {"content": t}}], **null, obfuscation="aB3") for t in texts]
    said.append(b": keep-alive\n\n")
    said.append(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], **null))
    usage = {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}
    return said + ([chunk(choices=[], usage=usage)] if asked else []) + [DONE]


def direct(rig: Rig, host: str, path: str, body: bytes) -> Response:
    """The same request without agentmon."""
    context = ssl.create_default_context(cafile=str(rig.directory / "outside-ca.pem"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the outside world's leaf names no issuer key
    with rig.direct() as raw, context.wrap_socket(raw, server_hostname=host) as sock:
        return rig.request(host, path, body, sock=sock)


OPTIONS = {
    "none": {},
    "null": {"stream_options": None},
    "another": {"stream_options": {"include_obfuscation": True}},
    "refused": {"stream_options": {"include_usage": False}},
    "wanted": {"stream_options": {"include_usage": True}},
    "plain": {"stream": False},
}


@pytest.mark.parametrize("step", [1, 37, 1 << 20])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_proxied_transcript_is_byte_for_byte_the_direct_one(rig: Rig, options: str, step: int) -> None:
    body = json.dumps({"model": "gpt-x", "stream": True, "messages": []} | OPTIONS[options]).encode()

    async def answer(seen: Any, writer: Any) -> None:
        if not json.loads(seen.body)["stream"]:
            await reply(200, b'{"id": "chatcmpl-p", "usage": {"prompt_tokens": 8, "completion_tokens": 4}}')(
                seen, writer
            )
            return
        whole = b"".join(honest_chat(seen))
        await chunked([whole[i : i + step] for i in range(0, len(whole), step)])(seen, writer)

    rig.upstream.script = answer
    for host, path in ((OPENAI, "/v1/chat/completions"), ("mine.openai.azure.com", "/openai/v1/chat/completions")):
        alone = direct(rig, host, path, body)
        through = rig.request(host, path, body)
        assert through.body == alone.body and len(alone.body) > 50
        asked, sent = (json.loads(seen.body) for seen in rig.upstream.seen[-2:])
        if options != "plain":
            kept = {**(asked.get("stream_options") or {}), "include_usage": True}
            assert sent == asked | {"stream_options": kept}
        else:
            assert rig.upstream.seen[-1].body == body
        assert {k: v for k, v in alone.headers.items() if k != "content-length"} == {
            k: v for k, v in through.headers.items() if k != "content-length"
        }
    assert rig.nothing_held()


# ── signed requests ──


def test_a_signed_request_is_not_changed_on_its_way(rig: Rig) -> None:
    case = CASES["bedrock converse stream"]
    body = gzip.compress(b'{"inferenceConfig": {"maxTokens": 5},   "messages": []}')
    signed = {
        "Accept-Encoding": "gzip, br", "Content-Encoding": "gzip", "X-Amz-Date": "20260101T000000Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=accept-encoding;host, Signature=0",
    }  # fmt: skip
    rig.upstream.script = chunked([case.body], case.headers | {"x-amzn-requestid": "aws-signed"})
    response = rig.request(host_of(case), "/model/us.m-1%3A0/converse-stream", body, headers=signed)
    seen = rig.upstream.seen[-1]
    assert (seen.target, seen.body) == ("/model/us.m-1%3A0/converse-stream", body)
    assert all(seen.headers[name.lower()] == value for name, value in signed.items())
    assert response.body == case.body and rig.nothing_held()


# ── what cannot be read ──


@pytest.mark.parametrize("name", ["claude stream", "bedrock converse stream"])
def test_an_event_over_the_cap_passes_and_the_hold_is_charged(rig: Rig, name: str) -> None:
    before = len(rig.rows(0))
    case = CASES[name]
    text = b"x" * (64 << 20)
    if case.sse:
        body = b'event: message_start\ndata: {"type":"message_start","x":"' + text + b'"}\n\n' + closing(9)[:40]
    else:
        body = frame(text, message_type="event", event_type="metadata") + aws_event("messageStop", {})
    rig.upstream.script = chunked([body], case.headers)
    response = rig.request(host_of(case), case.path, b'{"max_tokens": 77, "inferenceConfig": {"maxTokens": 77}}')
    assert response.body == body
    got = last_row(rig, before)
    assert got[5:] == (77, "estimate", 0) and got[2] > 0
    assert rig.nothing_held()


def test_an_unknown_coding_passes_and_the_hold_is_charged(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.upstream.script = chunked([b"\x00\x9f\x01" * 999], {"content-encoding": "compress"})
    response = rig.request(CLAUDE, "/v1/messages", ask(max_tokens=55, stream=True))
    assert response.body == b"\x00\x9f\x01" * 999
    assert last_row(rig, before)[5:] == (55, "estimate", 0)


def unread(rig: Rig, why: str) -> dict[str, Any]:
    """What is told of the usage of an answer that was broken off: why its row is an estimate."""
    assert rig.nothing_held()
    usage = rig.wait_event(kind="usage")
    assert why in usage["reason"] and usage["detail"]["complete"] is False
    return dict(usage["detail"])


@pytest.mark.parametrize(("host", "ends"), [(CLAUDE, False), (OPENAI, True)])
def test_where_the_policy_cuts_no_byte_of_an_unknown_coding_passes(rig: Rig, host: str, ends: bool) -> None:
    before, never = len(rig.rows(0)), threading.Event()
    path = "/v1/messages" if host == CLAUDE else "/v1/chat/completions"
    rig.bottle(unreadable="cut")
    rig.upstream.script = chunked([b"\x00\x9f\x01" * 999, *([] if ends else [never])], {"content-encoding": "compress"})
    response = rig.request(host, path, ask(max_tokens=55, stream=True))
    assert (response.status, response.json["error"]["type"]) == (403, "answer_unreadable")
    assert "content-encoding" not in response.headers and response.headers["x-should-retry"] == "false"
    assert last_row(rig, before)[5:] == (55, "estimate", 0)
    unread(rig, "'compress' is unknown")
    refusal = rig.wait_event(kind="request", reason="unreadable", host=host)
    assert refusal["verdict"] == "refused" and "unreadable: settle" in refusal["hint"]
    never.set()


def test_where_the_policy_cuts_an_error_in_an_unknown_coding_passes(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.bottle(unreadable="cut")
    rig.upstream.script = reply(429, b"\x00\x9f\x01", {"content-encoding": "compress"})
    response = rig.request(CLAUDE, "/v1/messages", ask(max_tokens=55))
    assert (response.status, response.body) == (429, b"\x00\x9f\x01")
    assert rig.nothing_held() and len(rig.rows(0)) == before


def test_where_the_policy_cuts_an_oversized_event_ends_the_stream_with_the_error(rig: Rig) -> None:
    before, never = len(rig.rows(0)), threading.Event()
    rig.bottle(unreadable="cut")
    rig.upstream.script = chunked([opening(), b'event: x\ndata: {"x": "', b"x" * (17 << 20), never])
    response = rig.request(CLAUDE, "/v1/messages", ask(max_tokens=55, stream=True))
    assert (response.status, response.broken) == (200, False) and len(response.body) < 17 << 20
    assert b'event: error\ndata: {"type":"error","error":{"type":"answer_unreadable"' in response.body
    assert last_row(rig, before)[5:] == (55, "estimate", 0)
    assert unread(rig, "too large")["input"] == 20
    never.set()


@pytest.mark.parametrize("inbound", ["warn", "block"])
def test_where_the_policy_cuts_damage_ends_an_answer_that_is_no_stream(rig: Rig, inbound: str) -> None:
    """Begun, it is broken off; held back as a whole (`inbound: block`), the error is its answer."""
    before = len(rig.rows(0))
    rig.bottle(unreadable="cut", routes=(wire.Route(CLAUDE, inbound=inbound),))
    body = bytearray(gzip.compress(message() * 9999, 0))
    body[len(body) // 2 :] = b"\xff" * (len(body) // 2)
    rig.upstream.script = reply(200, bytes(body), {"content-encoding": "gzip", "content-type": "application/json"})
    response = rig.request(CLAUDE, "/v1/messages", ask(max_tokens=55))
    if inbound == "block":
        assert (response.status, response.json["error"]["type"]) == (403, "answer_unreadable")
    else:
        assert response.broken and len(response.body) < len(body)
    assert last_row(rig, before)[5:] == (55, "estimate", 0)
    unread(rig, "undecodable")


def test_a_client_that_hangs_up_before_the_usage_comes_is_charged_the_text_it_got(rig: Rig) -> None:
    before = len(rig.rows(0))
    never = threading.Event()
    rig.upstream.script = chunked([say("x" * 60_000), never])
    sock = begin(rig, b'{"model": "gpt-x", "stream": true}', "/v1/chat/completions", OPENAI)
    read_until(sock, b'x"}')
    sock.close()
    assert last_row(rig, before)[5:] == (20_000, "estimate", 0)  # it named no bound: 4096 were held
    never.set()


def test_a_client_that_closes_right_after_the_last_event_is_charged_from_the_wire(rig: Rig) -> None:
    before = len(rig.rows(0))
    never = threading.Event()
    rig.bottle("chatgpt.com:443")
    case = with_own_id(CASES["codex stream"], 700)
    rig.upstream.script = chunked([case.body, never], {"content-type": ""})
    sock = begin(rig, b'{"model": "m"}', case.path, "chatgpt.com")
    read_until(sock, b'"sequence_number": 3}\n\n\r\n')
    sock.close()
    assert last_row(rig, before)[2:] == (25, 10, 15, 7, "wire", 1)
    never.set()


def test_text_beyond_the_hold_and_the_budget_cuts_in_mid_stream(rig: Rig) -> None:
    rig.bottle("api.openai.com:443", budget=6_000)
    never = threading.Event()
    rig.upstream.script = chunked([*[say("x" * 3_000)] * 10, never])
    sock = begin(rig, b'{"model": "gpt-x", "stream": true}', "/v1/chat/completions", OPENAI)
    assert rig.books is not None
    rig.books.sock.settimeout(10)
    while not isinstance(crossed := rig.books.recv(), wire.Crossed) or crossed.threshold < 100:
        pass
    assert crossed.slots == (proxy_rig.SLOT,) and 6_000 <= crossed.used < 9_000
    never.set()
    sock.close()
    rig.books.sock.settimeout(None)
    assert rig.nothing_held()


# ── storms ──


def test_a_storm_of_errors_and_replays_charges_each_answer_once(rig: Rig) -> None:
    before = len(rig.rows(0))
    answers = [(429, b"{}"), (529, b"{}"), (500, b"{}"), (200, message(3, 4, id="msg_storm")), (503, b"{}")]
    sock = rig.connect(CLAUDE)
    for turn in range(20):
        status, body = answers[turn % len(answers)]
        rig.upstream.script = reply(status, body, {"retry-after": "0"})
        assert rig.request(CLAUDE, "/v1/messages", ask(), sock=sock).status == status
    sock.close()
    assert rig.nothing_held()
    assert len(rig.rows(before + 1)) == before + 1
    assert rig.rows(before + 1)[-1][2:] == (3, 0, 0, 4, "wire", 1)
