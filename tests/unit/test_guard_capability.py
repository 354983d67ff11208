"""Loopback's one opening cannot be had outside a running test that asked for it, in its own thread."""

from __future__ import annotations

import sys
import threading

import pytest

from agentmon.guard import EgressGuard, EgressLocked, capability
from tests.support import guarded


@pytest.fixture
def egress_test_loopback(request):
    """What the plugin's fixture does, without its own checks."""
    with capability.loopback(request):
        yield


@pytest.mark.parametrize("version", guarded.versions())
def test_a_process_without_a_test_cannot_mint_it(version):
    body = """
from agentmon.guard import capability
class Request:
    scope = "function"
    class node: fixturenames = ["egress_test_loopback"]
EgressGuard.install([], mode="observe")
out = [attempt(capability.loopback, Request()), attempt(capability.loopback, None)]
out.append(attempt(capability.Loopback(lambda g: None, lambda g: None).__enter__))
import types
fake = types.ModuleType("_pytest.runner")  # not what is on the stack
def runtestprotocol(item): return attempt(capability.loopback, Request())
fake.runtestprotocol = lambda item: None
sys.modules["_pytest.runner"] = fake
out.append(runtestprotocol(Request.node))
print(json.dumps([out, capability.is_open(), reason(udp("127.0.0.1", 9)), attempt(EgressGuard.reset_for_test)]))
"""
    out, is_open, loopback, reset = guarded.answer(body, version)
    assert [r.get("error") for r in (out[0], out[1], out[3])] == ["CapabilityRefused"] * 3
    assert (is_open, loopback) == (False, "loopback")
    assert reset["error"] == "EgressLocked"


FAKES = """
from agentmon.guard import capability
import types
class Item: fixturenames = ["egress_test_loopback"]; addfinalizer = lambda self, end: None
class Request: scope = "function"; node = Item()
EgressGuard.install([], lock="secret")
def runtestprotocol(item):
    return [attempt(capability.loopback, Request()), attempt(EgressGuard.reset_for_test)]
def fake(real):
    for name in ("_pytest.runner", "_pytest.nodes"):
        made = types.ModuleType(name)
        made.__spec__ = sys.modules[name].__spec__ if real else None
        sys.modules[name] = made
    sys.modules["_pytest.runner"].runtestprotocol = runtestprotocol  # the very function on the stack
    sys.modules["_pytest.nodes"].Item = sys.modules["_pytest.nodes"].Node = Item
    return runtestprotocol(Request.node)
"""


@pytest.mark.parametrize("real", [True, False])
def test_a_module_in_pytests_place_mints_nothing_and_resets_nothing(real):
    body = f"{FAKES}import pytest\nprint(json.dumps([*fake({real}), reason(udp('127.0.0.1', 9))]))"
    minted, reset, loopback = guarded.answer(body)
    assert (minted["error"], reset["error"], loopback) == ("CapabilityRefused", "EgressLocked", "loopback")


def test_pytests_own_runner_needs_a_real_item():
    body = f"""{FAKES}
import pytest, _pytest.runner
out = []
class Fake(Item):  # pytest's runner itself, at work on something that is no test
    def __getattr__(self, name):
        out.append(attempt(capability.loopback, Request()))
        out.append(attempt(EgressGuard.reset_for_test))
        raise KeyError(name)
attempt(_pytest.runner.runtestprotocol, Fake())
print(json.dumps(out[:2]))
"""
    minted, reset = guarded.answer(body)
    assert (minted["error"], reset["error"]) == ("CapabilityRefused", "EgressLocked")


def test_a_grant_ends_with_the_run_that_it_was_minted_in():
    frames = []

    def run():
        frames.append(sys._getframe())
        assert capability._runs(frames[0])

    run()
    assert not capability._runs(frames[0])


def test_a_test_that_did_not_ask_does_not_get_it(request):
    with pytest.raises(capability.CapabilityRefused, match="did not ask"):
        capability.loopback(request)
    assert not capability.is_open()


def test_it_is_this_threads_alone(egress_test_loopback):
    assert capability.is_open()
    seen = []
    t = threading.Thread(target=lambda: seen.append(capability.is_open()))
    t.start()
    t.join()
    assert seen == [False]


def test_it_is_gone_after_the_test():
    assert not capability.is_open()


def test_another_thread_cannot_mint_for_the_running_test(request, egress_test_loopback):
    caught = []

    def mint():
        try:
            capability.loopback(request)
        except capability.CapabilityRefused as e:
            caught.append(str(e))

    t = threading.Thread(target=mint)
    t.start()
    t.join()
    assert caught == ["no test that asked for egress_test_loopback runs in this thread"]


def test_a_grant_is_entered_once(request, egress_test_loopback):
    grant = capability.loopback(request)
    with grant:
        assert capability.is_open()
    with pytest.raises(capability.CapabilityRefused, match="entered once"):
        grant.__enter__()


def test_reset_is_for_tests(request):
    EgressGuard.reset_for_test()  # nothing is installed here; what matters is that it may be called
    refused = []

    def elsewhere():
        try:
            EgressGuard.reset_for_test()
        except EgressLocked as e:
            refused.append(str(e))

    t = threading.Thread(target=elsewhere)
    t.start()
    t.join()
    assert len(refused) == 1
