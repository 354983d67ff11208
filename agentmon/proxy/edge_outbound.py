"""What a bottle sends, held to its route's `outbound:` before any of it leaves. Searches run in threads.

requestheaders  an upload of unknown length: its head now, its body by Window while it passes
request         all others: head and body together; refused, rewritten, or held while an operator is asked
message         of a WebSocket
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec
from mitmproxy import http

from agentmon.dlp.scanner import Finding, Scanner, redacted
from agentmon.providers.declaration import Signing
from agentmon.proxy import outbound, outbound_head, search
from agentmon.proxy.bottles import Bottles
from agentmon.proxy.decide import Allow
from agentmon.proxy.edge_connection import BODY_BYTES
from agentmon.proxy.edge_layers import Ending
from agentmon.proxy.edge_live import Live, Refusal, answer
from agentmon.proxy.outbound import Ask, Decision, Outcome, Reason
from agentmon.proxy.outbound_head import Head
from agentmon.proxy.search import Searched, Searches, Window
from agentmon.proxy.sightings import Sightings
from agentmon.proxy.turns import Turns
from agentmon.proxy.unpacked import Unpacker, Unsearchable

_INLINE_BYTES = 8 << 10  # searched at once: a thread would take longer to wake
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_SHOWN_CHARS = 200

T = TypeVar("T")


class Outbound:
    """For one worker."""

    def __init__(self, searches: Searches, bottles: Bottles, sightings: Sightings, ask: Ask) -> None:
        self._searches = searches
        self._bottles = bottles
        self._sightings = sightings
        self._ask = ask
        self._turns = Turns()
        sightings.shown = self.shown

    def passes_through(self, request: http.Request) -> bool:
        """Whether the body is too long to be collected, or may be endless."""
        length = request.headers.get("content-length", "")
        if length.isdigit():
            return int(length) > BODY_BYTES
        return "transfer-encoding" in request.headers or (request.is_http2 and request.method not in _BODILESS)

    def shown(self, slot: int, text: str) -> str:
        """A host or path for an event: what is found in it left out."""
        bottle = self._bottles.at(slot)
        if bottle is None or not text:
            return text[:_SHOWN_CHARS]
        data = text[: 8 << 10].encode("utf-8", "surrogateescape")
        findings = self._scanner(bottle.view.slot, bottle.view.run).scan(data, "path")
        return redacted(data, findings).decode("utf-8", "replace")[:_SHOWN_CHARS]

    # ── whole requests ──

    async def whole(self, live: Live, allow: Allow) -> Refusal | None:
        """Search head, body and trailers; the refusal, or None where the request may go, rewritten if need be."""
        request = live.flow.request
        raw = request.raw_content or b""
        coding = request.headers.get("content-encoding", "")
        form = request.headers.get("content-type", "").lower().startswith("application/x-www-form-urlencoded")
        scanner = self._scanner_of(live)
        run, clean = live.bottle.view.run, self._searches.clean
        heads = [_head(request, allow)]
        if request.trailers:
            heads.append(Head("", tuple(request.trailers.fields), unscanned=heads[0].unscanned))

        def look() -> tuple[list[tuple[Finding, ...]], Searched]:
            found = [outbound_head.scan(scanner, head) for head in heads]
            host = scanner.scan(allow.host.encode(), "host")
            found[0] = (*host, *found[0])
            return found, search.search(scanner, clean, run, allow.host, raw, coding, form)

        found, body = await self._off_the_loop(live, _work(request, raw, coding), look)
        if body.plain is None:
            return await self._encoding(live, allow)
        first, *rest = found
        own = self._own_digests(scanner, heads[0])
        in_body = tuple(f for f in body.findings if f.digest not in own)
        inside = tuple(f for f in body.inside if f.digest not in own)
        trailers = tuple(f for more in rest for f in more)
        everything = (*first, *in_body, *inside, *trailers)
        if not everything:
            return None
        plain = body.plain

        def redact() -> bool:
            return not inside and not trailers and _rewrite(request, heads[0], first, plain, in_body, scanner, form)

        return await self._act(live, allow, everything, redact)

    async def head(self, live: Live, allow: Allow) -> Refusal | None:
        """The head alone, of a request whose body will pass through."""
        scanner, head = self._scanner_of(live), _head(live.flow.request, allow)
        coding = live.flow.request.headers.get("content-encoding", "")
        if coding and coding.lower() != "identity":
            return await self._encoding(live, allow)
        findings = (*scanner.scan(allow.host.encode(), "host"), *outbound_head.scan(scanner, head))
        if not findings:
            return None
        return await self._act(
            live, allow, findings, lambda: _rewrite(live.flow.request, head, findings, b"", (), scanner, False)
        )

    async def split(self, live: Live, allow: Allow) -> Refusal | None:
        """Line ends where there can be none, in what the client wrote."""
        request = live.flow.request
        where = outbound_head.split_attempt(request.path, request.headers.fields)
        if not where:
            return None
        finding = Finding("line-end", where, 0, 0, b"", "")
        await self._tell(live, allow, finding, Outcome.SPLIT)
        return 403, outbound.split_refusal(where, allow.host)

    # ── uploads that pass through ──

    def window(self, request: http.Request) -> Window[Ending]:
        return Window(holds=not request.headers.get("content-type", "").lower().startswith("application/grpc"))

    async def piece(self, live: Live, window: Window[Ending]) -> Ending | None:
        """Search what has come of an upload; how it ends, or None where this may leave."""
        allow, text, trailers = live.verdict, window.text, live.flow.request.trailers
        assert isinstance(allow, Allow)
        scanner = self._scanner_of(live)
        head = Head("", tuple(trailers.fields) if trailers else (), unscanned=outbound.unscanned(allow.route))

        def look() -> tuple[Finding, ...]:
            found = [f for part in (text, *window.inside()) for f in scanner.scan(part, "body")]
            return (*found, *(outbound_head.scan(scanner, head) if trailers else ()))

        with live.connection.deciding():
            try:
                findings = await self._off_the_loop(live, _INLINE_BYTES + 1 if window.packed else len(text), look)
            except Unsearchable:
                live.ours = True
                return Ending(answer(*await self._encoding(live, allow)), None)
        if not findings:
            window.passed()
            return None
        await self._tell(live, allow, findings[0], Outcome.STREAM)
        live.ours = True
        error = outbound.refusal(findings[0], Outcome.STREAM, allow.host, live.bottle.view.bottle)
        return Ending(answer(403, error), None)

    # ── WebSockets ──

    async def message(self, live: Live, content: bytes) -> tuple[Refusal | None, bytes]:
        """One message of the client: the refusal, or what is sent in its place (mostly itself)."""
        allow = live.verdict
        assert isinstance(allow, Allow)
        scanner = self._scanner_of(live)

        def look() -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
            packed = filter(None, Unpacker().feed(content))
            return scanner.scan(content, "message"), tuple(f for text in packed for f in scanner.scan(text, "message"))

        try:
            findings, inside = await self._off_the_loop(live, _work_of(content), look)
        except Unsearchable:
            return await self._encoding(live, allow), content
        if not findings and not inside:
            return None, content
        sent = [content]

        def redact() -> bool:
            sent[0] = redacted(content, findings)
            return not inside and not scanner.scan(sent[0], "message") and _still_json(content, sent[0])

        return await self._act(live, allow, (*findings, *inside), redact), sent[0]

    # ── what is done ──

    async def _act(
        self, live: Live, allow: Allow, findings: tuple[Finding, ...], redact: Callable[[], bool]
    ) -> Refusal | None:
        action = outbound.action_of(allow.route)
        if action == "redact":
            if not _signed(live.flow.request, allow) and redact():
                for finding in _by_detector(findings):
                    await self._tell(live, allow, finding, Outcome.REDACTED)
                return None
            return await self._refuse(live, allow, findings[0], Outcome.NOT_REDACTABLE)
        if action == "block":
            return await self._refuse(live, allow, findings[0], Outcome.BLOCKED)
        return await self._supervise(live, allow, findings)

    async def _supervise(self, live: Live, allow: Allow, findings: tuple[Finding, ...]) -> Refusal | None:
        """Ask for each value in turn; the first that is not approved refuses the request."""
        view, request = live.bottle.view, live.flow.request
        path = self.shown(view.slot, allow.path)
        for finding in {f.digest: f for f in reversed(findings)}.values():
            proposal = outbound.proposal(view.slot, view.run, allow.host, request.method[:20], path, finding)
            decision = await self._ask(proposal, lambda: self._wanted(live))
            if decision is Decision.APPROVED and not self._wanted(live):
                decision = Decision.GONE
            if decision is not Decision.APPROVED:
                return await self._refuse(live, allow, finding, decision)
            await self._tell(live, allow, finding, decision)
        return None

    def _wanted(self, live: Live) -> bool:
        now = self._bottles.at(live.connection.slot)
        same = now is not None and now.view.run == live.bottle.view.run and not now.cut
        return same and live.awaited

    async def _refuse(self, live: Live, allow: Allow, finding: Finding, reason: Reason) -> Refusal:
        await self._tell(live, allow, finding, reason)
        return 403, outbound.refusal(finding, reason, allow.host, live.bottle.view.bottle)

    async def _encoding(self, live: Live, allow: Allow) -> Refusal:
        await self._tell(live, allow, Finding("undecodable", "body", 0, 0, b"", ""), Outcome.ENCODING)
        return 400, outbound.encoding_refusal(allow.host)

    async def _tell(self, live: Live, allow: Allow, finding: Finding, reason: Reason) -> None:
        connection = live.connection
        named = self._sightings.secret(connection.slot, connection.source, allow, live.facts, finding, reason)
        if named is not None:
            await named

    # ── searching ──

    async def _off_the_loop(self, live: Live, size: int, look: Callable[[], T]) -> T:
        if size <= _INLINE_BYTES:
            return look()
        return await self._turns.run(live.connection.slot, look)

    def _scanner_of(self, live: Live) -> Scanner:
        return self._scanner(live.bottle.view.slot, live.bottle.view.run)

    def _scanner(self, slot: int, run: str) -> Scanner:
        return self._searches.of(slot, run)

    def _own_digests(self, scanner: Scanner, head: Head) -> frozenset[bytes]:
        """Of the credentials that the bottle shows this host: what the host gets anyway may be in the body as well."""
        if not head.own:
            return frozenset()
        values = outbound_head.own_values(head)
        return frozenset(scanner.digest(value) for value in values)


def _work(request: http.Request, raw: bytes, coding: str) -> int:
    """Bytes to be searched, at least; what may have to be unpacked counts as many."""
    if coding or raw.startswith(b"\x28\xb5\x2f\xfd"):
        return _INLINE_BYTES + 1
    return _work_of(raw) + len(request.path) + sum(len(name) + len(value) for name, value in request.headers.fields)


def _work_of(content: bytes) -> int:
    return _INLINE_BYTES + 1 if b"\x1f\x8b" in content else len(content)


def _head(request: http.Request, allow: Allow) -> Head:
    return Head(
        request.path, tuple(request.headers.fields), outbound.has_own(allow.route), outbound.unscanned(allow.route)
    )  # fmt: skip


def _rewrite(
    request: http.Request,
    head: Head,
    in_head: Iterable[Finding],
    plain: bytes,
    in_body: Iterable[Finding],
    scanner: Scanner,
    form: bool,
) -> bool:
    """Put markers where values were; False, with the request as it was, where something would stay or break."""
    in_head, in_body = tuple(in_head), tuple(in_body)
    clean_head = outbound_head.redact(head, in_head) if in_head else None
    body = redacted(plain, in_body)
    if in_head:
        if clean_head is None:
            return False
        again = Head(clean_head.target, clean_head.headers, head.own, head.unscanned)
        if outbound_head.scan(scanner, again):
            return False
    if in_body and (scanner.scan(body, "body", form=form) or not _still_json(plain, body)):
        return False
    if clean_head is not None:
        request.path = clean_head.target
        request.headers.fields = clean_head.headers
    if in_body:
        for header in ("content-encoding", "transfer-encoding", "content-md5", "digest", "content-digest"):
            request.headers.pop(header, None)
        request.raw_content = body
        request.headers["content-length"] = str(len(body))
    return True


def _still_json(before: bytes, after: bytes) -> bool:
    """What was JSON is JSON."""
    return not _is_json(before) or _is_json(after)


def _is_json(data: bytes) -> bool:
    if data.lstrip()[:1] not in (b"{", b"[", b'"'):
        return False
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def _signed(request: http.Request, allow: Allow) -> bool:
    """Whether the server would find out that it was changed, and refuse what could have been sent elsewise."""
    if allow.provider is not None and allow.provider.signing is not Signing.UNSIGNED:
        return True
    return request.headers.get("authorization", "").startswith("AWS4-") or "signature" in request.headers


def _by_detector(findings: Iterable[Finding]) -> list[Finding]:
    """One of each detector and place: what is told of many."""
    return list({(f.detector, f.where): f for f in findings}.values())
