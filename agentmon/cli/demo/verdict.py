"""From what was seen to the contract's JSON, and to a list of what is not as it should be. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentmon.cli.demo import look
from agentmon.cli.demo.play import BUDGET, Seen

CUT_WITHIN_MS = 20.0
SEEN_WITHIN_MS = 250.0  # by the job itself, which needs a turn on a processor to notice
GIVE_UP_WITHIN_MS = 2000.0
_CALLS = [("anthropic", False), ("anthropic", True), ("openai", True), ("curl", False), ("curl", False)]
_ATTEMPTS = ["curl", "ctypes-connect", "udp-sendto", "dns"]


def as_json(seen: Seen) -> dict[str, Any]:
    """`agentmon demo --json`."""
    detail = seen.cut.get("detail") or {}
    return {
        "ready_ms": seen.ready_ms,
        "start": seen.start,
        "calls": [_call(call) for call in seen.calls],
        "refused": [refusal(seen, attempt) for attempt in seen.attempts],
        "cutoff": {
            "scope": detail.get("scope"),
            "budget": detail.get("tokens"),
            "used": detail.get("used"),
            "latency_ns": latency_ns(seen),
            "stream_ended_ns_after": stream_ended_ns_after(seen),
            "status": seen.cut.get("status"),
            "type": seen.cut.get("type"),
            "stream": seen.cut.get("stream"),
            "refused_after_ms": seen.cut.get("refused_after_ms"),
            "resumed": seen.resumed.get("status") == 200,
        },
        "ledger": ledger(seen),
        "refused_by_layer": seen.summary.get("refused", {}),
        "leftovers": seen.leftovers,
    }


def _call(call: dict[str, Any]) -> dict[str, Any]:
    return {key: call.get(key) for key in ("client", "host", "streamed", "status", "input", "output")}


def refusal(seen: Seen, attempt: dict[str, Any]) -> dict[str, Any]:
    """One attempt, the bytes that its receiver saw of it, and the event that tells of it."""
    return {
        "attempt": attempt["attempt"],
        "receiver_bytes": received(seen, attempt),
        "event": next((event for event in seen.events if _is_of(event, attempt)), None),
    }


def received(seen: Seen, attempt: dict[str, Any]) -> int:
    """Bytes at the destination; for a name also the queries that got out, one byte each at the least."""
    addresses = seen.counters.get("forbidden", {})
    if "dst" in attempt:
        entry: dict[str, int] = addresses.get(attempt["dst"], {})
        return entry.get("bytes", 0)
    queries = seen.counters.get("dns", {}).items()
    asked = sum(count * len(key) for key, count in queries if key.split()[0] == attempt["host"])
    others = {other["dst"] for other in seen.attempts if "dst" in other}
    leaked = sum(int(seen_there["bytes"]) for address, seen_there in addresses.items() if address not in others)
    return int(asked) + leaked


def _is_of(event: dict[str, Any], attempt: dict[str, Any]) -> bool:
    if event.get("verdict") != "refused":
        return False
    if "dst" in attempt:
        return (event.get("dst"), event.get("port")) == (attempt["dst"], attempt["port"])
    return bool(event.get("host") == attempt["host"])


def latency_ns(seen: Seen) -> int | None:
    """From the commit that crossed the budget to the last of its consequences, as the ledger has it."""
    took = [
        row["latency_ns"] for row in seen.enforcement if row["policy"] == "cutoff" and row["latency_ns"] is not None
    ]
    return int(took[0]) if took else None


def stream_ended_ns_after(seen: Seen) -> int | None:
    """From the usage row that crossed the budget to the end of the stream in flight, by the job's own clock. Both are
    CLOCK_REALTIME of this host."""
    ended = (seen.cut.get("stream") or {}).get("ended_ns")
    used = 0
    for row in sorted(seen.usage, key=lambda row: int(row["id"])):
        used += row["weighted"] if row["provider"] == "claude" else 0
        if used >= BUDGET:
            return int(ended - row["ts_ns"]) if ended else None
    return None


def ledger(seen: Seen) -> dict[str, Any]:
    """Completed calls, row by row as the provider has them; what was cut off in the middle is an estimate, apart."""
    calls = {call["id"]: call for call in seen.counters.get("served", {}).get("calls", [])}
    complete = [row for row in seen.usage if row["complete"]]
    cut = [row for row in seen.usage if not row["complete"]]
    return {
        "tokens": sum(map(_tokens, complete)),
        "provider_tokens": sum(_tokens(call) for call in calls.values() if call["complete"]),
        "cut_off": {
            "tokens": sum(map(_tokens, cut)),
            "provider_tokens": sum(_tokens(call) for call in calls.values() if not call["complete"]),
            "sources": sorted({row["source"] for row in cut}),
        },
    }


def _tokens(row: dict[str, Any]) -> int:
    return int(row["input"] + row["cache_read"] + row["cache_write"] + row["output"])


def problems(seen: Seen) -> list[str]:
    """One sentence for everything that is not as it should be."""
    return [
        *_start(seen),
        *_calls(seen),
        *_attempts(seen),
        *_cutoff(seen),
        *_books(seen),
        *(f"left behind: {x}" for x in seen.leftovers),
    ]


def _start(seen: Seen) -> Iterator[str]:
    for name in look.NAMES:
        if not seen.start.get(name):
            yield f"while the bottle ran its {name} could not be seen on this host"


def _calls(seen: Seen) -> Iterator[str]:
    if [(call["client"], call["streamed"]) for call in seen.calls] != _CALLS:
        yield f"expected {len(_CALLS)} calls, saw {len(seen.calls)}"
    for call in seen.calls:
        if call["status"] != 200:
            yield f"{call['client']} to {call['host']}: status {call['status']}: {call.get('error', '')}"


def _attempts(seen: Seen) -> Iterator[str]:
    if [attempt["attempt"] for attempt in seen.attempts] != _ATTEMPTS:
        yield f"expected {len(_ATTEMPTS)} attempts, saw {len(seen.attempts)}"
    for attempt in seen.attempts:
        found = refusal(seen, attempt)
        if attempt["worked"]:
            yield f"{attempt['attempt']} was not refused: {attempt['said']}"
        if found["receiver_bytes"]:
            yield f"{attempt['attempt']}: {found['receiver_bytes']} bytes arrived"
        if found["event"] is None:
            yield f"{attempt['attempt']}: no event tells of it"
        else:
            missing = [name for name in ("pid", "comm", "reason", "layer", "hint") if not found["event"].get(name)]
            if missing:
                yield f"{attempt['attempt']}: its event does not say {', '.join(missing)}"


def _cutoff(seen: Seen) -> Iterator[str]:
    took, gave_up = latency_ns(seen), seen.cut.get("refused_after_ms", GIVE_UP_WITHIN_MS)
    if (seen.cut.get("status"), seen.cut.get("type")) != (403, "budget_exhausted"):
        yield f"after the budget: {seen.cut.get('status')} {seen.cut.get('type')!r}, not 403 budget_exhausted"
    if (seen.cut.get("detail") or {}).get("tokens") != BUDGET:
        yield f"the refusal does not name the budget of {BUDGET} tokens"
    if (seen.cut.get("stream") or {}).get("type") != "budget_exhausted":
        yield f"the stream in flight did not end with budget_exhausted: {seen.cut.get('stream')}"
    if took is None:
        yield "the ledger has no row of the cut with its latency"
    elif took > CUT_WITHIN_MS * 1_000_000:
        yield f"the cut took {took / 1e6} ms, more than {CUT_WITHIN_MS}"
    yield from _stream_end(stream_ended_ns_after(seen))
    if gave_up >= GIVE_UP_WITHIN_MS:
        yield f"the SDK went on for {gave_up} ms after the cut"
    if seen.resumed.get("status") != 200:
        yield f"after resume: {seen.resumed.get('status')} {seen.resumed.get('error', '')}"


def _stream_end(after_ns: int | None) -> Iterator[str]:
    if after_ns is None:
        yield "when the stream in flight ended cannot be compared with the row that crossed the budget"
    elif not 0 <= after_ns <= SEEN_WITHIN_MS * 1_000_000:
        yield f"the job saw its stream end {after_ns / 1e6} ms after the row that crossed, not within {SEEN_WITHIN_MS}"


def _books(seen: Seen) -> Iterator[str]:
    rows = {row["request_id"]: row for row in seen.usage}
    for call in seen.counters.get("served", {}).get("calls", []):
        row = rows.pop(call["id"], None)
        if row is None:
            yield f"the provider served {call['id']} ({_tokens(call)} tokens), the ledger has no row for it"
        elif call["complete"] and _tokens(row) != _tokens(call):
            yield f"{call['id']}: the provider counts {_tokens(call)} tokens, the ledger {_tokens(row)}"
        elif row["input"] != call["input"]:
            yield f"{call['id']}: the provider counts {call['input']} input tokens, the ledger {row['input']}"
    for request_id in rows:
        yield f"the ledger has a row for {request_id}, the provider never served it"
