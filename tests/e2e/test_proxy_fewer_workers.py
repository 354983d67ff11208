"""A daemon with fewer proxy workers than the last one had: the others serve the bottles of those that end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_proxy_workers import FETCH, MANIFEST, ask, two
from tests.support.live import World, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def brief(tmp_path: Path) -> Iterator[World]:
    """A world for one test, which changes what it is made of."""
    (tmp_path / "m.yml").write_text(MANIFEST)
    with World(tmp_path, "proxies: 2\n") as made:
        made.start_daemon()
        yield made


def test_another_daemon_with_fewer_workers_takes_over(brief: World) -> None:
    world, bottles = brief, two(brief)
    jobs = next(bottles)
    second = world.pid_of("proxy-1")
    assert world.daemon is not None
    world.daemon.send_signal(signal.SIGTERM)  # its bottles stay in force
    world.daemon.wait(timeout=30)
    world.settings.write_text(world.settings.read_text().replace("proxies: 2", "proxies: 1"))
    world.start_daemon()
    until(lambda: not os.path.exists(f"/proc/{second}"), 10)
    for job in jobs.values():
        until(lambda job=job: ask(job, FETCH) == "200", 20, "a bottle of the second worker is not served")
    assert next(bottles, None) is None  # they end as they should
