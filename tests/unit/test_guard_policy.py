"""Installing, extending, locking, observing, tampering, and what a refusal carries: on every Python present."""

from __future__ import annotations

import copy
import pickle

import pytest

from agentmon.guard import EgressViolation
from tests.support import guarded

PYTHONS = guarded.versions()


@pytest.mark.parametrize("version", PYTHONS)
def test_the_lock(version):
    body = """
token = "secret"
allow = ["udp://198.51.100.1:53"]
EgressGuard.install(allow, lock=token)
more = ["udp://198.51.100.2:53"]
out = [
    attempt(EgressGuard.uninstall), attempt(EgressGuard.uninstall, lock="other"),
    attempt(EgressGuard.install, ["x.test"]),
    attempt(EgressGuard.extend, more), attempt(EgressGuard.extend, more, lock=token.encode()),
    attempt(EgressGuard.reset_for_test), udp("198.51.100.2", 53), EgressGuard.status().locked,
    attempt(EgressGuard.extend, more, lock="".join(["sec", "ret"])), udp("198.51.100.2", 53), udp("198.51.100.1", 53),
    attempt(EgressGuard.uninstall, lock=token), udp("192.0.2.9", 53), EgressGuard.status().installed,
    attempt(EgressGuard.extend, more), attempt(EgressGuard.install, allow, lock=object()),
    attempt(EgressGuard.uninstall, lock=object()),
]
print(json.dumps(out))
"""
    out = guarded.answer(body, version)
    assert [r.get("error") for r in out[:6]] == ["EgressLocked"] * 6
    assert (out[6]["refused"], out[7]) == ("default", True)
    assert all("ok" in r for r in (*out[8:12], out[12])) and out[13] is False
    assert out[14]["error"] == "RuntimeError" and "install" in out[14]["text"]
    assert "ok" in out[15] and out[16]["error"] == "EgressLocked"


@pytest.mark.parametrize("version", PYTHONS)
def test_observing_reports_and_lets_pass(version):
    body = """
told = []
EgressGuard.install(["udp://198.51.100.1:53"], mode="observe", on_blocked=lambda v: told.append(v.target))
print(json.dumps([udp("192.0.2.9", 53), udp("192.0.2.9", 53), udp("127.0.0.1", 53), udp("169.254.169.254", 80), told]))
"""
    first, again, loopback, metadata, told = guarded.answer(body, version)
    assert "ok" in first and "ok" in again
    assert (loopback["refused"], metadata["refused"]) == ("loopback", "protected")
    assert told == ["192.0.2.9:53", "192.0.2.9:53", "127.0.0.1:53", "169.254.169.254:80"]


def test_observing_without_a_callback_says_it_once_on_stderr():
    done = guarded.run('EgressGuard.install([], mode="observe")\nfor _ in range(3): udp("192.0.2.9", 53)\n')
    assert done.stderr.splitlines() == ["agentmon.guard: observe: would refuse 192.0.2.9:53"]


@pytest.mark.parametrize("version", PYTHONS)
def test_on_blocked_opens_nothing(version):
    body = """
import asyncio
calls = []
def fails(v):
    calls.append(v.target)
    raise ValueError("mine")
EgressGuard.install(["udp://198.51.100.1:53"], on_blocked=fails)
out = [udp("192.0.2.9", 53)]
try: socket.socket().connect(("192.0.2.9", 1))
except EgressViolation as e: out.append(e.__notes__)
def connects(v):  # its own attempts are judged, and not told to itself again
    calls.append(v.target)
    out.append(udp("192.0.2.8", 53))
EgressGuard.install(["udp://198.51.100.1:53"], on_blocked=connects)
out.append(udp("192.0.2.9", 53))
def in_task(v):
    calls.append(v.target)
    async def send(): await asyncio.sleep(0); return udp("192.0.2.7", 53)
    tasks.append(asyncio.get_running_loop().create_task(send()))
tasks = []
EgressGuard.install(["udp://198.51.100.1:53"], on_blocked=in_task)
async def main():
    out.append(udp("192.0.2.9", 53))
    out.extend(await asyncio.gather(*tasks))
asyncio.run(main())
EgressGuard.install(["udp://198.51.100.1:53"], on_blocked=lambda v: EgressGuard.install(["udp://192.0.2.0/24"]))
out.append(udp("192.0.2.9", 53))
print(json.dumps([out, calls]))
"""
    out, calls = guarded.answer(body, version)
    assert out[1] == ["on_blocked raised ValueError: mine"]
    assert [r["refused"] for r in (out[0], *out[2:])] == ["default"] * 6
    assert calls == ["192.0.2.9:53", "192.0.2.9:1", "192.0.2.9:53", "192.0.2.9:53"]


TAMPERING = {
    "state": "import agentmon.guard.state as m; m.in_force = None",
    "permissive state": "import agentmon.guard.state as m, agentmon.guard.judge as j\n"
    'm.in_force = m.in_force._replace(judge=j.of_texts(["192.0.2.0/24"]))',
    "state deleted": "import agentmon.guard.state as m; del m.in_force",
    "judge": "import agentmon.guard.judge as m; m.addressed = lambda *a: m.Verdict('allow', '', '', '')",
    "code": "import agentmon.guard.judge as m\n"
    "def yes(judge, address, names, port, proto): return Verdict('allow', '', '', '')\n"
    "m.addressed.__code__ = yes.__code__",
    "parser": "import agentmon.guard.targets as m; m.literal = lambda text: None",
    "loopback": "import agentmon.guard.capability as m; m.is_open = lambda: True",
    "rules": "import agentmon.policy.rules.decide as m\n"
    "m.PolicySet.decide_address = lambda *a: m.Decision(True, None, None, 'allow')",
}


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_seen_at_the_next_check_and_refuses(version, how):
    body = f"""
EgressGuard.install(["udp://198.51.100.1:53"], lock="secret")
before = udp("198.51.100.1", 53)
{TAMPERING[how]}
after = [udp("192.0.2.9", 53), udp("198.51.100.1", 53), udp("127.0.0.1", 53)]
extended = attempt(EgressGuard.extend, ["192.0.2.9"], lock="secret")
print(json.dumps([before, after, EgressGuard.status().tampered, extended]))
"""
    before, after, tampered, extended = guarded.answer(body, version)
    assert "ok" in before
    assert [r["refused"] for r in after] == ["tampered"] * 3
    assert "was replaced" in tampered or "was assigned" in tampered
    assert extended["refused"] == "tampered"


@pytest.mark.parametrize("version", PYTHONS)
def test_an_error_inside_the_check_refuses(version):
    body = """
class Broken(tuple):
    __class__ = property(lambda self: 1 / 0)
class Strange(str):
    __class__ = property(lambda self: 1 / 0)
EgressGuard.install(["198.51.100.1"], mode="observe", on_child=lambda child: 1 / 0)
import os
out = [udp(Strange("192.0.2.9"), 53), attempt(os.system, "true")]
print(json.dumps(out))
"""
    host, child = guarded.answer(body, version)
    assert "ok" in host or host["refused"] == "error"
    assert child["refused"] == "error" and "ZeroDivisionError" in child["text"]


def test_what_is_no_port_or_no_host_is_refused_with_its_reason():
    body = """
EgressGuard.install(["api.example.com:443"], bind="ephemeral")
out = [attempt(socket.getaddrinfo, "x.example.com", "²"), connect(bytearray(b"127.0.0.1"), 9)]
out += [attempt(socket.getaddrinfo, bytearray(b"x.example.com"), 443)]
out += [attempt(socket.socket().bind, (bytearray(b"127.0.0.1"), 0))]
out += [attempt(socket.getaddrinfo, "x.example.com", port) for port in (99999, "99999", -1, b"443")]
print(json.dumps(out))
"""
    port, host, looked, bound, *ports = guarded.answer(body)
    assert [each["port"] for each in ports] == [0, 0, 0, 443]  # what it says to allow must be a rule
    assert port["refused"] == "default" and port["text"].startswith("refused by the guard: x.example.com: no rule")
    assert host["refused"] == "form" and "the host is bytearray" in host["text"]
    assert looked.get("refused") == "form" or looked["error"] == "TypeError"
    assert (
        bound["refused"] == "error" and "the check itself failed (Unreadable" in bound["text"]
    )  # what failed, refuses


def test_a_refusals_callback_does_not_silence_the_one_of_children():
    body = """
import os
seen = []
EgressGuard.install([], on_blocked=lambda v: os.system("true"), on_child=lambda c: seen.append(c.command))
udp("192.0.2.9", 53)
print(json.dumps(seen))
"""
    assert guarded.answer(body) == ["true"]


@pytest.mark.parametrize("version", PYTHONS)
def test_installing_again_replaces(version):
    body = """
one, two = ["udp://198.51.100.1:53"], ["udp://198.51.100.2:53"]
EgressGuard.install(one)
first = udp("198.51.100.1", 53)
EgressGuard.install(two)
second = [udp("198.51.100.1", 53), udp("198.51.100.2", 53)]
failed = attempt(EgressGuard.install, ["*"])
print(json.dumps([first, *second, failed, EgressGuard.status().rules]))
"""
    first, gone, new, failed, rules = guarded.answer(body, version)
    assert "ok" in first and "ok" in new and gone["refused"] == "default"
    assert failed["error"] == "RuleError" and rules == ["udp://198.51.100.2:53"]


@pytest.mark.parametrize("version", PYTHONS)
def test_sockets_older_than_the_guard_are_reported(version):
    body = """
import warnings
old = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); old.connect(("127.0.0.1", 53))
listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); listening.bind(("127.0.0.1", 0))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    EgressGuard.install(["198.51.100.1"])
texts = [f"{w.category.__name__}: {w.message}" for w in caught]
print(json.dumps([texts, EgressGuard.status().sockets_before, old.fileno()]))
"""
    warned, before, fd = guarded.answer(body, version)
    assert before == [f"fd {fd} to 127.0.0.1:53"]
    assert warned == [f"EgressWarning: connected before the guard was installed, ignoring: fd {fd} to 127.0.0.1:53"]


@pytest.mark.parametrize("version", PYTHONS)
def test_another_hook_that_refuses_ours_is_noticed(version):
    body = """
def jealous(event, args):
    if event == "sys.addaudithook": raise RuntimeError("only me")
sys.addaudithook(jealous)
print(json.dumps([attempt(EgressGuard.install, ["198.51.100.1"]), EgressGuard.status().installed]))
"""
    error, installed = guarded.answer(body, version)
    assert "another audit hook" in error["text"] and installed is False


@pytest.mark.parametrize("version", PYTHONS)
def test_bind_where_policy_says(version):
    body = """
def bind(address, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_DGRAM) as s: return attempt(s.bind, address)
EgressGuard.install(["198.51.100.1"])
out = [bind(("127.0.0.1", 0)), bind(("0.0.0.0", 0))]
EgressGuard.install(["198.51.100.1"], bind="ephemeral")
out += [bind(("127.0.0.1", 0)), bind(("0.0.0.0", 40999)), bind(("127.0.0.1", 40999))]
out += [bind("\\0agentmon-test", socket.AF_UNIX)]
out += [attempt(EgressGuard.install, [], bind="all"), attempt(EgressGuard.install, [], mode="off")]
print(json.dumps(out))
"""
    *bound, bind, mode = guarded.answer(body, version)
    assert [r.get("refused") for r in bound] == [None, None, None, "bind", "bind", None]
    assert bind["text"] == "bind='all' is not one of any, ephemeral"
    assert mode["text"] == "mode='off' is not one of enforce, observe"


@pytest.mark.parametrize(
    ("allow", "message", "hint"),
    [
        (
            ["ok.example.com", "10.*"],
            "allow[1]: '10.*' looks like a pattern of addresses",
            "write the network: 10.0.0.0/8",
        ),
        (
            ["bücher.example"],
            "allow[0]: host 'bücher.example' is not ASCII",
            "write its A-label: xn--bcher-kva.example",
        ),
        (["https://u:p@h.example"], "allow[0]: the rule has credentials in it", "write https://h.example"),
        (["*"], "allow[0]: rule '*' would allow everything", "name hosts"),
        ([443], "allow[0]: a rule is text, not int", "put it in quotes"),
        ("h.example:443", "allow is one text, not a list of rules", "write allow=['h.example:443']"),
        (7, "allow is int, not a list of rules", "write allow=["),
    ],
)
def test_malformed_rules_teach_the_right_form(allow, message, hint):
    script = f"try: EgressGuard.install({allow!r})\nexcept RuleError as e: print(json.dumps([e.message, e.hint]))"
    found = guarded.answer(script)
    assert found[0] == message
    assert found[1].startswith(hint)


def test_what_a_violation_carries():
    body = """
EgressGuard.install(["api.example.com:443", "198.51.100.1:22"])
print(json.dumps([connect("192.0.2.9", 8443), attempt(socket.getaddrinfo, "evil.test", 443)]))
"""
    connect, lookup = guarded.answer(body)
    assert connect["text"] == (
        "refused by the guard: 192.0.2.9:8443: no rule allows it. Allow it with EgressGuard.install(allow=[…, "
        "'192.0.2.9:8443']). Rules in force: api.example.com:443, 198.51.100.1:22."
    )
    assert connect["rules"] == ["api.example.com:443", "198.51.100.1:22"] and connect["layer"] == "guard"
    assert (lookup["host"], lookup["port"], lookup["address"]) == ("evil.test", 443, "")


def test_a_violation_is_a_runtime_error_and_survives_copying():
    violation = EgressViolation("h.test", 443, "192.0.2.9", "!h.test", "guard", rules=("a:443",), reason="deny")
    assert isinstance(violation, RuntimeError) and not isinstance(violation, OSError)
    for again in (pickle.loads(pickle.dumps(violation)), copy.copy(violation)):  # noqa: S301 - our own
        assert (str(again), vars(again)) == (str(violation), vars(violation))


def test_a_violation_is_of_the_kind_that_the_anthropic_sdk_lets_through():
    body = """
import pickle
EgressGuard.install(["api.example.com:443"])
def refused():
    try: socket.socket().connect(("192.0.2.9", 443))
    except EgressViolation as e: return e
before = refused()
import anthropic
after = refused()
again = pickle.loads(pickle.dumps(after))
out = [isinstance(e, anthropic.AnthropicError) for e in (before, after, again)]
print(json.dumps([out, type(before) is EgressViolation, repr(before) == repr(after) == repr(again), str(after)]))
"""
    kinds, plain, same, text = guarded.answer(body)
    assert kinds == [False, True, True] and plain and same
    assert text.startswith("refused by the guard: 192.0.2.9:443: no rule allows it")


@pytest.mark.parametrize(
    "claims",
    ["5", "KeyboardInterrupt", "Exception", "OSError", "type('E', (ImportError,), {})", "type('M', (type,), {})",
     "type('E', (Exception,), {'__slots__': ('a',)})", "property(lambda self: 1 / 0)"],
)  # fmt: skip
def test_something_else_of_that_name_refuses_all_the_same(claims):
    body = f"""
EgressGuard.install([])
sys.modules["anthropic"] = type("Module", (), {{"AnthropicError": {claims}}})()
got = udp("192.0.2.9", 53)
try: socket.socket().connect(("192.0.2.9", 443))
except Exception as e: print(json.dumps([got["refused"], isinstance(e, OSError), EgressGuard.status().tampered]))
"""
    assert guarded.answer(body) == ["default", False, ""]


def test_a_violation_is_found_behind_what_wraps_it():
    violation = EgressViolation("h.test", 443)
    wrapped = RuntimeError("connection error")
    wrapped.__cause__ = ExceptionGroup("tasks", [ValueError("other"), violation])
    again = KeyError("later")
    again.__context__ = wrapped
    assert EgressViolation.found_in(again) is violation
    assert EgressViolation.found_in(ValueError("none")) is None
    assert EgressViolation.found_in(None) is None
