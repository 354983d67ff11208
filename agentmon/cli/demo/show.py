"""The demo's summary for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agentmon.cli.demo.play import Seen
from agentmon.cli.demo.verdict import as_json, refusal
from agentmon.events import is_command
from agentmon.render.events import sentence


def text(seen: Seen, problems: Sequence[str]) -> str:
    """The five points, in order; `problems` only changes the last line."""
    result = as_json(seen)
    lines = [f"Bottle {seen.bottle}: ready after {result['ready_ms']:.0f} ms", _start(result["start"]), ""]
    lines += ["Allowed", *map(_call, result["calls"]), ""]
    lines += ["Refused", *_refusals(seen), ""]
    lines += ["Budget", *_budget(seen, result["cutoff"]), ""]
    lines += ["Tokens", *_tokens(result["ledger"]), ""]
    layers = ", ".join(f"{layer} {count}" for layer, count in sorted(result["refused_by_layer"].items()))
    lines += [f"Refused by layer: {layers or 'none'}"]
    lines += [f"Left on this host: {len(seen.leftovers) or 'nothing'}"]
    lines += ["", "All as it should be." if not problems else f"NOT as it should be, {len(problems)} findings:"]
    return "\n".join(lines)


def _start(facts: dict[str, Any]) -> str:
    return "In force: " + "; ".join(f"{name} {fact or 'MISSING'}" for name, fact in facts.items())


def _call(call: dict[str, Any]) -> str:
    tokens = "" if call["input"] is None else f"   {call['input']} in, {call['output']} out"
    how = "stream" if call["streamed"] else "plain"
    return f"  {call['client']:<10} {call['host']:<24} {how:<7} {call['status']}{tokens}"


def _refusals(seen: Seen) -> Iterator[str]:
    for attempt in seen.attempts:
        found = refusal(seen, attempt)
        event = found["event"]
        yield f"  {attempt['attempt']:<15} {found['receiver_bytes']} bytes arrived; the agent saw: {attempt['said']}"
        if event is not None:
            yield f"    {sentence(event)}"
            if event.get("hint"):
                yield f"    {'allow it' if is_command(event['hint']) else 'hint'}: {event['hint']}"


def _budget(seen: Seen, cutoff: dict[str, Any]) -> Iterator[str]:
    stream = cutoff["stream"] or {}
    calls, end = seen.cut.get("calls"), stream.get("type") or stream.get("error")
    yield f"  spent {cutoff['used']} of {cutoff['budget']} tokens ({cutoff['scope']}) after {calls} calls"
    took = "an unknown time" if cutoff["latency_ns"] is None else f"{cutoff['latency_ns'] / 1e6:.1f} ms"
    after = cutoff["stream_ended_ns_after"]
    seen_after = "" if after is None else f", which the job saw {after / 1e6:.1f} ms after the row that crossed"
    yield f"  cut off within {took}; stream in flight ended with {end}{seen_after}"
    yield f"  next call: {cutoff['status']} {cutoff['type']} after {cutoff['refused_after_ms']} ms"
    yield f"  after agentmon resume {seen.bottle}: {seen.resumed.get('status')}"


def _tokens(ledger: dict[str, Any]) -> Iterator[str]:
    yield f"  ledger {ledger['tokens']}, provider's own count {ledger['provider_tokens']}"
    cut = ledger["cut_off"]
    if cut["tokens"]:
        sources = ", ".join(cut["sources"])
        yield f"  cut off in the middle: ledger {cut['tokens']} ({sources}), provider {cut['provider_tokens']}"
