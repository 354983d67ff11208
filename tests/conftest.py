"""The suite's own rules: it guards its egress, counts what it leaves behind, and skips nothing silently in CI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentmon.cli import leftovers
from tests.support import egress
from tests.support.bpf_lab import Lab

NEEDS_ROOT = ("root", "kernel", "e2e", "adversarial")
IN_CI = bool(os.environ.get("CI"))
LANE, _, PLACE = os.environ.get("AGENTMON_LANE", "1 host").partition(" ")  # tests/lane.py

egress.guard()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--leftovers",
        action="store_true",
        help="fail a root test that leaves anything behind; for a host where nobody else uses agentmon meanwhile",
    )


class Told:
    """A failure is told when it happens: the long report comes minutes later, or never, where CI's time is over."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            words = (crash.message if crash else str(report.longrepr)).splitlines()[:3]
            terminal.write_line(f"\n{report.nodeid} failed in {report.when}: {' | '.join(words)[:600]}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Told(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tests first: unit, then root, then e2e; order inside a file stays."""
    items.sort(key=lambda item: next((i for i, mark in enumerate(NEEDS_ROOT, 1) if item.get_closest_marker(mark)), 0))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if needs_root(item) and os.geteuid() != 0:
        pytest.skip("needs root: sudo make test")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI a skipped root test is a failure: the claim it makes was not tried."""
    report = yield
    if IN_CI and needs_root(item) and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


def needs_root(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(mark) for mark in NEEDS_ROOT)


def picture() -> leftovers.Snapshot:
    """What this lane of the suite has on the host now. The bottles' own cgroup is of the lane that has a daemon."""
    seen = leftovers.snapshot(int(LANE))
    if PLACE == "apart":
        seen["cgroup"] = frozenset(path for path in seen["cgroup"] if "/agentmon-test-" in path)
    return seen


class _Host:
    """The host as the last test found and left it; None where a wider fixture may have changed it since."""

    picture: leftovers.Snapshot | None = None


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    if fixturedef.scope != "function":
        _Host.picture = None


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[object]) -> None:
    if fixturedef.scope != "function":
        _Host.picture = None


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every root test the host is as it was before it, module fixtures included in both pictures. A test that
    left nothing has left what it found: that picture is the next one's first."""
    if not (needs_root(request.node) and request.config.getoption("--leftovers")):
        yield
        return
    before, _Host.picture = _Host.picture or picture(), None
    yield
    found = leftovers.since(before, look=picture)
    assert not found, "left behind:\n" + "\n".join(found)
    _Host.picture = before


@pytest.fixture(autouse=True, scope="session")
def nothing_left_at_the_end(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same for the whole session: what module and session fixtures made must be gone as well."""
    if os.geteuid() != 0 or not request.config.getoption("--leftovers"):
        yield
        return
    before = picture()
    yield
    found = leftovers.since(before, look=picture)
    assert not found, "left behind:\n" + "\n".join(found)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server that tests share, each with a database of its own (postgres_rig.Server.new)."""
    from tests.support import postgres_rig

    if postgres_rig.programs() is None:
        pytest.skip("needs a PostgreSQL server: scripts/setup.sh tests, or apt-get install postgresql")
    server = postgres_rig.Server()
    yield server
    server.close()


@pytest.fixture(params=["file", "postgres"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """Both stores of a ledger: "" for a file, else the URL of an empty database."""
    return "" if request.param == "file" else str(request.getfixturevalue("postgres").new())


@pytest.fixture(scope="session")
def lanes_picture() -> Callable[[], leftovers.Snapshot]:
    """For tests that look themselves at what something leaves behind."""
    return picture


@pytest.fixture(scope="session")
def bpf_lab() -> Iterator[Lab]:
    """Opened BPF programs for all tests that only use them: compiling takes seconds. A test removes its bottles, and
    undoes what it does to the programs themselves, or has a lab of its own."""
    with Lab() as made:
        made.programs.open(str(made.parent))
        yield made
