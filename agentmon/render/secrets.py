"""An event of kind `secret` in words: what was found where, and what became of it. Pure; events have no values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmon.render.words import printable

_ENDS = {
    "block": "refused, as its route says",
    "redacted": "taken out, the rest was sent",
    "not-redactable": "refused, it cannot be taken out from there",
    "stream": "broken off",
    "encoding": "refused, what cannot be decoded cannot be searched",
    "crlf": "refused, it would be read as another header or request",
    "approved": "sent, an operator approved it",
    "rejected": "refused, an operator rejected it",
    "timeout": "refused, no operator answered in time",
    "nobody": "refused, no operator can be asked",
    "full": "refused, too many others wait for an operator",
    "unavailable": "refused, no operator could be asked at that moment",
    "malformed": "refused, the answer about it could not be read",
    "gone": "refused, nobody waited for it any more",
}


def secret_text(event: Mapping[str, Any]) -> str:
    """`tried to send what looks like a secret (github-pat, in the body) to api.example:443: refused, …`; after who."""
    detail = event.get("detail") or {}
    detector, where = (printable(str(detail.get(key) or "?")) for key in ("detector", "where"))
    reason = str(event.get("reason") or "")
    end = _ENDS.get(reason, printable(reason))
    host = printable(str(event.get("host") or ""))
    to = f" to {host}:{event['port']}" if host and event.get("port") else f" to {host}" if host else ""
    if reason == "encoding":
        return f"tried to send a body that does not decode{to}: {end}"
    if reason == "crlf":
        return f"tried to send a line end in the {where}{to}: {end}"
    beside = f" beside {printable(str(detail['context']))!r}" if detail.get("context") else ""
    return f"tried to send what looks like a secret ({detector}, in the {where}{beside}){to}: {end}"
