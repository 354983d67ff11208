"""firewalld itself beside us: its reloads take nothing of ours, its zones neither open nor break a bottle; where its
forward chain drops, the message names it and the remedy works."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from netfilter.heal import HealingNetfilter
from tests.root.test_nf_epochs import Transfer, echoes, only
from tests.support import firewalld
from tests.support.nf_lab import OTHER4, OTHER6, POOL4, POOL6, UPLINK4, WEB4, WEB6, Lab, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(not firewalld.present(), reason=firewalld.MISSING)]


@pytest.fixture
def host() -> Iterator[SimpleNamespace]:
    """A host that firewalld holds, the uplink in its zone `public`, with one bottle."""
    with Lab() as lab:
        lab.nf = lab.run(HealingNetfilter)
        lab.open()
        watcher = lab.run(lab.nf.watch)
        fire = firewalld.Firewalld(lab)
        try:
            fire.cmd("--permanent", "--zone=public", "--change-interface=up0")
            fire.cmd("--reload")
            lab.bottle(16, only(WEB4), only(WEB6))
            yield SimpleNamespace(lab=lab, fire=fire, watcher=watcher)
        finally:
            fire.close()


def reaches(lab: Lab, address: str, port: int = 443) -> bool:
    try:
        lab.connect("am-16", address, port, 1.0).close()
    except OSError:
        return False
    return True


def test_its_reloads_take_nothing_of_ours_and_nobody_is_told(host: SimpleNamespace) -> None:
    lab, fire = host.lab, host.fire
    transfers = [Transfer(lab.connect("am-16", address)) for address in (WEB4, WEB6)]
    lab.run(host.watcher.changes)
    listed = lab.shell("nft", "list", "chain", "inet", "agentmon", "pre")
    before = [t.blocks for t in transfers]
    for _ in range(3):
        fire.cmd("--reload")
    assert lab.run(host.watcher.changes) == []
    assert lab.shell("nft", "list", "chain", "inet", "agentmon", "pre") == listed
    for transfer, blocks in zip(transfers, before, strict=True):
        until(lambda t=transfer, n=blocks: t.blocks > n or not t.is_alive())  # type: ignore[misc]
        transfer.over = True
        transfer.join()
        assert echoes(transfer.sock), "a permitted flow ended"
    for allowed, refused in ((WEB4, OTHER4), (WEB6, OTHER6)):
        assert reaches(lab, allowed) and not reaches(lab, refused)
    assert lab.world.to(OTHER4) == lab.world.to(OTHER6) == 0


def test_a_zone_that_accepts_everything_opens_no_bottle(host: SimpleNamespace) -> None:
    lab, fire = host.lab, host.fire
    service = lab.receiver("", [UPLINK4, str(POOL4[1])], (2222,))
    fire.cmd("--zone=trusted", f"--add-source={POOL4}")
    fire.cmd("--zone=trusted", f"--add-source={POOL6}")
    fire.cmd("--set-default-zone=trusted")
    for address in (OTHER4, OTHER6):
        assert not reaches(lab, address)
    for address in (UPLINK4, str(POOL4[1])):
        assert not reaches(lab, address, 2222)
    assert (lab.world.to(OTHER4), lab.world.to(OTHER6), service.total()) == (0, 0, 0)
    assert reaches(lab, WEB4) and reaches(lab, WEB6)


def test_where_it_drops_the_message_names_it_and_the_remedy_works(host: SimpleNamespace) -> None:
    """The uplink in a zone of its own: between zones firewalld forwards nothing."""
    lab, fire = host.lab, host.fire
    fire.cmd("--permanent", "--zone=dmz", "--change-interface=up0")
    fire.cmd("--reload")
    until(lambda: not reaches(lab, WEB4))
    assert not reaches(lab, WEB6)
    (blocker,) = lab.run(lab.nf.blockers)
    assert blocker.describe() == (
        "chain filter_FORWARD of table inet firewalld drops what is forwarded (its last rule: reject)"
    )
    for command in blocker.remedy([str(POOL4), str(POOL6)]).split("; "):
        sudo, name, *words = command.split()
        assert (sudo, name) == ("sudo", "firewall-cmd")
        fire.cmd(*words)
    for allowed, refused in ((WEB4, OTHER4), (WEB6, OTHER6)):
        assert reaches(lab, allowed) and not reaches(lab, refused)
    assert lab.world.to(OTHER4) == lab.world.to(OTHER6) == 0


def test_its_panic_stops_bottles_too_and_its_end_lets_them_go_on(host: SimpleNamespace) -> None:
    lab, fire = host.lab, host.fire
    fire.cmd("--panic-on")
    assert not reaches(lab, WEB4)
    fire.cmd("--panic-off")
    until(lambda: reaches(lab, WEB4))
    assert not reaches(lab, OTHER4)
