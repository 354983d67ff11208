"""`python -m agentmon.guard check`: what the guard would refuse, what it cannot see, whether the kernel vouches.

0 it holds   1 something that must be refused is not   2 bad input
"""

from __future__ import annotations

import sys

from agentmon.guard import EgressGuard, RuleError
from agentmon.guard.selfcheck import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_USAGE = "python -m agentmon.guard check [--allow RULE]... [--import MODULE]... [--json] [HOST:PORT]..."
_HELP = f"""\
usage: {_USAGE}

Say what the guard refuses in this Python, what it cannot see, and whether the kernel vouches for it.

  --allow RULE      install the guard with this rule; without any, with none (unless it is in force already)
  --import MODULE   import this first: shows the native code that your program would load
  --json            one object

Example:
  python -m agentmon.guard check --allow api.example.com:443 --import myapp api.example.com:443 192.0.2.1:443
"""


class BadInput(Exception):
    """What is wrong, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def main(argv: list[str]) -> int:
    """Run one command line; the exit status."""
    if not argv or argv[0] in ("-h", "--help") or "--help" in argv:
        print(_HELP, end="")
        return 0 if argv else 2
    try:
        return _check(argv)
    except (BadInput, RuleError) as e:
        print(f"error: {e.message}", file=sys.stderr)
        if e.hint:
            print(f"hint: {e.hint}", file=sys.stderr)
        return 2


def _check(argv: list[str]) -> int:
    if argv[0] != "check":
        raise BadInput(f"{argv[0]!r} is not a command", _USAGE)
    allow, modules, places, as_json = _options(argv[1:])
    if not EgressGuard.status().installed:
        EgressGuard.install(allow)
    elif allow:
        raise BadInput("a guard is in force here: --allow cannot change it", "leave --allow out")
    for name in modules:
        _imported(name)
    data = report(places)
    if as_json:
        import json

        print(json.dumps(data, ensure_ascii=False))
    else:
        print(text(data), end="")
    held = data["guard"]["installed"] and all(each["refused"] for each in data["refuses"])
    return 0 if held and not data["guard"]["tampered"] else 1


def _options(words: list[str]) -> tuple[list[str], list[str], list[str], bool]:
    """(rules, modules, destinations, as JSON)"""
    valued: dict[str, list[str]] = {"--allow": [], "--import": []}
    places: list[str] = []
    as_json = False
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--json":
            as_json = True
        elif name in valued:
            given = value if equals else next(rest, None)
            if not given:
                raise BadInput(f"{name} needs a value", _USAGE)
            valued[name].append(given)
        elif word.startswith("-"):
            raise BadInput(f"{word} is not an option", _USAGE)
        else:
            places.append(word)
    return valued["--allow"], valued["--import"], places, as_json


def _imported(name: str) -> None:
    """Somebody else's code: it may raise, or exit; it runs under the guard."""
    from importlib import import_module

    try:
        import_module(name)
    except (Exception, SystemExit) as e:
        raise BadInput(f"--import {name}: {type(e).__name__}: {e}", "name a module that imports by itself") from e


def text(data: dict[str, Any]) -> str:
    """The report for people."""
    guard, unseen = data["guard"], data["unseen"]
    rules = ", ".join(guard["rules"]) or "none: every destination is refused"
    lines = [f"guard: {guard['mode'] or 'not installed'}; rules: {rules}"]
    if guard["tampered"]:
        lines.append(f"TAMPERED: {guard['tampered']}")
    lines += ["", "refused:"]
    lines += [f"  {each['destination']:24} {_answer(each)}" for each in data["refuses"]]
    if data["destinations"]:
        lines += ["", "asked for:"]
        lines += [f"  {each['destination']:24} {_answer(each)}" for each in data["destinations"]]
    lines += ["", "not seen by the guard in this process:"]
    lines += [f"  {each['path']} ({', '.join(each['names'])})" for each in unseen["native"]] or ["  no native code"]
    loops = {name: how for name, how in unseen["loops"].items() if how != "absent"}
    lines += [f"  {name}: {how}{' (only its C resolver)' if name == 'gevent' else ''}" for name, how in loops.items()]
    lines += [f"  older than the guard: {each}" for each in unseen["sockets"]]
    if unseen["interpreters"]:
        lines.append(
            f"  other interpreters of this process: {unseen['interpreters']} (each needs an install of its own)"
        )
    lines += [f"  child without the guard: {each['command']}" for each in unseen["children"]]
    lines += ["  programs that it starts (subprocess), unless they are Python with EgressGuard.child_env()", ""]
    return "\n".join([*lines, _bottle(data["bottle"]), ""])


def _answer(each: dict[str, Any]) -> str:
    return f"refused ({each['reason']})" if each["refused"] else "PASSES"


def _bottle(bottle: dict[str, str]) -> str:
    name, vouching = bottle["name"], bottle["vouching"]
    if vouching == "active":
        return f"bottle: inside {name or 'one'}; vouching is active: what the guard did not see is reported, or refused"
    if vouching == "refused":
        return f"bottle: inside {name or 'one'}; the kernel refused to register this process"
    if name:
        return (
            f"bottle: AGENTMON_BOTTLE says {name}, but the kernel does not vouch here (guard: off, or another kernel)"
        )
    return "bottle: not inside one; nothing holds native code and other programs"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
