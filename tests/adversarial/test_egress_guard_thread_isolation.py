"""What the loopback fixture opens is the test's own thread, and nothing that runs beside it.

Defined, and tested here: tasks of an event loop that runs in the test's thread are let through, for they run in it.
Refused: other threads, old or new, executors, `asyncio.to_thread`, loops of other threads, contexts carried over, and
processes, forked or fresh.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentmon.guard import EgressGuard, EgressViolation, capability
from tests.support import loopback

REFUSED = "loopback"


@pytest.fixture
def server() -> Iterator[loopback.Server]:
    with loopback.server() as served:
        yield served


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    EgressGuard.install(allow=["api.example.com:443"])
    yield
    EgressGuard.reset_for_test()


def outcome(port: int, client: str = "socket") -> str:
    """ "ok", or the reason of the refusal."""
    try:
        return loopback.CLIENTS[client](port).decode()
    except EgressViolation as e:
        return e.reason


async def outcome_by_streams(port: int) -> str:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except EgressViolation as e:
        return e.reason
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer[-2:].decode()


class Beside:
    """A thread that does what it is told; started before the fixture opens anything."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._done.put(job())
            except BaseException as e:  # noqa: BLE001 - told to the test
                self._done.put(e)

    def do(self, job: Callable[[], Any]) -> Any:
        self._jobs.put(job)
        return self._done.get(timeout=30)

    def end(self) -> None:
        self._jobs.put(None)
        self._thread.join(30)


@pytest.fixture
def beside() -> Iterator[Beside]:
    thread = Beside()
    yield thread
    thread.end()


@pytest.mark.parametrize("client", loopback.CLIENTS)
def test_a_thread_is_refused_while_the_test_gets_through(
    client: str, beside: Beside, egress_test_loopback: None, server: loopback.Server
) -> None:
    assert outcome(server.port, client) == "ok"
    assert beside.do(lambda: outcome(server.port, client)) == REFUSED  # older than the grant
    new = Beside()
    assert new.do(lambda: outcome(server.port, client)) == REFUSED  # younger
    new.end()
    assert outcome(server.port, client) == "ok"
    assert server.accepted == 2


def test_executors_are_refused(egress_test_loopback: None, server: loopback.Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert set(pool.map(outcome, [server.port] * 16)) == {REFUSED}
    assert outcome(server.port) == "ok"


def test_a_context_carries_nothing(egress_test_loopback: None, beside: Beside, server: loopback.Server) -> None:
    context = contextvars.copy_context()
    assert beside.do(lambda: context.run(outcome, server.port)) == REFUSED
    assert context.run(outcome, server.port) == "ok"


def test_a_loop_in_the_tests_own_thread(egress_test_loopback: None, server: loopback.Server) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await outcome_by_streams(server.port) == "ok"
        tasks = [asyncio.create_task(outcome_by_streams(server.port)) for _ in range(8)]
        assert set(await asyncio.gather(*tasks)) == {"ok"}
        assert await asyncio.to_thread(outcome, server.port) == REFUSED
        assert await loop.run_in_executor(None, outcome, server.port) == REFUSED
        assert await outcome_by_streams(server.port) == "ok"

    asyncio.run(main())


def test_a_loop_in_another_thread(egress_test_loopback: None, beside: Beside, server: loopback.Server) -> None:
    assert beside.do(lambda: asyncio.run(outcome_by_streams(server.port))) == REFUSED
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        sent = asyncio.run_coroutine_threadsafe(outcome_by_streams(server.port), loop)
        assert sent.result(30) == REFUSED
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
    assert server.accepted == 0


def test_what_another_thread_sends_to_the_tests_loop_runs_in_the_tests_thread(
    egress_test_loopback: None, beside: Beside, server: loopback.Server
) -> None:
    async def main() -> tuple[str, str]:
        loop = asyncio.get_running_loop()

        def send() -> tuple[str, str]:
            sent = asyncio.run_coroutine_threadsafe(outcome_by_streams(server.port), loop)
            return sent.result(30), outcome(server.port)

        return await asyncio.to_thread(beside.do, send)

    assert asyncio.run(main()) == ("ok", REFUSED)


def test_many_threads_at_once_never_get_through(egress_test_loopback: None, server: loopback.Server) -> None:
    """While the grant is open, given back and opened again in the test's thread."""
    go, stop = threading.Barrier(9), threading.Event()
    seen: list[set[str]] = [set() for _ in range(8)]

    def hammer(mine: set[str]) -> None:
        go.wait(30)
        while not stop.is_set():
            mine.add(outcome(server.port))

    threads = [threading.Thread(target=hammer, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    go.wait(30)
    own = {outcome(server.port) for _ in range(50)}
    stop.set()
    for thread in threads:
        thread.join(30)
    assert own == {"ok"} and set().union(*seen) == {REFUSED}
    assert server.accepted == 50


def test_a_thread_cannot_mint_or_enter_for_itself(
    request: pytest.FixtureRequest, egress_test_loopback: None, beside: Beside, server: loopback.Server
) -> None:
    assert isinstance(beside.do(lambda: capability.loopback(request)), capability.CapabilityRefused)
    grant = capability.loopback(request)

    def enter() -> str:
        with grant:
            return outcome(server.port)

    handed_over = beside.do(enter)
    assert isinstance(handed_over, capability.CapabilityRefused) and "thread of its test" in str(handed_over)
    assert beside.do(lambda: outcome(server.port)) == REFUSED


def test_a_grant_refused_elsewhere_still_holds_in_its_own_thread(
    request: pytest.FixtureRequest, egress_test_loopback: None, beside: Beside
) -> None:
    grant = capability.loopback(request)
    assert isinstance(beside.do(grant.__enter__), capability.CapabilityRefused)
    with grant:
        assert capability.is_open() and not beside.do(capability.is_open)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # which is what is tried here
def test_a_forked_child_is_refused(egress_test_loopback: None, server: loopback.Server) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply(outcome, (server.port,)) == REFUSED
    assert outcome(server.port) == "ok"


def test_two_tests_threads_do_not_share() -> None:
    """The next test in this thread begins closed: see test_egress_guard; here: nothing is left from the ones above."""
    assert not capability.is_open()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # which is what is tried here
def test_a_fork_in_the_tests_thread_keeps_nothing(egress_test_loopback: None, server: loopback.Server) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0 if outcome(server.port) == REFUSED and not capability.is_open() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert server.accepted == 0
