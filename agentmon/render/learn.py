"""What `policy learn` found, as a manifest with its evidence in comments. Pure.

Everything in a comment may come from the job (names, commands): nothing unprintable, and no line break, is let through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentmon.render.reasons import reason_text
from agentmon.render.words import listed, printable

_BECAUSE = {
    "sorting": "libc connects UDP like this while it sorts addresses, and sends nothing; for QUIC add udp:// rules",
    "lookup": "the name was asked for, and nothing connected to it",
    "own": "it is an address of agentmon's own services",
    "others": "there was too much at once to tell one by one: learn again from less",
    "no-port": "no rule speaks of this protocol",
    "no-place": "the destination is not known",
    "held": "its address is also that of the host in brackets, which is held by name: nothing else is open there",
    "served": "its host is held by name, on ports 443 and 80 only",
    "no-rule": "it cannot be written as a rule that allows this and no more",
    "conflict": "it contradicts how a rule holds the same host",
}
_UNCHECKED = {
    "direct": "checked by address and port only",
    "name": "checked by TLS name, not decrypted",
    "inspected": "each request inspected",
}
_WIDTH = 110


def learned_manifest(
    data: Mapping[str, Any], *, extends: str = "", kept: Sequence[str] | None = None, lost: int = 0
) -> str:
    """YAML that `policy check` accepts.

    :param data: from policy.learn.learn(). :param extends: the manifest that the bottle ran with.
    :param kept: the rules of its policy, to be repeated; None: they are not known.
    :param lost: events that were lost meanwhile, of any bottle.
    """
    out = [f"# {line}" for line in _head(data, extends, kept, lost)]
    if extends:
        out += ["", f"extends: {_quoted(extends)}"]
    out += ["", "allow:" if data["rules"] or kept else "allow: []"]
    if kept:
        out += ["  # its policy so far", *(f"  - {_quoted(rule)}" for rule in kept)]
    for rule in data["rules"]:
        out += [f"  # {line}" for line in _evidence(rule)]
        out.append(f"  - {_quoted(rule['rule'])}")
    for wider in data["wider"]:
        names = listed(printable(name) for name in wider["names"])
        out += ["", f"# Wider, and not proposed: {len(wider['names'])} names were used below one domain ({names}).",
                "# This rule would allow every other name there too:", f"#  - {_quoted(wider['rule'])}"]  # fmt: skip
    if data["not_proposed"]:
        out += ["", "# Not proposed:"]
        out += [f"#   {_not_proposed(unmet)}" for unmet in data["not_proposed"]]
    return "\n".join(out) + "\n"


def _head(data: Mapping[str, Any], extends: str, kept: Sequence[str] | None, lost: int) -> list[str]:
    count, rules = data["events"], len(data["rules"])
    seen = f" between {_moment(data['first'])} and {_moment(data['last'])}" if count else ""
    lines = [
        f"Learned from bottle {printable(data['bottle'])}: {_many(rules, 'rule')} from {_many(count, 'event')}{seen}.",
        "Read it before it is used: it allows what was done, whoever made the job do it.",
        "Budgets, routes and limits are not learned. What the policy allowed anyway was not recorded.",
    ]
    if kept is None and not extends:
        lines.append("What the bottle's policy allowed is not known any more: add its rules, or give --policy FILE.")
    if lost:
        lines.append(f"{_many(lost, 'event')} of this time could not be recorded: something may be missing here.")
    return lines


def _evidence(rule: Mapping[str, Any]) -> list[str]:
    lines = [f"{_seen(rule)}; {_UNCHECKED[rule['depth']]}"]
    if rule["assumed_port"]:
        lines.append("the name was refused before anything connected: port 443 is assumed")
    if rule["or"]:
        lines.append(f"or {listed(map(printable, rule['or']))} was meant: the same address, asked for before")
    return lines


def because_text(word: str) -> str:
    """Why something is not proposed, of learn's word for it."""
    return _BECAUSE.get(word) or reason_text({"reason": word}) or "no reason was given"


def _not_proposed(unmet: Mapping[str, Any]) -> str:
    because = because_text(unmet["because"])
    denied = f" ({printable(unmet['rule'])})" if unmet["rule"] and unmet["because"] not in _BECAUSE else ""
    what = printable(unmet["what"])[:_WIDTH] or "others"
    return f"{what}: {_seen(unmet)}; {because}{denied}"


def _seen(one: Mapping[str, Any]) -> str:
    who = listed(map(printable, one["processes"])) or "an unknown process"
    times = "once" if one["count"] == 1 else f"{one['count']} times"
    span = _moment(one["first"])
    if _moment(one["last"]) != span:
        span += f" to {_moment(one['last'])}"
    return f"{times}, {span}, {who}, {listed(one['verdicts'])} by {listed(one['layers']) or 'an unknown layer'}"


def _moment(rfc3339: str) -> str:
    """UTC to the second: the same text wherever it is made."""
    return printable(rfc3339)[:19] + "Z" if rfc3339 else "an unknown time"


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _quoted(text: str) -> str:
    return json.dumps(text)
