"""What several files share beside `bpf_lab`: a bottle of the BPF programs' tests, a proxy worker of the proxy's."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support import proxy_rig
from tests.support.bpf_lab import Bottle, Lab
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import fresh


@pytest.fixture
def bottle(bpf_lab: Lab) -> Iterator[Bottle]:
    """One bottle of the session's lab, for one test; its processes, its policy and what was received go with it."""
    made = bpf_lab.bottle()
    yield made
    bpf_lab.end_processes()
    bpf_lab.programs.delete_bottle(made.slot)
    bpf_lab.remove_bottles()
    bpf_lab.received()
    bpf_lab.programs.read()


@pytest.fixture
def own_bpf_lab() -> Iterator[Lab]:
    """Programs of the test's own, loaded for it: for tests that replace, break or end them."""
    with Lab() as made:
        made.programs.open(str(made.parent))
        yield made


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A proxy worker, a ledger and an upstream for all tests of a file."""
    rig = proxy_rig.start(tmp_path_factory.mktemp("proxy"))
    yield rig
    rig.stop()


@pytest.fixture
def rig(running: Rig) -> Rig:
    """The same with a fresh bottle, whose budget and past are its own; a file with other needs overrides this one."""
    return fresh(running)


@pytest.fixture(params=["http/1.1", "h2"])
def to_provider(request: pytest.FixtureRequest, running: Rig) -> Iterator[str]:
    """What the provider speaks with a worker whose client speaks HTTP/2."""
    if request.param == "h2" and sys.version_info < (3, 12):
        pytest.skip("HTTP/2 is spoken from Python 3.12 on")
    running.upstream.speak(request.param)
    yield request.param
    running.upstream.speak("http/1.1")
