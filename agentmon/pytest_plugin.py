"""pytest plugin: the fixture `egress_test_loopback`, the only way to loopback in a process that the guard holds.

    def test_against_a_local_server(egress_test_loopback): …

It opens loopback for the thread that runs the test which names it, from the fixture's set-up to its end. It is not
opened for all tests at once: asked for by an autouse fixture, or by `usefixtures` in a configuration file, it refuses.
What the test's own thread runs is let through (an event loop's tasks too); other threads, executors,
`asyncio.to_thread` and child processes are not. Without a guard in force it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentmon.guard import capability


@pytest.fixture
def egress_test_loopback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Loopback is open for this test, in its own thread, until it ends; for nothing and nobody else.

    :raises CapabilityRefused: the test itself did not ask for it.
    """
    if not asks(request.node):
        raise capability.CapabilityRefused(
            f"{capability.FIXTURE} opens loopback for tests that ask for it, not for all: name it as a parameter of "
            "the test, or in its usefixtures mark"
        )
    with capability.loopback(request):
        yield


def asks(item: pytest.Item) -> bool:
    """Whether the test names the fixture: as a parameter, in a mark, or by another fixture that it names.

    Autouse fixtures and the ini option `usefixtures` ask for every test, so they do not count.
    """
    info = getattr(item, "_fixtureinfo", None)  # pytest's FuncFixtureInfo; doctests have an empty one
    waiting = list(getattr(info, "argnames", ()))
    for mark in item.iter_markers("usefixtures"):
        waiting += mark.args
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name == capability.FIXTURE:
            return True
        if name in seen:
            continue
        seen.add(name)
        for definition in getattr(info, "name2fixturedefs", {}).get(name, ()):
            waiting += definition.argnames
    return False
