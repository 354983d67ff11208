"""What the tests of BPF programs share beside `bpf_lab`: a bottle of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bpf_lab import Bottle, Lab


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
