"""Scopes and pins: they only narrow, nest, and stay with their task; as decorators too."""

from __future__ import annotations

import pytest

from agentmon.guard import HostName, RuleError
from tests.support import guarded

PYTHONS = guarded.versions()
INSTALL = """
import asyncio, threading
EgressGuard.install(["udp://198.51.100.0/24:53", "udp://203.0.113.0/24", "a.example.com", "*.b.example.com"])
A, B, OUT = "198.51.100.1", "203.0.113.1", "192.0.2.9"
def both(): return [reason(udp(A, 53)), reason(udp(B, 53))]
only_a, only_b = EgressGuard.scope(["udp://198.51.100.0/24"]), EgressGuard.scope(["udp://203.0.113.0/24"])
"""


@pytest.mark.parametrize("version", PYTHONS)
def test_a_scope_narrows_nests_and_ends(version):
    body = (
        INSTALL
        + """
out = [both()]
with only_a:
    out.append(both())
    with EgressGuard.scope(["udp://198.51.100.2", "udp://203.0.113.0/24"]):
        out.append([reason(udp("198.51.100.2", 53)), *both()])
    out.append(both())
    try:
        with EgressGuard.scope(["udp://198.51.100.1"]): raise KeyError
    except KeyError: pass
    out.append(both())
out.append(both())
with EgressGuard.scope(["192.0.2.0/24", "udp://198.51.100.1"]):
    out.append([reason(udp(OUT, 53)), reason(udp(A, 53))])
with only_a, only_a: out.append(both())
out.append(both())
print(json.dumps(out))
"""
    )
    open_, only_a = ["ok", "ok"], ["ok", "scope"]
    assert guarded.answer(body, version) == [
        open_, only_a, ["ok", "scope", "scope"], only_a, only_a, open_, ["default", "ok"], only_a, open_,
    ]  # fmt: skip


@pytest.mark.parametrize("version", PYTHONS)
def test_what_was_approved_outside_is_not_approved_inside(version):
    body = INSTALL + "out = [both(), both()]\nwith only_a: out += [both(), both()]\nprint(json.dumps([*out, both()]))"
    outside, inside = ["ok", "ok"], ["ok", "scope"]
    assert guarded.answer(body, version) == [outside, outside, inside, inside, outside]


@pytest.mark.parametrize("version", PYTHONS)
def test_pinned_to_a_host(version):
    body = (
        INSTALL
        + """
def look(name): return reason(attempt(socket.getaddrinfo, name, 443, socket.AF_INET, 0, 0, socket.AI_NUMERICHOST))
with EgressGuard.pinned_to(HostName("A.example.com.")):
    out = [look("b.example.com"), look("x.b.example.com"), reason(udp(A, 53))]
    try: EgressGuard.pinned_to("x.b.example.com").__enter__()
    except RuleError as e: out.append(e.message)
try: EgressGuard.pinned_to("elsewhere.test").__enter__()
except RuleError as e: out.append(e.message)
out.append(reason(udp(A, 53)))
print(json.dumps(out))
"""
    )
    out = guarded.answer(body, version)
    assert out[:3] == ["default", "scope", "scope"]
    assert out[3].startswith("pinned_to('x.b.example.com') leaves nothing open: around it is open tcp://a.example.com")
    assert out[4].startswith("pinned_to('elsewhere.test') leaves nothing open: around it is open udp://198.51.100.0/24")
    assert out[5] == "ok"


@pytest.mark.parametrize("version", PYTHONS)
def test_tasks_that_interleave(version):
    body = (
        INSTALL
        + """
async def job(scope, expect, rounds):
    for _ in range(rounds):
        with scope:
            for _ in range(3):
                assert both() == expect, (both(), expect)
                await asyncio.sleep(0)
        assert both() == ["ok", "ok"]
        await asyncio.sleep(0)
@only_b
async def decorated():
    out = []
    for _ in range(20):
        out.append(both()); await asyncio.sleep(0)
    return out
async def main():
    async with only_a:
        child = asyncio.create_task(asyncio.to_thread(both))
        in_executor = await asyncio.get_running_loop().run_in_executor(None, both)
        in_thread = await child
    wide = EgressGuard.scope(["udp://198.51.100.0/24", "udp://203.0.113.0/24"])
    *_, out = await asyncio.gather(
        job(only_a, ["ok", "scope"], 10), job(only_b, ["scope", "ok"], 10), job(wide, ["ok", "ok"], 10), decorated())
    return [in_thread, in_executor, out == [["scope", "ok"]] * 20, both()]
print(json.dumps(asyncio.run(main())))
"""
    )
    in_thread, in_executor, interleaved, after = guarded.answer(body, version)
    assert in_thread == ["ok", "scope"]  # to_thread copies the context
    assert in_executor == ["ok", "ok"]  # a bare executor does not: the policy itself holds there
    assert interleaved is True and after == ["ok", "ok"]


@pytest.mark.parametrize("version", PYTHONS)
def test_a_generator_closed_in_another_context_widens_nothing(version):
    body = (
        INSTALL
        + """
import contextvars
def block():
    with only_a: yield both()
async def ablock():
    with only_a: yield both()
out = []
begun = block()
elsewhere = contextvars.copy_context()
out.append(elsewhere.run(next, begun))  # its entry is in the other context
with only_a:
    begun.close()
    out.append(both())
out.append(both())
inside = block()
with only_a:
    next(inside)
    contextvars.Context().run(inside.close)  # the entry stays here: narrower, not wider
    out.append(both())
out.append(both())
async def main():
    agen = ablock()
    await asyncio.create_task(anext_of(agen))
    async def close():
        with only_a:
            await agen.aclose()
            return both()
    return [await asyncio.create_task(close()), both()]
async def anext_of(agen): return await agen.__anext__()
out += contextvars.Context().run(asyncio.run, main())
async def interleaved():
    gens = []
    async def job():
        for _ in range(5):
            mine = block(); gens.append(mine); next(mine)
            await asyncio.sleep(0)
            with only_a:
                gens.pop(0).close()  # whoever began it
                seen.append(both())
                await asyncio.sleep(0)
                seen.append(both())
    seen = []
    await asyncio.gather(*(job() for _ in range(4)))
    return [len(seen), *set(map(tuple, seen))]
out.append(contextvars.Context().run(asyncio.run, interleaved()))
print(json.dumps(out))
"""
    )
    narrow, wide = ["ok", "scope"], ["ok", "ok"]
    assert guarded.answer(body, version) == [
        narrow, narrow, wide, narrow, narrow, narrow, wide, [40, narrow],
    ]  # fmt: skip


@pytest.mark.parametrize("version", PYTHONS)
def test_an_exit_takes_its_own_entry_through_stacks_and_methods(version):
    body = (
        INSTALL
        + """
import contextlib
out = []
with contextlib.ExitStack() as stack:
    stack.enter_context(only_a); stack.enter_context(only_a)
    out.append(both())
out.append(both())
async def main():
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(only_a)
        with only_a: out.append(both())
        out.append(both())
asyncio.run(main())
class Case:
    def set_up(self): self.scope = EgressGuard.scope(["udp://198.51.100.0/24"]); self.scope.__enter__()
    def tear_down(self): self.scope.__exit__(None, None, None)
case = Case(); case.set_up(); out.append(both()); case.tear_down(); out.append(both())
for change in ("judge", "text", "_parts", "approved"):
    try: setattr(only_a, change, only_b.judge); out.append(change)
    except AttributeError: pass
try: only_a.__init__(only_b.judge, ""); out.append("init")
except AttributeError: pass
print(json.dumps(out))
"""
    )
    narrow, wide = ["ok", "scope"], ["ok", "ok"]
    assert guarded.answer(body, version) == [narrow, wide, narrow, narrow, narrow, wide]


@pytest.mark.parametrize("version", PYTHONS)
def test_decorators_of_functions_and_generators(version):
    body = (
        INSTALL
        + """
@only_a
def function(x, *, y): "doc"; return [x, y, both()]
@only_a
def generator():
    got = [both()]
    try:
        while True: got.append(((yield got[-1]), both()))
    except KeyError as e:
        got.append(["thrown", both()])
        yield got[-1]
    finally: closed.append(both())
    return "end"
@only_a
async def async_generator():
    try:
        sent = yield both()
        await asyncio.sleep(0)
        yield [sent, both()]
        try: yield 1
        except KeyError: yield ["thrown", both()]
    finally: closed.append(both())
closed, out = [], [function(1, y=2), function.__doc__]
g = generator()
out += [next(g), both(), g.send("x"), both(), g.throw(KeyError("k"))]
try: next(g)
except StopIteration as e: out.append(e.value)
h = generator(); next(h); h.close()
async def main():
    agen = async_generator()
    out.extend([await agen.asend(None), both(), await agen.asend("s"), both(), await agen.asend(None)])
    out.append(await agen.athrow(KeyError("k")))
    out.append([x async for x in agen])
    early = async_generator(); await early.asend(None); await early.aclose()
asyncio.run(main())
print(json.dumps([out, closed, both()]))
"""
    )
    out, closed, after = guarded.answer(body, version)
    inside, outside = ["ok", "scope"], ["ok", "ok"]
    assert out == [
        [1, 2, inside], "doc", inside, outside, ["x", inside], outside, ["thrown", inside], "end",
        inside, outside, ["s", inside], outside, 1, ["thrown", inside], [],
    ]  # fmt: skip
    assert closed == [inside] * 4 and after == outside


@pytest.mark.parametrize("version", PYTHONS)
def test_decorators_of_what_only_makes_coroutines_and_generators(version):
    """Partials, wrappers of other decorators, objects whose call is async: the bodies run in the scope all the same."""
    body = (
        INSTALL
        + """
import functools
async def coroutine(): await asyncio.sleep(0); return both()
def generator():
    yield both()
    yield both()
async def async_generator(): yield both()
def wrapper(): return coroutine()
class Called:
    async def __call__(self): return both()
class Kept:
    @only_a
    @staticmethod
    def static(): return both()
    @only_a
    def method(self): return generator()
async def main():
    out = [await only_a(made)() for made in (functools.partial(coroutine), wrapper, Called())]
    out += [each async for each in only_a(functools.partial(async_generator))()]
    return [*out, both()]
steps = only_a(functools.partial(generator))()
print(json.dumps([*asyncio.run(main()), next(steps), both(), *steps, Kept.static(), *Kept().method(), both()]))
"""
    )
    inside, outside = ["ok", "scope"], ["ok", "ok"]
    assert guarded.answer(body, version) == [*[inside] * 4, outside, inside, outside, *[inside] * 4, outside]


@pytest.mark.parametrize("version", PYTHONS)
def test_threads_begin_without_scopes_and_the_policy_holds(version):
    body = (
        INSTALL
        + """
out = []
with only_a:
    t = threading.Thread(target=lambda: out.append([*both(), reason(udp(OUT, 53))]))
    t.start(); t.join()
    out.append(both())
print(json.dumps([out, getattr(sys.flags, "thread_inherit_context", 0)]))
"""
    )
    (in_thread, here), inherits = guarded.answer(body, version)
    assert in_thread == (["ok", "scope", "default"] if inherits else ["ok", "ok", "default"])
    assert here == ["ok", "scope"]


def test_a_scope_of_an_observing_guard_observes():
    body = """
told = []
EgressGuard.install(["udp://198.51.100.0/24"], mode="observe", on_blocked=lambda v: told.append(v.reason))
with EgressGuard.scope(["udp://198.51.100.1"]):
    print(json.dumps([reason(udp("198.51.100.2", 53)), reason(udp("127.0.0.1", 53)), told]))
"""
    assert guarded.answer(body) == ["ok", "loopback", ["scope", "loopback"]]


@pytest.mark.parametrize(
    "name", ["*.example.com", "10.0.0.1", "https://h.example", "h:443", "", "bücher.example", "::1"]
)
def test_what_is_no_host_name(name):
    with pytest.raises(RuleError):
        HostName(name)


def test_a_host_name_is_canonical():
    assert HostName("API.Example.COM.") == "api.example.com"
