"""Operations: described, applied in order, undone in reverse."""

from __future__ import annotations

import errno

import pytest

from netfilter.errors import KernelRefused, Missing
from netfilter.fake import FakeNetfilter
from netfilter.transaction import Transaction
from tests.support.nf_lab import WEB4, host_spec, learned, net, rules


def test_all_of_it() -> None:
    done: list[str] = []
    change = Transaction()
    for name in "abc":
        change.add(f"do {name}", lambda n=name: done.append(n))
    assert change.describe() == ["do a", "do b", "do c"]
    assert done == []
    change.run()
    assert done == ["a", "b", "c"]


def test_or_nothing() -> None:
    done: list[str] = []

    def fail() -> None:
        raise KernelRefused(errno.EBUSY, "c")

    def stuck() -> None:
        raise KernelRefused(errno.ENOENT, "undo b")

    change = Transaction()
    change.add("a", lambda: done.append("a"), lambda: done.append("-a"))
    change.add("b", lambda: done.append("b"), stuck)
    change.add("nothing to undo", lambda: done.append("n"))
    change.add("c", fail, lambda: done.append("-c"))
    with pytest.raises(KernelRefused) as found:
        change.run()
    assert done == ["a", "b", "n", "-a"]
    assert found.value.errno == errno.EBUSY
    assert any("b could not be undone" in note for note in found.value.__notes__)


def test_errors_say_operation_and_reason() -> None:
    plain = KernelRefused(errno.EEXIST, "make device am16")
    assert str(plain) == "[Errno 17] make device am16: EEXIST"
    missing = Missing("libnftables", "apt-get install libnftables1")
    assert (missing.what, missing.remedy) == ("libnftables", "apt-get install libnftables1")
    assert str(missing) == "libnftables: apt-get install libnftables1"


def test_the_fakes_clock_ends_what_was_learned() -> None:
    now = [0]
    fake = FakeNetfilter(lambda: now[0])
    fake.open_host(host_spec())
    fake.create_bottle(net(16))
    fake.apply(rules(16, 1))
    fake.learn(16, [learned(WEB4, timeout_s=2)])
    flow = fake.connect(16, learned(WEB4).address, 443)
    now[0] = 2_000_000_000
    with pytest.raises(ConnectionRefusedError, match="policy"):
        fake.connect(16, learned(WEB4).address, 443)
    assert flow.alive
