"""A plain assignment to anything that decides is noticed at the next check, and refuses; generated from the modules."""

from __future__ import annotations

import pytest

from tests.support import guarded

PYTHONS = guarded.versions()

# Each change in a fork of its own: what it does to one destination is asked twice.
EVERY = """
import os, types
from agentmon.guard import (
    sealing, hook, flows, judge, targets, capability, children, scopes, names, vouching, state, errors)
from agentmon.policy.rules import decide, grammar, hosts, ports, ranges
MODULES = (hook, flows, judge, targets, capability, children, scopes, names, vouching, state, errors,
           decide, grammar, hosts, ports, ranges)
EgressGuard.install(["udp://198.51.100.1"], mode="observe")
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
from agentmon.guard import _control
tampered = _control.tampered
def outcome(change):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try: change()
            except Exception as e: os.write(w, f"unchanged {e}".encode()); os._exit(0)
            try: u.connect(("127.0.0.1", 53)); out = "OPEN"
            except Exception as e: out = "refused"
            os.write(w, (out + (" noticed" if tampered() else " UNNOTICED")).encode())
        finally: os._exit(0)
    os.close(w); out = os.read(r, 999).decode(); os.close(r); os.waitpid(pid, 0)
    return out
def other(value):
    return (lambda *a, **k: None) if callable(value) else frozenset() if value is not frozenset() else ()
def put(where, owner, name, value):
    if isinstance(where, dict): return lambda: where.__setitem__(name, value)
    return lambda: setattr(owner, name, value)
bad, tried = {}, 0
for module in MODULES:
    owners = [(module.__name__, module.__dict__, module)]
    made = [(n, c) for n, c in vars(module).items() if isinstance(c, type) and c.__module__ == module.__name__]
    owners += [(n, vars(c), c) for n, c in made]
    owners += [(f"{module.__name__}.{n}", d, d) for n, d in vars(module).items() if type(d) is dict and n[:2] != "__"]
    for label, where, owner in owners:
        for name, value in list(where.items()):
            if str(name).startswith("__") or (module is state and name == "in_force"): continue
            tried += 1
            found = outcome(put(where, owner, name, other(value)))
            if found != "refused noticed" and "cannot reassign member" not in found: bad[f"{label}.{name}"] = found
    for f in sealing.functions([o[1] for o in owners]):
        tried += 1
        found = outcome(lambda: setattr(f, "__code__", f.__code__.replace(co_name="x")))
        if found != "refused noticed": bad[f"{f.__qualname__} code"] = found
        if f.__defaults__:
            found = outcome(lambda: setattr(f, "__defaults__", (None,) * len(f.__defaults__)))
            if found != "refused noticed": bad[f"{f.__qualname__} defaults"] = found
print(json.dumps([bad, tried, outcome(lambda: None)]))
"""


@pytest.mark.parametrize("version", PYTHONS)
def test_whatever_is_replaced_is_noticed(version):
    bad, tried, untouched = guarded.answer(EVERY, version)
    assert bad == {} and tried > 300
    assert untouched == "refused UNNOTICED"  # nothing was changed: refused as ever, and no alarm


@pytest.mark.parametrize("version", PYTHONS)
def test_what_is_in_force_shows_no_table(version):
    """What `state.in_force` leads to by attributes and items is immutable: nothing of it can be written to."""
    body = """
import types
from agentmon.guard import state
EgressGuard.install(["udp://198.51.100.1", "!a.example.com"], on_blocked=print)
seen, changeable, waiting = set(), [], [("in_force", state.in_force)]
shared = (type, types.BuiltinFunctionType, types.CodeType, types.ModuleType)
while waiting:
    path, value = waiting.pop()
    if id(value) in seen or isinstance(value, shared): continue
    seen.add(id(value))
    if isinstance(value, (dict, list, set, bytearray)): changeable.append(path)
    if isinstance(value, (tuple, frozenset)): waiting += [(f"{path}[{n}]", v) for n, v in enumerate(value)]
    names = (*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ()), *getattr(value, "_fields", ()))
    for name in (*names, "__self__", "__func__", "func", "args"):
        if hasattr(value, name): waiting.append((f"{path}.{name}", getattr(value, name)))
print(json.dumps([len(seen) > 20, changeable]))
"""
    assert guarded.answer(body, version) == [True, []]


@pytest.mark.parametrize(
    "change",
    [
        "judge._verdict = lambda *a, **k: judge.Verdict('allow', '', '', '')",
        "hook.OBSERVE = 'enforce'; hook.RELAXED = {'loopback', 'default', 'scope'}",
        "targets.LOCAL = frozenset({2}); targets.INET = frozenset()",
        "targets.isinstance = lambda *a: True",
        "targets._PROTOCOLS[2, 0] = 'tcp'",
        "judge.named.__code__ = (lambda judge, host, port, proto: None).__code__",
        "ranges._NEVER4 = ()",
        "flows.Live.approved = property(lambda self: collections.defaultdict(tuple))",
    ],
)
def test_the_obvious_ways(change):
    body = f"""
import collections
from agentmon.guard import flows, hook, judge, targets
from agentmon.policy.rules import ranges
EgressGuard.install(["udp://198.51.100.1"])
first = reason(udp("198.51.100.1", 53))
{change}
out = [first, reason(udp("127.0.0.1", 53)), reason(udp("198.51.100.1", 53)), EgressGuard.status().tampered != ""]
print(json.dumps(out))
"""
    assert guarded.answer(body) == ["ok", "tampered", "tampered", True]


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ("judge.ALLOW = 'other'", 1),
        ("del judge.ALLOW", 1),
        ("judge.usable.__code__ = (lambda goals: goals).__code__", 1),
        ("judge.opens.__defaults__ = (1,)", 1),
        ("vars(judge)['ALLOW'] = 'other'", 64),
        ("targets._PROTOCOLS[2, 0] = 'tcp'", 64),
        ("names.Names.of = None", 64),
    ],
)
def test_what_was_approved_before_is_asked_again(version, change, calls):
    """By the next call after an assignment to a module or a function; after other changes by every 64th."""
    body = f"""
from agentmon.guard import judge, names, targets
EgressGuard.install(["udp://198.51.100.1"])
for _ in range(9): udp("198.51.100.1", 53)
{change}
print(json.dumps("tampered" in [reason(udp("198.51.100.1", 53)) for _ in range({calls})]))
"""
    assert guarded.answer(body, version) is True
