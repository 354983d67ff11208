"""Prints what explain.py says, for people: plain lines, no colour, no width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmon.events import is_command


def check_text(data: Mapping[str, Any]) -> str:
    """`policy check`."""
    lines = [f"{data['file']}: ok, {_count(data['rules'], 'rule')} from {_count(len(data['sources']), 'file')}"]
    lines += [f"warning: {w}" for w in data["warnings"]]
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def explain_text(data: Mapping[str, Any]) -> str:
    """`policy explain`, of a whole policy or of one destination."""
    if "dest" in data:
        return _destination(data["bottle"], data["dest"])
    lines = [f"bottle {data['bottle']}" + (" — OBSERVE: the allowlist is relaxed" if data["observe"] else "")]
    lines += [f"  from {source}" for source in data["sources"]]
    for rule in data["rules"]:
        lines += ["", *_rule(rule)]
    inspected = ", ".join(data["inspected"]) or "none"
    lines += ["", f"always inspected where a rule allows them: {inspected}"]
    budgets = [_budget(scope, b) for scope in data["budgets"] for b in scope["budgets"]]
    lines += [f"budget: {line}" for line in budgets] or ["budget: none"]
    lines.append(f"when it is spent: {data['shutdown']}")
    lines += ["answers whose usage cannot be read: broken off"] if data["unreadable"] == "cut" else []
    guard = data["guard"]
    lines += [f"guard {guard['mode']}: {guard['checks']}", f"  does not check {guard['unchecked']}"]
    if data["listen"] is not None:
        lines.append(f"listens only on: {', '.join(data['listen']) or 'nothing'}")
    if data["unix"]:
        lines += [
            f"sockets of the host: {', '.join(data['unix'])}",
            "  does not check what is said there: who answers can act for the bottle",
        ]
    lines += [f"warning: {w}" for w in data["warnings"]]
    return "\n".join(lines)


def _rule(rule: Mapping[str, Any]) -> list[str]:
    lines = [f"{rule['rule']}" + (f"    ({rule['origin']})" if rule["origin"] else "")]
    for part in rule.get("opens", ()):
        lines.append(f"  opens {part['proto'].upper()} {part['ports']}: {part['depth']}")
    for part in rule.get("denies", ()):
        lines.append(f"  denies {part['proto'].upper()} {part['ports']}")
    lines += [f"  checks {text}" for text in rule.get("checks", ())]
    lines += [f"  does not check {text}" for text in rule.get("unchecked", ())]
    if "note" in rule:
        lines.append(f"  {rule['note']}")
    return lines


def _budget(scope: Mapping[str, Any], budget: Mapping[str, Any]) -> str:
    shadow = ", recorded only" if budget["shadow"] else ""
    return f"{scope['scope']} {scope['name']}: {budget['provider']} {budget['tokens']} per {budget['per']}{shadow}"


def _destination(bottle: str, dest: Mapping[str, Any]) -> str:
    where = dest.get("host") or dest["address"]
    lines = [f"{where} {dest['proto'].upper()} {dest['port']}: {dest['verdict']} in {bottle}"]
    because = {
        "allow": f"allowed by {dest.get('rule')}",
        "deny": f"denied by {dest.get('rule')}",
        "default": "no rule allows it",
        "own": f"no rule is asked: {dest.get('why', '')}",
        "protected": f"no rule can allow it ({dest.get('why', 'reserved')})",
    }.get(dest["reason"]) or str(dest["message"])
    lines.append(f"  {because}" + (f" ({dest['origin']})" if dest.get("origin") else ""))
    lines.append(f"  decided by {dest['layer']}")
    if "depth" in dest:
        lines.append(f"  depth {dest['depth']}; does not check {dest['unchecked']}")
    if "methods" in dest:
        lines.append(f"  by these methods only: {', '.join(dest['methods'])}")
    lines += [f"  requests, {text}" for text in dest.get("requests", ())]
    if dest.get("hint"):
        lines.append(f"  {'to allow it' if is_command(dest['hint']) else 'hint'}: {dest['hint']}")
    return "\n".join(lines)
