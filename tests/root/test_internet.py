"""The stand-in internet itself: it answers, counts, refuses what the real services refuse, and leaves nothing."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPException, HTTPSConnection
from typing import Any

import dns.message
import dns.query
import dns.rcode
import pytest

from tests.internet import Internet, world

pytestmark = pytest.mark.root

ANTHROPIC = {"x-api-key": "sk-ant-demo-0001", "anthropic-version": "2023-06-01"}
OPENAI = {"authorization": "Bearer sk-demo-0002"}
MESSAGE = {"model": "claude-scripted-in30-out20", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
UNLIMITED = {k: v for k, v in MESSAGE.items() if k != "max_tokens"}
CHAT = {"model": "gpt-scripted-in30-out20", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    with Internet() as internet:
        yield internet


def post(net: Internet, host: str, path: str, headers: dict[str, str], body: Any) -> tuple[int, bytes]:
    address = world.NAMES[host].addresses[0]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    context = ssl.create_default_context(cafile=net.ca)
    with socket.create_connection((address, 443), 5) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
        connection = HTTPSConnection(host)
        connection.sock = tls
        connection.request("POST", path, raw, headers | {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


def ask(net: Internet, name: str, kind: str) -> dns.message.Message:
    return dns.query.udp(dns.message.make_query(name, kind), net.dns[0], timeout=5)


@pytest.mark.parametrize(
    ("name", "kind", "last"),
    [
        ("www.allowed.example", "A", world.WEB[0]),
        ("WWW.allowed.example", "AAAA", world.WEB[1]),
        ("chain.allowed.example", "A", world.WEB[0]),
        ("deep.below.wild.example", "A", world.WEB[0]),
    ],
)
def test_names_resolve_and_are_counted(net: Internet, name: str, kind: str, last: str) -> None:
    before = net.queries(name.lower())
    assert str(ask(net, name, kind).answer[-1][0]) == last
    assert net.queries(name.lower()) == before + 1


@pytest.mark.parametrize("api", world.APIS)
def test_a_provider_answers_at_its_real_name_and_refuses_who_has_no_key(net: Internet, api: str) -> None:
    (host,) = (name for name, entry in world.NAMES.items() if entry.addresses == world.APIS[api])
    assert str(ask(net, host, "A").answer[0][0]) == world.APIS[api][0]
    paths = {
        "claude": "/v1/messages", "openai": "/v1/responses", "codex": "/backend-api/codex/responses",
        "gemini": "/v1beta/models/gemini-x:generateContent", "mistral": "/v1/chat/completions",
        "azure": "/openai/deployments/x/chat/completions?api-version=2024-10-21",
        "openrouter": "/api/v1/chat/completions", "bedrock": "/model/m/converse",
        "vertex": "/v1/projects/p/locations/l/publishers/google/models/gemini-x:generateContent",
    }  # fmt: skip
    billed = len(net.served())
    status, body = post(net, host, paths[api], {}, {"messages": []})
    assert status in (401, 403) and json.loads(body), (status, body)
    assert len(net.served()) == billed


def test_other_answers(net: Internet) -> None:
    assert ask(net, "nobody.example", "A").rcode() == dns.rcode.NXDOMAIN
    assert ask(net, "wild.example", "A").rcode() == dns.rcode.NXDOMAIN
    assert ask(net, "servfail.allowed.example", "A").rcode() == dns.rcode.SERVFAIL
    assert ask(net, "www.allowed.example", "HTTPS").answer == []
    query = dns.message.make_query("many.allowed.example", "A")
    answer, by_tcp = dns.query.udp_with_fallback(query, net.dns[1], timeout=5)
    assert by_tcp
    assert len(answer.answer[0]) == 80


def test_what_reaches_a_forbidden_host_is_counted_on_every_port(net: Internet) -> None:
    for address in ("203.0.113.77", "2001:db8:2::77"):
        before = net.bytes_to(address)
        with socket.create_connection((address, 4444), 5) as sock:
            sock.sendall(b"leak")
            assert sock.recv(16) == b"leak"
        after_tcp = net.bytes_to(address)
        assert after_tcp > before + 4
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(b"leak", (address, 5353))
            assert sock.recv(16) == b"leak"
        assert net.bytes_to(address) >= after_tcp + 4


@pytest.mark.parametrize(
    ("headers", "body", "status", "kind", "message"),
    [
        ({"anthropic-version": "2023-06-01"}, MESSAGE, 401, "authentication_error", "x-api-key"),
        ({"x-api-key": "k"}, MESSAGE, 400, "invalid_request_error", "anthropic-version"),
        (ANTHROPIC, b"{", 400, "invalid_request_error", "not valid JSON"),
        (
            ANTHROPIC,
            UNLIMITED,
            400,
            "invalid_request_error",
            "max_tokens",
        ),
        (ANTHROPIC, MESSAGE | {"max_tokens": 0}, 400, "invalid_request_error", "greater than or equal to 1"),
        (ANTHROPIC, MESSAGE | {"messages": []}, 400, "invalid_request_error", "at least one message"),
        (ANTHROPIC, MESSAGE | {"colour": "red"}, 400, "invalid_request_error", "Extra inputs"),
        (ANTHROPIC, MESSAGE | {"model": "gpt-5"}, 404, "not_found_error", "model: gpt-5"),
        (ANTHROPIC, MESSAGE | {"model": "claude-scripted-status529"}, 529, "overloaded_error", "scripted"),
    ],
)
def test_messages_refuses_as_the_real_one(
    net: Internet, headers: dict[str, str], body: Any, status: int, kind: str, message: str
) -> None:
    billed = len(net.served())
    got, raw = post(net, "api.anthropic.com", "/v1/messages", headers, body)
    answer = json.loads(raw)
    assert (got, answer["type"], answer["error"]["type"]) == (status, "error", kind)
    assert message in answer["error"]["message"]
    assert len(net.served()) == billed


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "message"),
    [
        ("/v1/chat/completions", {}, CHAT, 401, "API key"),
        ("/v1/chat/completions", OPENAI, b"{", 400, "could not parse"),
        ("/v1/chat/completions", OPENAI, {"messages": []}, 400, "model parameter"),
        ("/v1/chat/completions", OPENAI, {"model": "gpt-5"}, 400, "messages"),
        ("/v1/chat/completions", OPENAI, CHAT | {"colour": 1}, 400, "Unrecognized"),
        ("/v1/chat/completions", OPENAI, CHAT | {"stream_options": {"include_usage": True}}, 400, "only allowed when"),
        ("/v1/chat/completions", OPENAI, CHAT | {"model": "nope"}, 404, "does not exist"),
        ("/v1/responses", OPENAI, {"model": "gpt-5"}, 400, "'input'"),
        ("/v1/responses", OPENAI, {"model": "gpt-5", "input": "x", "colour": 1}, 400, "colour"),
        (
            "/v1/responses",
            OPENAI,
            {"model": "gpt-5", "input": "x", "stream": True, "stream_options": {"include_usage": True}},
            400,
            "stream_options.include_usage",
        ),
    ],
)
def test_openai_refuses_as_the_real_one(
    net: Internet, path: str, headers: dict[str, str], body: Any, status: int, message: str
) -> None:
    got, raw = post(net, "api.openai.com", path, headers, body)
    assert got == status
    assert message in json.loads(raw)["error"]["message"]


def test_a_message_stream_has_cumulative_usage_and_the_books_agree(net: Internet) -> None:
    status, raw = post(net, "api.anthropic.com", "/v1/messages", ANTHROPIC, MESSAGE | {"stream": True})
    events = [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: ")]
    kinds = [event["type"] for event in events]
    assert status == 200
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["usage"]["output_tokens"] == 1
    assert events[-2]["usage"] == events[0]["message"]["usage"] | {"output_tokens": 20}
    booked = net.served()[-1]
    assert (booked["id"], booked["input"], booked["output"], booked["complete"]) == (
        events[0]["message"]["id"],
        30,
        20,
        True,
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_a_chat_stream_has_usage_only_when_asked(net: Internet, wanted: bool) -> None:
    body = CHAT | {"stream": True} | ({"stream_options": {"include_usage": True}} if wanted else {})
    _, raw = post(net, "api.openai.com", "/v1/chat/completions", OPENAI, body)
    lines = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert [("usage" in chunk) for chunk in chunks] == [wanted] * len(chunks)
    if wanted:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 20
        assert {chunk["usage"] for chunk in chunks[:-1]} == {None}


def test_a_dropped_stream_is_booked_as_far_as_it_went(net: Internet) -> None:
    body = MESSAGE | {"stream": True, "model": "claude-scripted-in30-out80-chunks8-drop2"}
    with pytest.raises((HTTPException, OSError)):
        post(net, "api.anthropic.com", "/v1/messages", ANTHROPIC, body)
    assert (net.served()[-1]["output"], net.served()[-1]["complete"]) == (20, False)


def test_two_certificates_are_bad(net: Internet) -> None:
    context = ssl.create_default_context(cafile=net.ca)
    for name in (world.SELF_SIGNED, world.MISNAMED):
        with socket.create_connection((world.WEB[0], 443), 5) as plain, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(plain, server_hostname=name)
