"""Events about a bottle or the machinery as sentences, each kind with a verb of its own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentmon.render.reasons import reason_text
from agentmon.render.words import duration, listed, printable, tokens

_Event = Mapping[str, Any]
_HELD = {"cutoff": "cut", "freeze": "frozen", "kill": "ended"}
_APPROVALS = {"waiting": "waits", "approved": "was approved", "rejected": "was rejected", "expired": "ran out of time",
              "withdrawn": "was withdrawn"}  # fmt: skip
_DAEMON = {"ready": "the daemon is ready", "adopted": "taken over from an earlier daemon"}


def state(event: _Event) -> str:
    """`the bottle was cut: its token budget is spent (20,360 of 20,000 claude tokens)`."""
    return _SENTENCES.get(str(event.get("kind", "")), _other)(event)


def _held(event: _Event) -> str:
    text = f"the bottle was {_HELD[str(event['kind'])]}"
    reason = str(event.get("reason") or "")
    if reason == "budget":
        text += f": {_whose(event)} is spent{_figures(event)}"
    elif reason == "operator":
        text += _by(event)
    elif reason:
        text += f": {reason_text(event)}{_by(event)}"
    return text + _after(event)


def _resumed(event: _Event) -> str:
    budget = _detail(event).get("tokens")
    return f"the bottle was resumed{_by(event)}" + (f", with a budget of {tokens(budget)} tokens" if budget else "")


def _threshold(event: _Event) -> str:
    """The reason is `80% of bottle NAME`."""
    part, _, whose = printable(str(event.get("reason") or "a part")).partition(" of ")
    return f"{part} of the budget{' of ' if whose else ''}{whose} is used{_figures(event)}"


def _policy(event: _Event) -> str:
    what = printable(str(event.get("reason") or ""))
    text = "policy not changed" if event.get("verdict") == "refused" else "policy changed"
    return (f"{text}: {what}" if what else text) + _by(event)


def _usage(event: _Event) -> str:
    detail = _detail(event)
    counts = (("input", "input"), ("cache_write", "cache-write"), ("cache_read", "cache-read"), ("output", "output"))
    used = [f"{tokens(detail[key])} {word}" for key, word in counts if key in detail and (detail[key] or "put" in key)]
    text = f"used {listed(used)} tokens" if used else "used tokens"
    model = " ".join(printable(str(detail[key])) for key in ("provider", "model") if detail.get(key))
    text += f" of {model}" if model else ""
    notes = [word for word, is_so in (("estimated", detail.get("source") == "estimate"),
                                      ("cut short", detail.get("complete") is False)) if is_so]  # fmt: skip
    return f"{text} ({listed(notes)})" if notes else text


def _lost(event: _Event) -> str:
    count, why = int(event.get("count") or 0), reason_text(event)
    text = f"{count} events were lost" if count else "something could not be recorded"
    return f"{text}: {why}" if why else text


def _count(event: _Event) -> str:
    host, count = printable(str(event.get("host") or "the provider")), int(event.get("count") or 0)
    why = printable(str(event.get("reason") or "no reason told"))
    text = f"{host} did not say what a request brings in ({why}): agentmon's own estimate is held"
    return f"{text} ({count} times)" if count > 1 else text


def _tamper(event: _Event) -> str:
    """`table agentmon deleted by nft (pid 7): put back after 8.1 ms`."""
    detail, text = _detail(event), reason_text(event)
    if event.get("comm"):
        text += f" by {printable(str(event['comm']))} (pid {event.get('pid')})"
    if "restored_ms" in detail:
        return f"{text}: put back after {detail['restored_ms']:.1f} ms"
    if detail.get("lost"):
        return f"{text}: it cannot be put back, the bottle is ended"
    if "error" in detail:
        return f"{text}: closed, and not put back yet ({printable(str(detail['error']))})"
    count = int(event.get("count") or 0)
    return f"{text} ({count} times)" if count > 1 else text


def _approval(event: _Event) -> str:
    """`proposal 3 waits: github-pat in body, POST api.example.com/v1`."""
    detail, reason = _detail(event), str(event.get("reason") or "")
    if "id" not in detail:
        return reason_text(event)
    text = f"proposal {detail['id']} {_APPROVALS.get(reason, reason_text(event))}"
    if reason == "waiting":
        place = f"{detail.get('detector')} in {detail.get('where')}"
        text += f": {place}, {detail.get('method')} {event.get('host', '')}{detail.get('path')}"
    said = str(detail.get("said") or detail.get("why") or "")
    return f"{printable(text)}{_by(event)}" + (f": {printable(said)}" if said else "")


def _daemon(event: _Event) -> str:
    reason = str(event.get("reason") or "")
    text = _DAEMON.get(reason) or reason_text(event) or "the daemon says nothing more"
    if event.get("host"):
        text = f"{printable(str(event['host']))}: {text}"
    return f"{text} (pid {event['pid']})" if event.get("pid") else text


def _other(event: _Event) -> str:
    """A kind without a sentence of its own."""
    text = " ".join(printable(str(event[key])) for key in ("kind", "verdict") if event.get(key))
    if reason := reason_text(event):
        text += f": {reason}"
    text += _by(event) + _figures(event) + _after(event)
    count = int(event.get("count") or 0)
    return f"{text} ({count} times)" if count > 1 else text


def _detail(event: _Event) -> _Event:
    detail: _Event = event.get("detail") or {}
    return detail


def _whose(event: _Event) -> str:
    detail = _detail(event)
    scope, name = str(detail.get("scope") or "bottle"), str(detail.get("name") or "")
    if scope == "bottle":
        return "its token budget"
    return f"the token budget of {printable(scope if name in {'', scope} else f'{scope} {name}')}"


def _figures(event: _Event) -> str:
    detail = _detail(event)
    if "used" not in detail or "tokens" not in detail:
        return ""
    provider = f"{printable(str(detail['provider']))} " if detail.get("provider") else ""
    return f" ({tokens(detail['used'])} of {tokens(detail['tokens'])} {provider}tokens)"


def _by(event: _Event) -> str:
    by = str(_detail(event).get("by") or "")
    return f" by {printable(by.replace(':', ' ', 1))}" if by else ""


def _after(event: _Event) -> str:
    detail = _detail(event)
    return f", after {duration(int(detail['latency_ns']))}" if "latency_ns" in detail else ""


_SENTENCES: dict[str, Callable[[_Event], str]] = {
    "cutoff": _held, "freeze": _held, "kill": _held, "resume": _resumed, "threshold": _threshold, "policy": _policy,
    "usage": _usage, "lost": _lost, "count": _count, "daemon": _daemon, "tamper": _tamper, "approval": _approval,
}  # fmt: skip
