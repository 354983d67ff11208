"""The golden commands on the kernel: text and JSON make the same ruleset; what they refuse, they refuse whole."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from netfilter.errors import KernelRefused
from netfilter.language import TABLE, Command, Part, table
from netfilter.netns import namespaces
from netfilter.nfnetlink import Elements
from netfilter.nft import Nft
from tests.support.nf_cases import CASES

pytestmark = pytest.mark.root


def ruleset(before: list[Command], change: list[Command], how: str) -> list[dict[str, Any]]:
    """What the kernel has after `change`, in a namespace that ends with the call."""

    def work() -> list[dict[str, Any]]:
        namespaces.unshare()
        nft = Nft()
        nft.run(before, "what is there before")
        if how == "raw":
            Elements(TABLE).run(change, "the change")
        else:
            getattr(nft, how)(change, "the change")
        return [_plain(o) for o in nft.listing("list ruleset") if "metainfo" not in o]

    return namespaces.in_thread(work)


def _plain(value: Any) -> Any:
    """Without handles and the time that is left."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in {"handle", "expires"}}
    return [_plain(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", CASES)
def test_text_json_and_messages_mean_the_same(name: str) -> None:
    before, change = CASES[name]
    text, json = ruleset(before, change, "run"), ruleset(before, change, "run_json")
    assert text == json
    assert text
    if not name.startswith("host"):  # libnftables' own work: once, when nothing is in the way
        assert text == ruleset(before, change, "raw")


def test_a_transaction_applies_whole_or_not_at_all() -> None:
    before, change = CASES["bottle-created"]
    bad = Part("add rule inet agentmon nowhere accept", None)

    def work() -> tuple[list[Any], list[Any]]:
        namespaces.unshare()
        nft = Nft()
        nft.run(before, "host")
        there = nft.listing("list ruleset")
        with pytest.raises(KernelRefused) as found:
            nft.run([*change, bad], "half of it")
        assert found.value.operation == "half of it"
        return there, nft.listing("list ruleset")

    before_it, after = namespaces.in_thread(work)
    assert before_it == after


def test_errors_carry_the_kernels_errno() -> None:
    def work() -> list[int | None]:
        namespaces.unshare()
        nft, found = Nft(), []
        for words in ("list table inet agentmon", "add chain inet agentmon x", "nonsense"):
            try:
                nft.run([Part(words, None)], "try")
            except KernelRefused as e:
                found.append(e.errno)
        with contextlib.suppress(KernelRefused):
            nft.run_json([table("delete")], "json")
            found.append(0)
        return found

    assert namespaces.in_thread(work) == [2, 2, 22]
