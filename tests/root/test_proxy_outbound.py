"""Secrets do not leave: block, redact, supervise, uploads, HTTP/2, through a real worker to a real server."""

from __future__ import annotations

import base64
import gzip
import json
import random
import ssl
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import SLOT, Response, Rig
from tests.support.proxy_talk import CLAUDE, ask, fresh, message
from tests.support.proxy_upstream import reply

try:
    import httpx2
except ModuleNotFoundError:  # for Python 3.11 the locked SDKs still bring httpx
    import httpx as httpx2

pytestmark = pytest.mark.root

HOST = "x.example.org"
TOKEN = "ghp_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5"
HOUSE = "sk-planted-house-credential-0815"
ENV = "planted-env-value-4711-aX"
MARKER = "REDACTED-BY-AGENTMON"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = proxy_rig.start(tmp_path_factory.mktemp("proxy"))
    yield rig
    rig.stop()


@pytest.fixture
def rig(running: Rig) -> Rig:
    fresh(running)
    route(running)
    return running


def route(rig: Rig, outbound: str = "supervise", **more: Any) -> None:
    """A fresh bottle whose routes say this of HOST and of CLAUDE."""
    rig.ask(wire.DropBottle(rig.control.next_id(), SLOT))  # with what was counted of it
    rig.events.clear()
    routes = tuple(wire.Route(host, outbound=outbound, **more) for host in (HOST, CLAUDE))
    rig.bottle(f"{HOST}:443", f"http://{HOST}", f"{CLAUDE}:443", inspected=(HOST, CLAUDE), routes=routes)
    known = {"env OWN": ENV, "credential house": HOUSE}
    told = wire.SetSecrets(rig.control.next_id(), SLOT, rig.run, b"key", known)
    assert rig.ask(told).error == ""


def refused(rig: Rig, answer: Response, decision: str, where: str, detector: str = "github-pat") -> None:
    """By a 403 that says what and where; nothing arrived; an event says the same; the value is in neither."""
    assert answer.status == 403, answer
    error = answer.json["error"]
    assert (error["type"], error["decision"], error["where"], error["detector"]) == (
        "egress_denied", decision, where, detector,
    )  # fmt: skip
    assert rig.upstream.seen == []
    event = rig.wait_event(kind="secret", verdict="refused", reason=decision)
    assert (event["detail"]["detector"], event["detail"]["where"], event["bottle"]) == (detector, where, "crate")
    shows_nothing(rig, answer.body)


def shows_nothing(rig: Rig, *more: bytes) -> None:
    rig.control.sock.settimeout(None)
    shown = json.dumps(rig.events) + "".join(part.decode("latin-1") for part in more)
    shown += (rig.directory / "proxy.log").read_text(errors="replace")
    for value in (TOKEN, HOUSE, ENV):
        for form in (value, value[6:20], base64.b64encode(value.encode()).decode()[4:20], value.encode().hex()[8:40]):
            assert form not in shown


FORMS = {
    "body": lambda v: {"body": json.dumps({"text": f"line\n{v}\n"}).encode()},
    "gzip": lambda v: {"body": gzip.compress(v.encode()), "headers": {"Content-Encoding": "gzip"}},
    "base64": lambda v: {"body": base64.b64encode(b"some words, " + v.encode())},
    "multipart": lambda v: {
        "body": f'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n{v}\r\n--b--\r\n'.encode(),
        "headers": {"Content-Type": "multipart/form-data; boundary=b"},
    },
    "a file behind sixteen others": lambda v: {
        "body": b"".join(b"--b\r\n\r\n" + gzip.compress(t) + b"\r\n" for t in (*[b"clean"] * 16, v.encode())),
        "headers": {"Content-Type": "multipart/form-data; boundary=b"},
    },
    "path": lambda v: {"path": f"/files/{v}"},
    "query": lambda v: {"path": "/?q=" + "".join(f"%{ord(c):02x}" for c in v)},
    "header x-note": lambda v: {"headers": {"X-Note": f"it is {v}!"}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [TOKEN, HOUSE])
def test_block_refuses_it_everywhere(rig: Rig, form: str, value: str) -> None:
    route(rig, "block")
    request = {"path": "/v1", **FORMS[form](value)}
    where = form if form.startswith("header") or form in {"path", "query"} else "body"
    detector = "github-pat" if value == TOKEN else "exact:credential house"
    refused(rig, rig.request(HOST, **request), "block", where, detector)


def test_without_an_operator_supervise_refuses(rig: Rig) -> None:
    refused(rig, rig.request(HOST, "/v1", json.dumps({"text": TOKEN}).encode()), "unavailable", "body")
    assert rig.request(HOST, "/v1", b'{"text": "nothing"}').status == 200


def test_a_metered_request_is_refused_before_its_hold(rig: Rig) -> None:
    body = ask(messages=[{"role": "user", "content": f"the token is\n{TOKEN}\n"}])
    refused(rig, rig.request(CLAUDE, "/v1/messages", body), "unavailable", "body")
    assert rig.nothing_held()


def answering(rig: Rig, decisions: list[str]) -> list[wire.Propose]:
    """Be the daemon that answers proposals, in this order; what was proposed."""
    told = wire.SetApprovals(rig.control.next_id(), SLOT, rig.run, (), 5)
    assert rig.ask(told).error == ""
    proposed: list[wire.Propose] = []

    def answer() -> None:
        while len(proposed) < len(decisions):
            said = rig.control.recv()
            if isinstance(said, wire.Propose):
                proposed.append(said)
                rig.control.send(wire.Decided(said.id, decisions[len(proposed) - 1]))
            elif isinstance(said, wire.Report):
                rig.events.append(said.event)
                if said.id:
                    rig.control.send(wire.Ack(said.id))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    rig.answering = thread  # type: ignore[attr-defined]
    return proposed


def test_what_is_approved_leaves_and_each_value_is_asked_about(rig: Rig) -> None:
    other = "glpat-aB3dE5gH7jK9mN1pQ3sT"
    body = json.dumps({"a": f"first\n{TOKEN}\n", "b": f"second\n{other}\n", "c": TOKEN}).encode()
    proposed = answering(rig, ["approved", "approved"])
    assert rig.request(HOST, "/v1/x", body).status == 200
    assert rig.upstream.seen[-1].body == body
    rig.answering.join(10)  # type: ignore[attr-defined]
    assert [p.detector for p in proposed] == ["github-pat", "gitlab-pat"]
    assert {(p.host, p.method, p.path, p.where, p.run) for p in proposed} == {(HOST, "POST", "/v1/x", "body", rig.run)}
    assert TOKEN not in repr(proposed) and other not in repr(proposed) and "first" in proposed[0].context
    assert rig.request(HOST, "/v1/y", body).status == 200  # remembered
    assert rig.wait_event(kind="secret", verdict="allowed", reason="approved")


@pytest.mark.parametrize("decision", ["rejected", "timeout", "full", "nobody", "no word of ours"])
def test_what_is_not_approved_does_not_leave(rig: Rig, decision: str) -> None:
    proposed = answering(rig, [decision])
    said = "malformed" if decision == "no word of ours" else decision
    answer = rig.request(HOST, "/v1", f"see\n{TOKEN}\n".encode())
    rig.answering.join(10)  # type: ignore[attr-defined]
    assert len(proposed) == 1
    refused(rig, answer, said, "body")


def test_redact_sends_the_rest(rig: Rig) -> None:
    route(rig, "redact")
    body = json.dumps({"text": f"line\n{TOKEN}\n", "more": [1, {"key": HOUSE}], "b64": "x"}).encode()
    answer = rig.request(
        HOST,
        f"/v1?a=1&q={TOKEN}",
        gzip.compress(body),
        headers={"Content-Encoding": "gzip", "X-Note": f"is {HOUSE} ok"},
    )
    assert answer.status == 200
    seen = rig.upstream.seen[-1]
    assert json.loads(seen.body) == {"text": f"line\n{MARKER}\n", "more": [1, {"key": MARKER}], "b64": "x"}
    assert seen.target == f"/v1?a=1&q={MARKER}" and seen.headers["x-note"] == f"is {MARKER} ok"
    assert "content-encoding" not in seen.headers and seen.headers["content-length"] == str(len(seen.body))
    event = rig.wait_event(kind="secret", verdict="allowed", reason="redacted")
    assert event["detail"]["action"] == "redacted"
    shows_nothing(rig, seen.raw_head, seen.body)


def test_what_cannot_be_redacted_is_refused(rig: Rig) -> None:
    route(rig, "redact")
    refused(rig, rig.request(HOST, f"/{TOKEN}"), "not-redactable", "path")


def test_a_metered_call_of_the_sdk_is_redacted(rig: Rig) -> None:
    route(rig, "redact")
    rig.upstream.script = reply(200, message())
    transport = httpx2.HTTPTransport(
        verify=ssl.create_default_context(cafile=str(rig.ca)), local_address=rig.source, retries=0
    )

    class Here(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            request.extensions["sni_hostname"] = CLAUDE
            request.url = request.url.copy_with(host=rig.address)
            return transport.handle_request(request)

    client = anthropic.Anthropic(api_key="sk-ant-the-job's-own", http_client=httpx2.Client(transport=Here()))
    text = f"my key is\n{TOKEN}\nuse it"
    client.messages.create(model="claude-x", max_tokens=9, messages=[{"role": "user", "content": text}])
    seen = rig.upstream.seen[-1]
    assert json.loads(seen.body)["messages"][0]["content"] == f"my key is\n{MARKER}\nuse it"
    assert "sk-ant-the-job's-own" in " ".join(seen.headers.values())
    assert len(rig.rows(1)) == 1


def test_the_bottles_own_credentials_pass_to_a_host_without_auth_and_the_hosts_never(rig: Rig) -> None:
    own = {"Authorization": f"Bearer {TOKEN}", "X-Api-Key": ENV, "Cookie": f"s={TOKEN}"}
    assert rig.request(HOST, f"/?key={TOKEN}", headers=own).status == 200
    assert rig.request(HOST, "/", json.dumps({"me": TOKEN}).encode(), headers=own).status == 200
    rig.upstream.seen.clear()
    answer = rig.request(HOST, "/", headers={"Authorization": f"Bearer {HOUSE}"})
    refused(rig, answer, "unavailable", "header authorization", "exact:credential house")


def test_headers_that_the_route_exempts(rig: Rig) -> None:
    route(rig, "block", scan_headers_except=("x-note",))
    assert rig.request(HOST, "/", headers={"X-Note": TOKEN}).status == 200
    rig.upstream.seen.clear()
    refused(rig, rig.request(HOST, "/", headers={"X-Other": TOKEN}), "block", "header x-other")


def test_the_routes_own_credential_is_no_finding(rig: Rig) -> None:
    route(rig, "block", auth_header="x-api-key", auth_credential="house")
    given = wire.SetCredentials(rig.control.next_id(), SLOT, rig.run, {"house": HOUSE})
    assert rig.ask(given).error == ""
    assert rig.request(HOST, "/", headers={"X-Api-Key": TOKEN}).status == 200  # the client's word for it stays behind
    assert rig.upstream.seen[-1].headers["x-api-key"] == HOUSE


@pytest.mark.parametrize("target", ["/a%0d%0aX-Evil:%201", "/?q=%0d%0aHost:%20evil", "/a%250ab"])
def test_line_ends_are_refused_whatever_the_route_says(rig: Rig, target: str) -> None:
    route(rig, "redact")
    answer = rig.request(HOST, target)
    assert answer.status == 403 and answer.json["error"]["decision"] == "crlf"
    assert rig.upstream.seen == [] and rig.wait_event(kind="secret", reason="crlf")


@pytest.mark.parametrize(("coding", "body"), [("gzip", gzip.compress(bytes(80 << 20))), ("rot13", b"text")])
def test_bombs_and_unknown_codings_are_refused(rig: Rig, coding: str, body: bytes) -> None:
    answer = rig.request(HOST, "/", body, headers={"Content-Encoding": coding})
    assert answer.status == 400 and answer.json["error"]["decision"] == "encoding" and rig.upstream.seen == []


# ── uploads whose length nobody knows ──


def chunked(rig: Rig, pieces: list[bytes], **headers: str) -> Response | None:
    """None: the connection was closed without an answer."""
    sock = rig.connect(HOST)
    lines = {"Host": HOST, "Transfer-Encoding": "chunked"} | {k.replace("_", "-"): v for k, v in headers.items()}
    try:
        sock.sendall(("POST /up HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode())
        for piece in pieces:
            sock.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
    except OSError:
        pass
    try:
        return Response.read(sock)
    except (OSError, IndexError):
        return None
    finally:
        sock.close()


def test_a_clean_upload_arrives_whole(rig: Rig) -> None:
    pieces = [bytes([97 + n % 26]) * (1 + n * 997 % 30_000) for n in range(60)]
    answer = chunked(rig, pieces)
    assert answer is not None and answer.status == 200
    assert rig.upstream.seen[-1].body == b"".join(pieces)


@pytest.mark.parametrize("outbound", ["block", "redact", "supervise"])
def test_an_upload_is_broken_off_before_the_value_leaves(rig: Rig, outbound: str) -> None:
    route(rig, outbound)
    pieces = [b"." * 20_000] * 5 + [b" " + TOKEN[:15].encode(), TOKEN[15:].encode() + b" "] + [b"." * 20_000] * 5
    answer = chunked(rig, pieces)
    event = rig.wait_event(kind="secret", reason="stream")
    assert event["verdict"] == "refused" and event["detail"]["where"] == "body"
    assert rig.upstream.seen == [], "the server has no whole request"
    if answer is not None:
        assert answer.status == 403 and answer.json["error"]["decision"] == "stream"
    shows_nothing(rig)
    assert rig.request(HOST, "/", b"after that").status == 200


@pytest.mark.parametrize("size", [100, 50_000])
def test_a_packed_upload_is_searched_as_what_it_holds(rig: Rig, size: int) -> None:
    """`curl -T - < file.tar.gz`: no coding is told, and pieces end anywhere."""
    route(rig, "block")
    noise = random.Random(7).randbytes(size).hex().encode()
    clean, file = gzip.compress(noise), gzip.compress(noise + b" " + TOKEN.encode() + b" " + noise)
    answer = chunked(rig, [clean[at : at + 9_999] for at in range(0, len(clean), 9_999)])
    assert answer is not None and answer.status == 200 and rig.upstream.seen[-1].body == clean
    rig.upstream.seen.clear()
    answer = chunked(rig, [file[at : at + 9_999] for at in range(0, len(file), 9_999)])
    assert answer is None or answer.json["error"]["decision"] == "stream"
    assert rig.upstream.seen == [] and rig.wait_event(kind="secret", reason="stream")


def test_approved_many_times_over_it_hides_no_other(rig: Rig) -> None:
    proposed = answering(rig, ["approved", "rejected"])
    text = "\n".join([TOKEN] * 400) + "\nglpat-aB3dE5gH7jK9mN1pQ3sT\n"
    answer = rig.request(HOST, "/v1", text.encode())
    rig.answering.join(10)  # type: ignore[attr-defined]
    assert answer.status == 403 and rig.upstream.seen == []
    assert {p.detector for p in proposed} == {"github-pat", "too-many-candidates"}


def test_neither_method_nor_transfer_coding_carries_anything(rig: Rig) -> None:
    route(rig, "block")
    assert rig.request(HOST, "/", method=TOKEN).status == 400
    assert rig.request(HOST, "/", method="gEt").status == 200 and rig.upstream.seen.pop().method == "GET"
    for coding in ("gzip, chunked", "deflate, chunked"):
        answer = chunked(rig, [zlib.compress(TOKEN.encode())], Transfer_Encoding=coding)
        assert answer is not None and answer.status == 400
    assert rig.upstream.seen == []
    assert TOKEN[:12] not in json.dumps(rig.events)


def test_the_head_of_an_upload_is_held_as_well(rig: Rig) -> None:
    route(rig, "block")
    answer = chunked(rig, [b"nothing"], X_Note=TOKEN)
    assert answer is not None
    refused(rig, answer, "block", "header x-note")


def test_an_upload_in_a_coding_is_refused(rig: Rig) -> None:
    answer = chunked(rig, [gzip.compress(b"a" * 100)], Content_Encoding="gzip")
    assert answer is not None and answer.status == 400 and answer.json["error"]["decision"] == "encoding"
    assert rig.upstream.seen == []


def test_http2_is_held_and_redacted_as_well(rig: Rig) -> None:
    route(rig, "redact")
    context = ssl.create_default_context(cafile=str(rig.ca))
    transport = httpx2.HTTPTransport(verify=context, http2=True, local_address=rig.source)

    def stream() -> Iterator[bytes]:
        yield b"." * 30_000
        yield b" " + TOKEN.encode() + b" "
        yield b"." * 30_000

    with httpx2.Client(transport=transport, timeout=10, headers={"Host": HOST}) as client:
        url, sni = f"https://{rig.address}/v1", {"sni_hostname": HOST}
        answer = client.post(url, json={"text": f"a\n{TOKEN}\n", "b": "é"}, extensions=sni)
        assert answer.status_code == 200
        assert json.loads(rig.upstream.seen[-1].body) == {"text": f"a\n{MARKER}\n", "b": "é"}
        rig.upstream.seen.clear()
        try:
            answer = client.post(url, content=stream(), extensions=sni)
            assert answer.status_code == 403
        except httpx2.HTTPError:
            pass
    assert rig.upstream.seen == [] and rig.wait_event(kind="secret", reason="stream")


def test_curl(rig: Rig, tmp_path: Path) -> None:
    route(rig, "block")
    file = tmp_path / "file.env"
    file.write_text(f"GITHUB={TOKEN}\n" + "x" * 100_000)
    done = subprocess.run(
        [
            "curl", "-sS", "--interface", rig.source, "--cacert", str(rig.ca),
            "--connect-to", f"{HOST}:443:{rig.address}:443", "-F", f"f=@{file}", "-w", "%{http_code}", "-m", "10", f"https://{HOST}/up",
        ],
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    assert done.stdout.endswith("403") and TOKEN not in done.stdout
    assert rig.upstream.seen == []


def test_paths_in_other_events_have_no_values(rig: Rig) -> None:
    rig.bottle(f"https://{HOST}/only", inspected=(HOST,), log="full")
    rig.request(HOST, f"/elsewhere/{TOKEN}")
    event = rig.wait_event(kind="request", verdict="refused")
    assert event["detail"]["path"] == f"/elsewhere/{MARKER}"
    shows_nothing(rig)


def test_other_rules_are_taken_while_it_runs_and_bad_ones_are_not(rig: Rig) -> None:
    route(rig, "block")
    mine = b"[[rules]]\nid = 'house'\nregex = '''\\b(HS-[A-Z0-9]{12})\\b'''\n"

    def use(text: bytes) -> str:
        return str(rig.ask(wire.SetRules(rig.control.next_id(), "own.toml", text)).error)

    try:
        assert use(mine) == ""
        assert rig.request(HOST, "/", TOKEN.encode()).status == 200
        rig.upstream.seen.clear()
        refused(rig, rig.request(HOST, "/", b"see HS-A1B2C3D4E5F6"), "block", "body", "house")
        assert "own.toml:3: regex" in use(b"[[rules]]\nid = 'x'\nregex = '('\n")
        assert "rule 'x'" in use(b"[[rules]]\nid = 'x'\nregex = '(?U)a+'\n")
        assert rig.request(HOST, "/", b"see HS-A1B2C3D4E5F6").status == 403
    finally:
        assert use(b"") == ""
    assert rig.request(HOST, "/", TOKEN.encode()).status == 403
