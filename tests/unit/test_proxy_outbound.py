"""Searching requests: heads, bodies in their codings, growing conversations, uploads in pieces; and what is said."""

from __future__ import annotations

import gzip
import json
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon import wire
from agentmon.dlp import scanner as dlp
from agentmon.dlp.scanner import Detector, Finding, Scanner
from agentmon.proxy import outbound, outbound_head, search
from agentmon.proxy.clean import STEP, Clean
from agentmon.proxy.outbound import Decision, Outcome
from agentmon.proxy.outbound_head import Head
from agentmon.proxy.search import Searches, Window

KNOWN = "sk-planted-house-0815"
TOKEN = "ghp_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5"


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return dlp.detector(keep=tmp_path_factory.mktemp("dlp"))


@pytest.fixture(scope="session")
def scanner(detector: Detector) -> Scanner:
    return Scanner(detector, {"env OWN_KEY": b"own-key-of-the-job-4711", "credential house": KNOWN.encode()}, b"k")


def head(target: str = "/", own: bool = False, **headers: str) -> Head:
    fields = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    return Head(target, fields, own, frozenset({"x-exempt"}))


@pytest.mark.parametrize(
    ("given_head", "where"),
    [
        (head(f"/files/{TOKEN}"), "path"),
        (head(f"/?q={TOKEN}&a=1"), "query"),
        (head("/?q=" + "".join(f"%{ord(c):02x}" for c in TOKEN)), "query"),
        (head(x_note=f"see {TOKEN} there"), "header x-note"),
        (head(authorization=f"Bearer {TOKEN}"), "header authorization"),
        (Head("/", ((TOKEN.encode(), b"a"),)), "name of a header"),
        (head(own=True, authorization=f"Bearer {KNOWN}"), "header authorization"),
        (head(f"/?key={KNOWN}", own=True), "query"),
    ],
)
def test_a_head_is_searched_everywhere(scanner: Scanner, given_head: Head, where: str) -> None:
    assert {f.where for f in outbound_head.scan(scanner, given_head)} == {where}


@pytest.mark.parametrize(
    "given_head",
    [
        head(own=True, authorization=f"Bearer {TOKEN}", x_api_key="own-key-of-the-job-4711", cookie=f"s={TOKEN}"),
        head(f"/v1?key={TOKEN}&a=b", own=True),
        head(x_exempt=TOKEN),
        head(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==", idempotency_key="8e03978e-40d5-43e8-bc93-6894a57f9324"),
        head("/v1/messages?beta=true", user_agent="Anthropic/Python 2.11.0", anthropic_version="2023-06-01"),
    ],
)
def test_what_passes_in_a_head(scanner: Scanner, given_head: Head) -> None:
    assert outbound_head.scan(scanner, given_head) == ()


def test_redacting_a_head(scanner: Scanner) -> None:
    given_head = head(f"/x?a=1&q={TOKEN}&b=2", x_a="first", x_note=f"see {TOKEN} there", x_z="last")
    clean = outbound_head.redact(given_head, outbound_head.scan(scanner, given_head))
    assert clean is not None and clean.target == "/x?a=1&q=REDACTED-BY-AGENTMON&b=2"
    assert clean.headers == ((b"x-a", b"first"), (b"x-note", b"see REDACTED-BY-AGENTMON there"), (b"x-z", b"last"))
    in_host = (Finding("own", "host", 0, 5, b""),)
    assert outbound_head.redact(head("/x"), in_host) is None
    for stays in (head(f"/{TOKEN}"), Head("/", ((TOKEN.encode(), b"a"),))):
        assert outbound_head.redact(stays, outbound_head.scan(scanner, stays)) is None


@pytest.mark.parametrize(
    ("target", "headers", "where"),
    [
        ("/a%0d%0ax", (), "path"), ("/a%250aX-Evil:1", (), "path"), ("/a%00", (), "path"),
        ("/?q=a%0d%0aX-Evil:%201", (), "query"), ("/?q=a%0d%0a%0d%0aGET%20/", (), "query"),
        ("/?q=%0aHost:%20evil", (), "query"), ("/", ((b"x-a", b"b\r\nx-evil: 1"),), "header x-a"),
        ("/", ((b"x-a\n", b"b"),), "header x-a?"), ("/", ((b"x-a", b"b\0"),), "header x-a"),
        ("/?text=line%20one%0d%0aline%20two", (), ""), ("/a/b%20c?x=%25", ((b"x-a", b"b: c"),), ""),
    ],
)  # fmt: skip
def test_line_ends_that_split_a_request(target: str, headers: tuple[tuple[bytes, bytes], ...], where: str) -> None:
    assert outbound_head.split_attempt(target, headers) == where


CODINGS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
    "": gzip.compress,
    "identity": lambda data: data,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_every_coding_is_searched(scanner: Scanner, coding: str) -> None:
    body = CODINGS[coding](json.dumps({"text": f"see\n{TOKEN}"}).encode())
    found = search.search(scanner, Clean(), "r", "h", body, coding, False)
    assert [f.detector for f in found.findings] == ["github-pat"] and not found.inside


def test_what_lies_beside_or_in_a_packed_body(scanner: Scanner) -> None:
    beside = gzip.compress(b"nothing") + b" " + TOKEN.encode() + b" "
    assert search.search(scanner, Clean(), "r", "h", beside, "gzip", False).inside
    part = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + gzip.compress(KNOWN.encode()) + b"\r\n--b--\r\n"
    assert search.search(scanner, Clean(), "r", "h", part, "", False).inside


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (gzip.compress(bytes(200 << 20), 9), "gzip"),
        (b"x", "compress"),
        (b"x", "gzip, x-own"),
    ],
)
def test_what_cannot_be_read_does_not_go(scanner: Scanner, body: bytes, coding: str) -> None:
    assert search.search(scanner, Clean(), "r", "h", body, coding, False).plain is None


class Counting:
    """A scanner that notes how much it was given."""

    def __init__(self, inner: Scanner) -> None:
        self.inner, self.sizes = inner, []

    def scan(self, data: bytes, where: str, *, form: bool = False, since: int = 0) -> tuple[Finding, ...]:
        self.sizes.append(len(data) - since)
        return self.inner.scan(data, where, form=form, since=since)


def test_of_a_growing_conversation_the_end_is_searched(scanner: Scanner) -> None:
    counting, clean = Counting(scanner), Clean()
    turn = "a turn of the conversation, some words long. " * 40

    def of(n: int, more: str = "") -> bytes:
        return json.dumps({"messages": [f"{k} {turn}" for k in range(n)] + [more]}).encode()

    def look(body: bytes, run: str = "r", host: str = "h") -> tuple[Finding, ...]:
        return search.search(counting, clean, run, host, body, "", False).findings  # type: ignore[arg-type]

    assert look(of(100)) == () and look(of(102)) == ()
    assert counting.sizes[0] == len(of(100)) > 150_000 and counting.sizes[1] < 40_000
    (found,) = look(of(102, f"\n{TOKEN}\n"))
    assert of(102, f"\n{TOKEN}\n")[found.start : found.end] == TOKEN.encode()
    (found,) = look(of(102, f"\n{TOKEN}\n"))  # what had a finding is not taken for clean
    assert look(of(103), host="other") == () and counting.sizes[-1] > 150_000
    assert look(of(103), run="other") == () and counting.sizes[-1] > 150_000
    clean.forget("r")
    assert look(of(102)) == () and counting.sizes[-1] > 150_000


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6 * STEP), st.integers(0, 200), st.integers(1, 3 * STEP))
def test_a_value_is_found_wherever_the_old_part_ends(scanner: Scanner, at: int, split: int, more: int) -> None:
    """Also where its first half was there before, and nothing."""
    clean = Clean()
    before, after = b"." * at + b" ", b" " + b"." * more
    value = TOKEN.encode()
    first = before + value[: split % len(value)]
    search.search(scanner, clean, "r", "h", first, "", False)
    body = before + value + after
    assert [f.detector for f in search.search(scanner, clean, "r", "h", body, "", False).findings] == ["github-pat"]


def _through(scanner: Scanner, window: Window, pieces: list[bytes]) -> tuple[bytes, bool]:
    """What left, and whether the end was reached."""
    out = b""
    for piece in pieces:
        text = window.take(piece)
        if text:
            if scanner.scan(text, "body"):
                return out, False
            window.passed()
        out += b"".join(window(piece))
    text = window.end()
    if text and scanner.scan(text, "body"):
        return out, False
    window.passed()
    return out + b"".join(window(b"")), True


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20_000), max_size=12), st.booleans())
def test_an_upload_arrives_whole(scanner: Scanner, sizes: list[int], holds: bool) -> None:
    pieces = [bytes([97 + n % 26]) * size for n, size in enumerate(sizes)]
    out, ended = _through(scanner, Window(holds=holds), pieces)
    assert ended and out == b"".join(pieces)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60_000), st.integers(1, 9000), st.integers(0, 30_000))
def test_nothing_of_a_value_leaves_in_pieces(scanner: Scanner, before: int, size: int, after: int) -> None:
    body = b"." * before + b" " + TOKEN.encode() + b" " + b"." * after
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    out, ended = _through(scanner, Window(holds=True), pieces)
    assert not ended and b"ghp_" not in out


def test_a_dialogue_is_not_held_back(scanner: Scanner) -> None:
    window = Window(holds=False)
    assert window.take(b"ask 1") == b"ask 1" and window(b"") == []  # not before it was searched
    window.passed()
    assert window(b"") == [b"ask 1"]
    assert window.take(TOKEN[:20].encode()) == b"ask 1" + TOKEN[:20].encode()
    window.passed()
    assert window(b"") == [TOKEN[:20].encode()]
    assert TOKEN.encode() in window.take(TOKEN[20:].encode())


def test_scanners_follow_what_is_told(detector: Detector) -> None:
    searches = Searches(detector)
    assert searches.of(7, "run 1").scan(KNOWN.encode(), "body") == ()
    searches.give(7, "run 1", b"key", {"credential house": KNOWN})
    assert searches.of(7, "run 1").scan(KNOWN.encode(), "body")
    assert searches.of(7, "run 1") is searches.of(7, "run 1")
    assert searches.of(7, "run 2").scan(KNOWN.encode(), "body") == (), "another run's are not its own"
    before = searches.of(7, "run 1").digest(b"x")
    searches.use(detector)
    assert searches.of(7, "run 1").digest(b"x") == before, "approvals outlive new rules"
    searches.drop(7)
    assert searches.of(7, "run 1").scan(KNOWN.encode(), "body") == ()


def test_what_the_agent_reads(scanner: Scanner) -> None:
    (finding,) = scanner.scan(f"a note {TOKEN} here".encode(), "body")
    reasons = [*(d for d in Decision if d is not Decision.APPROVED), Outcome.BLOCKED, Outcome.NOT_REDACTABLE]
    errors = [outbound.refusal(finding, reason, "h.example", "crate") for reason in reasons]
    assert len({e["message"] for e in errors}) == len({e["decision"] for e in errors}) == len(reasons)
    for error in errors:
        assert error["type"] == "egress_denied" and "github-pat" in error["message"] and error["hint"]
        assert TOKEN not in json.dumps(error) and TOKEN[4:20] not in json.dumps(error)


def test_what_a_route_says() -> None:
    plain = wire.Route("h", scan_headers_except=("Cookie",))
    auth = wire.Route("h", auth_header="x-api-key", auth_credential="house", outbound="block")
    assert outbound.action_of(None) == outbound.action_of(plain) == "supervise" and outbound.action_of(auth) == "block"
    assert outbound.has_own(None) and outbound.has_own(plain) and not outbound.has_own(auth)
    assert outbound.unscanned(plain) == {"cookie"} and outbound.unscanned(auth) == {"x-api-key"}
