"""Live flows over many changes: what is still allowed loses nothing, what is taken back dies at once and for good."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from netfilter import changing
from netfilter.spec import Direct, Mode
from tests.support.nf_lab import OTHER4, OTHER6, POOL4, WEB4, WEB6, Lab, direct, learned, net, rules, until

pytestmark = pytest.mark.root
BLOCK = bytes(range(256)) * 32


def only(address: str) -> Direct:
    return direct(f"{address}/{'128' if ':' in address else '32'}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.open()
        yield lab


def refused(lab: Lab, address: str) -> bool:
    try:
        lab.connect("am-16", address).close()
    except OSError:
        return True
    return False


def echoes(sock: socket.socket, data: bytes = b"still there") -> bool:
    sock.settimeout(5)
    try:
        sock.sendall(data)
        got = b""
        while len(got) < len(data):
            more = sock.recv(len(data) - len(got))
            if not more:
                return False
            got += more
    except OSError:
        return False
    return got == data


class Transfer(threading.Thread):
    """Blocks to and fro over one connection until told to stop; ends by itself when one is not whole."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock, self.blocks, self.over = sock, 0, False
        self.start()

    def run(self) -> None:
        while not self.over and echoes(self.sock, BLOCK):
            self.blocks += 1


def test_a_thousand_changes_cost_a_permitted_transfer_no_byte(lab: Lab) -> None:
    """Of others' rules, of names, of modes; meanwhile the address that the connection was opened to has expired."""
    lab.bottle(16, epoch=1)
    lab.run(lab.nf.learn, 16, [learned(WEB4, timeout_s=1), learned(WEB6, timeout_s=1)])
    transfers = [Transfer(lab.connect("am-16", address)) for address in (WEB4, WEB6)]
    until(lambda: refused(lab, WEB4) and refused(lab, WEB6), 10, "the learned addresses did not expire")
    began = [t.blocks for t in transfers]
    kept = (learned(WEB4, timeout_s=0), learned(WEB6, timeout_s=0))
    epoch, marks = 1, set()
    for number in range(1000):
        adds = number % 2 == 0
        epoch += not adds
        others = (only(OTHER4), direct(f"192.0.2.{number % 250}/32", "tcp", 443), direct("2001:db8:9::/48"))
        known = (*kept, learned(OTHER6)) if adds else kept
        mode = Mode.OBSERVE if number % 250 == 249 else Mode.ENFORCE
        wanted = rules(16, epoch, *(others if adds else ()), learned=known, mode=mode)
        if lab.run(lab.nf.put, wanted) and number % 50 == 1:
            lab.run(lab.nf.end_refused, 16)
        marks.add(lab.nf._bottles[16].rules.epoch)
    assert 3 < len(marks) < 20
    for transfer, before in zip(transfers, began, strict=True):
        reached = transfer.blocks
        until(lambda t=transfer, n=reached: t.blocks > n or not t.is_alive(), 10)  # type: ignore[misc]
        assert transfer.is_alive() and transfer.blocks > before, "a block came back other than it went"
        transfer.over = True
        transfer.join()
        assert echoes(transfer.sock)
    lab.run(lab.nf.put, rules(16, epoch + 1, learned=kept))
    assert refused(lab, OTHER4) and refused(lab, WEB4) and refused(lab, OTHER6)


@pytest.mark.parametrize(("kept", "ended"), [(WEB4, OTHER4), (WEB6, OTHER6)])
@pytest.mark.parametrize("how", ["rule", "name", "deny"])
def test_what_is_taken_back_dies_in_both_directions(
    lab: Lab, kept: str, ended: str, how: str, record_property: Callable[[str, object], None]
) -> None:
    """Refused when `put` returns, ended by `end_refused`; the chain and the flows' marks are not touched."""
    mine = {"rule": (only(ended),), "name": (), "deny": (direct("::/0" if ":" in ended else "0.0.0.0/0"),)}[how]
    lab.bottle(16, only(kept), *mine, epoch=1)
    if how == "name":
        lab.run(lab.nf.learn, 16, [learned(ended)])
    good, bad = lab.connect("am-16", kept), lab.connect("am-16", ended)
    chain = lab.shell("nft", "list", "chain", "inet", "agentmon", "b16")
    seen = lab.world.to(ended)
    after = rules(16, 2, only(kept), *mine, deny=(only(ended),)) if how == "deny" else rules(16, 2, only(kept))
    began = time.monotonic()
    assert lab.run(lab.nf.put, after)
    assert refused(lab, ended)
    assert lab.shell("nft", "list", "chain", "inet", "agentmon", "b16") == chain
    found = lab.run(lab.nf.walk, 16)()
    assert lab.run(lab.nf.end_refused, 16, found) >= 1
    record_property("ended_ms", (time.monotonic() - began) * 1000)
    bad.settimeout(2)
    with pytest.raises(OSError) as error:
        bad.recv(1)
    assert error.value.errno in {errno.ECONNABORTED, errno.ECONNRESET}
    until(lambda: (ended, 443, errno.ECONNRESET) in lab.world.resets, 2, "the far end was not told")
    assert time.monotonic() - began < 2
    assert lab.world.to(ended) <= seen + 1  # the reset
    assert ended not in lab.shell("ip", "netns", "exec", "am-16", "ss", "-Htn")
    assert f"dst={ended} " not in lab.shell("conntrack", "-L", "-f", "ipv6" if ":" in ended else "ipv4")
    assert echoes(good)
    assert lab.run(lab.nf.end_refused, 16) == 0


def test_whoever_dies_after_a_removal_leaves_it_in_force(lab: Lab) -> None:
    """Put, and then nobody ends the flows: they are refused for as long as it takes, and ended by the next one."""
    lab.bottle(16, only(WEB4), only(OTHER4), only(OTHER6), epoch=1)
    good, bad, datagrams = lab.connect("am-16", WEB4), lab.connect("am-16", OTHER4), lab.connect("am-16", OTHER6)
    lab.run(lab.nf.put, rules(16, 2, only(WEB4)))
    lab.nf = type(lab.nf)()
    lab.open()
    lab.run(lab.nf.adopt_bottle, net(16))
    seen = lab.world.to(OTHER6)
    with pytest.raises(OSError):
        datagrams.sendall(b"x")
        datagrams.settimeout(1)
        datagrams.recv(1)
    assert echoes(good) and lab.world.to(OTHER6) <= seen + 1
    lab.run(lab.nf.apply, rules(16, 2, only(WEB4)))
    bad.settimeout(1)
    with pytest.raises(OSError):
        bad.recv(1)
    assert echoes(good)


@pytest.mark.parametrize("doomed", [OTHER4, OTHER6])
def test_what_was_taken_back_does_not_pass_again_while_a_new_epoch_begins(
    lab: Lab, doomed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has ended the flow yet; for as long as live flows are re-marked, both epochs are in force."""
    lab.bottle(16, only(WEB4), only(doomed), epoch=1)
    good, bad = lab.connect("am-16", WEB4), lab.connect("am-16", doomed)
    assert echoes(bad)
    assert lab.run(lab.nf.put, rules(16, 2, only(WEB4)))
    seen, between, remarking = lab.world.to(doomed), list[bool](), changing.remarking

    def remarking_slowly(*what: Any) -> Callable[[], int]:
        between.extend([echoes(good), echoes(bad)])
        return remarking(*what)

    monkeypatch.setattr(changing, "remarking", lambda *what: partial(lambda w: remarking_slowly(*w)(), what))
    lab.run(lab.nf.put, replace(rules(16, 3, only(WEB4)), services=()))
    assert between[:2] == [True, False]
    assert lab.world.to(doomed) <= seen + 1  # the reset
    assert echoes(good) and refused(lab, doomed)


def test_an_address_learned_again_after_its_removal_keeps_its_flow_when_it_expires(lab: Lab) -> None:
    """x has the address that the removal took back; learning it begins a new epoch, else its expiry would end flows."""
    lab.bottle(16, direct("198.51.100.0/24"), only(WEB6), epoch=1)
    other, doomed = lab.connect("am-16", WEB6), lab.connect("am-16", OTHER4)
    assert lab.run(lab.nf.put, rules(16, 2, only(WEB6)))
    assert refused(lab, WEB4)
    lab.run(lab.nf.learn, 16, [learned(WEB4, timeout_s=1)])
    sock = lab.connect("am-16", WEB4)
    until(lambda: refused(lab, WEB4), 10, "the learned address did not expire")
    assert echoes(sock) and echoes(other) and not echoes(doomed)


def test_an_address_used_again_inherits_nothing_from_entries_made_by_hand(lab: Lab) -> None:
    """Of an earlier epoch, with every other bit of the mark set, for the very ports that the next tenant will use."""
    lab.bottle(16, only(WEB4), epoch=1)
    lab.run(lab.nf.delete_bottle, 16)
    for mark in ("0x1", "0xff000001"):
        port = 50_000 + len(mark)
        lab.shell("conntrack", "-I", "-s", str(POOL4[16]), "-d", OTHER4, "-p", "tcp", "--sport", str(port), "--dport",
                  "443", "--state", "ESTABLISHED", "-t", "600", "-u", "ASSURED,SEEN_REPLY", "--mark", mark)  # fmt: skip
    lab.bottle(16, only(WEB4), epoch=2)
    seen = lab.world.to(OTHER4)

    def tries(port: int) -> None:
        with socket.socket() as sock:
            sock.bind(("", port))
            sock.settimeout(1)
            sock.connect((OTHER4, 443))

    for mark in ("0x1", "0xff000001"):
        with pytest.raises(OSError):
            lab.inside("am-16", partial(tries, 50_000 + len(mark)))
    assert lab.world.to(OTHER4) == seen
    lab.connect("am-16", WEB4).close()


def test_a_plan_says_what_would_happen_and_does_nothing(lab: Lab) -> None:
    lab.bottle(16, only(WEB4), only(OTHER4), epoch=1)
    before = lab.shell("nft", "list", "ruleset")
    lines = lab.run(lab.nf.plan, rules(16, 2, only(WEB4)))
    assert f"host: delete element inet agentmon n4_16 {{ {OTHER4} . tcp . 1-65535 }}" in lines
    assert f"inside: add element inet agentmon x4 {{ {OTHER4} . tcp . 1-65535 }}" in lines
    assert lines[-1] == "end the flows that are refused now"
    assert lab.shell("nft", "list", "ruleset") == before
    lab.connect("am-16", OTHER4).close()
