"""A namespace that others made is held as a bottle: what leaves it is what its rules allow, by our device alone; each
side holds alone; nothing of it is changed when it is let go."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Iterator

import pytest

from netfilter.errors import KernelRefused
from netfilter.host import HostNetfilter
from netfilter.spec import Mode
from tests.support.nf_engine import BOX4, BRIDGE4, NEIGHBOUR4, NEIGHBOUR6, Engine, asks
from tests.support.nf_lab import DNS, OTHER4, OTHER6, POOL4, POOL6, RUN, WEB4, WEB6, Lab, direct, learned, rules, until

pytestmark = pytest.mark.root
WEBS = (direct(f"{WEB4}/32"), direct(f"{WEB6}/128"), direct(f"{WEB4}/32", "udp"), direct(f"{WEB6}/128", "udp"))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Lab() as lab:
        made = Engine(lab)
        lab.open()
        yield made


@pytest.fixture(autouse=True)
def let_go(engine: Engine) -> Iterator[None]:
    yield
    for slot in engine.lab.run(engine.lab.nf.slots):
        engine.detach(slot)


def ruleset(engine: Engine, name: str) -> str:
    """Everything that attaching could change in there, and on the host's devices, once IPv6 addresses are settled."""
    tentative = ["nsenter", f"--net={RUN / name}", "ip", "-6", "address", "show", "tentative"]
    until(lambda: not engine.lab.shell(*tentative).strip())
    inside = [["nft", "list", "ruleset"], ["ip", "rule"], ["ip", "-6", "rule"], ["ip", "route", "show", "table", "all"]]
    inside += [["ip", "-br", "link"], ["ip", "-br", "address"]]
    found = [engine.lab.shell("nsenter", f"--net={RUN / name}", *words) for words in inside]
    found += [engine.lab.shell("ip", *words) for words in (("-br", "link"), ("route",), ("rule",), ("-6", "rule"))]
    return "\n".join([*found, engine.lab.shell("nft", "list", "tables")])


@pytest.mark.parametrize("name", ["box", "routed"])
@pytest.mark.parametrize("side", ["both", "host", "inside"])
def test_what_is_allowed_is_reached_and_nothing_else(engine: Engine, name: str, side: str) -> None:
    lab = engine.lab
    assert engine.reaches(name, OTHER4)  # it could
    held = engine.attach(name, *WEBS)
    assert held.shut == ("v-box",) if name == "box" else held.shut == ("routed0",)
    assert held.open == ()
    if side == "host":  # as root in there can do
        engine.in_there(name, "nft", "flush", "ruleset")
        for family in ("-4", "-6"):
            engine.in_there(name, "ip", family, "rule", "del", "priority", "2")
        engine.in_there(name, "ip", "route", "add", OTHER4, "dev", "agentmon0", "via", str(POOL4[1]), "onlink")
    if side == "inside":
        lab.shell("nft", "insert", "rule", "inet", "agentmon", "b16", "meta", "mark", "set", "0x01000000", "accept")
        lab.shell("nft", "delete", "table", "netdev", "agentmon")
        if name == "box":
            lab.shell("ip", "link", "set", "v-box", "up")
        else:
            for family in ("-4", "-6"):
                lab.shell("ip", family, "rule", "del", "priority", "2")
    engine.quiet()
    if side != "host":
        for address in (WEB4, WEB6):
            until(lambda a=address: engine.reaches(name, a))  # type: ignore[misc] # its carrier takes a moment
            lab.udp(name, address)
    for address in (OTHER4, OTHER6):
        assert not engine.reaches(name, address)
        engine.sends(name, address, 443)
    engine.sends(name, OTHER4, 443, source=BOX4 if name == "box" else "10.77.0.2")
    assert not engine.reaches(name, NEIGHBOUR4, 5432)
    lab.seen()
    assert lab.world.to(OTHER4) == lab.world.to(OTHER6) == 0, (lab.world.frames, lab.world.sources)


def test_a_neighbour_on_the_same_bridge_neither_reaches_it_nor_is_reached(engine: Engine) -> None:
    receiver = engine.lab.receiver("neighbour", [NEIGHBOUR4, NEIGHBOUR6], (5432,), tap="eth0")
    server = engine.lab.receiver("box", [BOX4], (8080,))
    assert engine.reaches("box", NEIGHBOUR4, 5432) and engine.reaches("neighbour", BOX4, 8080)
    engine.attach("box", *WEBS)
    engine.in_there("box", "nft", "flush", "ruleset")
    for family in ("-4", "-6"):
        engine.in_there("box", "ip", family, "rule", "del", "priority", "2")
    receiver.frames.clear()
    receiver.bytes.clear()
    before, served = receiver.total(), server.total()
    assert not engine.reaches("box", NEIGHBOUR4, 5432)
    engine.sends("box", NEIGHBOUR6, 5432)
    engine.lab.frame(
        "box", source=BOX4, to=NEIGHBOUR4, mac="02:00:00:00:00:01", gateway_mac="ff:ff:ff:ff:ff:ff", port=5432
    )
    assert not engine.reaches("neighbour", BOX4, 8080)
    assert (receiver.total(), server.total()) == (before, served)
    assert receiver.to(NEIGHBOUR4) + receiver.to(NEIGHBOUR6) == 0


def test_dns_to_anywhere_is_led_to_the_resolver_and_refused_without_that(engine: Engine) -> None:
    lab = engine.lab
    resolver = lab.receiver("am-svc", [str(POOL4[DNS]), str(POOL6[DNS])], (53,))
    engine.attach("box")
    for server in (BRIDGE4, OTHER4, OTHER6):
        assert asks(lab, "box", server) == b"question", server
    assert resolver.bytes["udp", str(POOL4[DNS]), 53] == 2 * len(b"question")
    engine.in_there("box", "nft", "flush", "ruleset")
    engine.quiet()
    assert asks(lab, "box", OTHER4) == b""
    lab.seen()
    assert lab.world.to(OTHER4) == 0


def test_what_its_own_root_takes_away_is_put_back(engine: Engine) -> None:
    lab, nf = engine.lab, engine.lab.nf
    engine.attach("box", *WEBS)
    assert lab.run(nf.hold_again, 16) == ()
    engine.in_there("box", "nft", "flush", "ruleset")
    engine.in_there("box", "ip", "rule", "del", "priority", "2")
    assert lab.run(nf.hold_again, 16) == ("rules", "routes")
    engine.in_there("box", "ip", "link", "del", "agentmon0")
    assert not engine.reaches("box", WEB4)
    assert lab.run(nf.hold_again, 16) == ("routes",)
    until(lambda: engine.reaches("box", WEB4))  # the new device takes a moment to have a carrier
    assert engine.reaches("box", WEB6) and not engine.reaches("box", OTHER4)
    lab.run(lab.ip, "link add v-more type veth peer name eth1 netns box", "link set v-more master br0 up")
    assert lab.run(nf.hold_again, 16) == ("new way out v-more",)
    assert lab.run(nf.hold_again, 16) == ()
    lab.run(lab.ip, "link del v-more")


def test_its_root_keeps_no_rules_from_changing_by_making_a_table_of_our_name_its_own(engine: Engine) -> None:
    """With `flags owner` nobody else may change or delete it, not even we: the host decides alone."""
    lab, nf = engine.lab, engine.lab.nf
    engine.attach("box", *WEBS, direct(f"{OTHER4}/32"))
    enter = ["nsenter", f"--net={RUN / 'box'}", "nft"]
    owner = lab.run(lambda: subprocess.Popen([*enter, "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
    assert owner.stdin is not None
    try:
        owner.stdin.write(b"delete table inet agentmon\nadd table inet agentmon { flags owner; }\n")
        owner.stdin.flush()
        until(lambda: "owner" in lab.shell(*enter, "list", "tables") + lab.shell(*enter, "list", "ruleset"))
        assert engine.reaches("box", OTHER4)
        lab.run(nf.apply, rules(16, 17, *WEBS))
        assert engine.reaches("box", WEB4) and not engine.reaches("box", OTHER4)
        lab.run(nf.learn, 16, [learned(OTHER4)])
        assert engine.reaches("box", OTHER4)
        lab.run(nf.apply, rules(16, 18, *WEBS, mode=Mode.CUT))
        assert not engine.reaches("box", WEB4) and not engine.reaches("box", OTHER4)
        engine.detach()
        assert engine.reaches("box", WEB4)
    finally:
        owner.stdin.close()
        owner.wait(10)


@pytest.mark.parametrize("name", ["box", "routed"])
def test_a_refusal_is_said_at_once_also_where_lo_was_down(engine: Engine, name: str) -> None:
    """Its reset goes by lo, which is up as long as we hold it: the other test sees how it is left."""
    engine.attach(name, *WEBS)
    until(lambda: engine.reaches(name, WEB4))
    for address in (OTHER4, OTHER6):
        if name == "box" or address == OTHER4:
            with pytest.raises(ConnectionRefusedError):
                engine.lab.connect(name, address, timeout=2.0)


def test_older_flows_do_not_go_on(engine: Engine) -> None:
    sock = engine.lab.connect("box", WEB4)
    engine.attach("box", *WEBS)
    with sock, pytest.raises(OSError):
        sock.settimeout(0.5)
        sock.send(b"more")
        sock.recv(4)


@pytest.mark.parametrize("fresh", [False, True], ids=["same-instance", "another-instance"])
def test_letting_go_leaves_nothing_and_changes_nothing(engine: Engine, fresh: bool) -> None:
    lab = engine.lab
    for name in ("box", "routed"):
        before = ruleset(engine, name)
        engine.attach(name, *WEBS)
        assert ruleset(engine, name) != before
        lab.run(_delete_as_new if fresh else lab.nf.delete_bottle, 16)
        lab.run(lab.nf.delete_bottle, 16)
        assert ruleset(engine, name) == before
        assert engine.reaches(name, OTHER4)


def _delete_as_new(slot: int) -> None:
    """As a daemon that knows nothing of it."""
    HostNetfilter().delete_bottle(slot)


def test_another_instance_adopts_it(engine: Engine) -> None:
    lab = engine.lab
    engine.attach("box", *WEBS)

    def adopt() -> HostNetfilter:
        made = HostNetfilter()
        made.open_host(lab.spec)
        made.adopt_bottle(engine.net())
        made.apply(rules(16, 17, direct(f"{OTHER4}/32")))
        return made

    other = lab.run(adopt)
    assert engine.reaches("box", OTHER4) and not engine.reaches("box", WEB4)
    lab.run(other.cut, 16)
    assert not engine.reaches("box", OTHER4)
    lab.run(other.apply, rules(16, 18, mode=Mode.CLOSED))
    lab.run(other.delete_bottle, 16)


def test_a_namespace_that_is_another_by_now_is_not_taken(engine: Engine) -> None:
    before = ruleset(engine, "box")
    for path in (str(RUN / "box"), "/proc/0/ns/net"):
        with pytest.raises(KernelRefused) as refused:
            engine.lab.run(engine.lab.nf.attach_bottle, engine.net(), path, 1)
        assert refused.value.errno == errno.ESTALE
    assert ruleset(engine, "box") == before and not engine.lab.run((RUN / "am-16").exists)


def test_a_failure_half_way_leaves_it_as_it_was(engine: Engine) -> None:
    """A device of ours is in there already: the namespace is not closed for nothing."""
    engine.lab.run(engine.lab.ip, "link add agentmon0 type bridge", netns="box")
    before = ruleset(engine, "box")
    with pytest.raises(KernelRefused):
        engine.attach("box", *WEBS)
    assert ruleset(engine, "box") == before and engine.reaches("box", OTHER4)
    engine.lab.run(engine.lab.ip, "link del agentmon0", netns="box")


def test_a_way_out_that_the_host_cannot_shut_is_named_and_held_inside(engine: Engine) -> None:
    lab = engine.lab
    lab.run(lab.ip, "netns add mac", "link add eth0 link up0 netns mac type macvlan mode bridge")
    lab.run(lab.ip, "link set lo up", "addr add 203.0.113.77/24 dev eth0", "link set eth0 up", netns="mac")
    lab.run(lab.ip, "route add default via 203.0.113.2", netns="mac")
    assert engine.reaches("mac", OTHER4)
    held = engine.attach("mac", *WEBS)
    assert (held.shut, held.open) == ((), ("eth0",))
    engine.quiet()
    assert engine.reaches("mac", WEB4) and not engine.reaches("mac", OTHER4)
    engine.sends("mac", OTHER4, 443, source="203.0.113.77")
    lab.seen()
    assert lab.world.to(OTHER4) == 0
    engine.detach()
    lab.run(lab.ip, "netns del mac")


@pytest.fixture
def nested(engine: Engine) -> Iterator[str]:
    """A container inside `box`, behind a veth and the masquerading of an engine in there."""
    lab = engine.lab
    lab.run(lab.ip, "netns add nested")
    lab.run(lab.ip, "link add d0 type veth peer name eth0 netns nested", "addr add 10.66.0.1/24 dev d0",
            "addr add fd66::1/64 dev d0 nodad", "link set d0 up", netns="box")  # fmt: skip
    lab.run(lab.ip, "addr add 10.66.0.2/24 dev eth0", "addr add fd66::2/64 dev eth0 nodad", "link set eth0 up",
            "route add default via 10.66.0.1", "-6 route add default via fd66::1", netns="nested")  # fmt: skip
    engine.in_there("box", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    engine.in_there("box", "nft", "table inet inner { chain post { type nat hook postrouting priority 100; "
                    "ip saddr 10.66.0.0/24 masquerade; ip6 saddr fd66::/64 masquerade; }; }")  # fmt: skip
    yield "nested"
    engine.detach()
    engine.in_there("box", "nft", "delete", "table", "inet", "inner")
    lab.run(lab.ip, "link del d0", netns="box")
    lab.run(lab.ip, "netns del nested")


def test_containers_inside_it_are_judged_as_it_is(engine: Engine, nested: str) -> None:
    """What an engine inside forwards: allowed to where it may go itself, not elsewhere."""
    lab = engine.lab
    until(lambda: engine.reaches(nested, OTHER4) and engine.reaches(nested, OTHER6))
    engine.attach("box", *WEBS)
    engine.quiet()
    for allowed, refused in ((WEB4, OTHER4), (WEB6, OTHER6)):
        until(lambda a=allowed: engine.reaches(nested, a))  # type: ignore[misc] # its carrier takes a moment
        assert not engine.reaches(nested, refused)
    lab.seen()
    assert lab.world.to(OTHER4) == lab.world.to(OTHER6) == 0, lab.world.frames


@pytest.mark.parametrize(("kept", "ended"), [(WEB4, OTHER4), (WEB6, OTHER6)])
def test_flows_of_containers_inside_it_go_on_and_end_as_its_own(
    engine: Engine, nested: str, kept: str, ended: str
) -> None:
    """Its engine translates addresses: the flow has another source in there than on the host. The address of one was
    learned and has expired since: only the mark says that it may go on."""
    lab, mine = engine.lab, direct(f"{ended}/{'128' if ':' in ended else '32'}")
    engine.attach("box", mine)
    lab.run(lab.nf.learn, 16, [learned(kept, timeout_s=1)])
    known = [learned(kept, timeout_s=0)]
    until(lambda: engine.reaches(nested, ended))
    good, bad, own = (lab.connect(*where) for where in ((nested, kept), (nested, ended), ("box", kept)))
    with good, bad, own:
        until(lambda: not engine.reaches("box", kept), 10)
        for epoch, more in enumerate(({"mode": Mode.OBSERVE}, {}, {"services": ()}, {}), 17):
            lab.run(lab.nf.apply, rules(16, epoch, mine, learned=known, **more))
            assert lab.nf._bottles[16].rules.epoch == epoch
            assert [echoes(sock) for sock in (good, bad, own)] == [True] * 3, more
        seen = lab.world.bytes["tcp", ended, 443]
        lab.run(lab.nf.apply, rules(16, 30, learned=known))
        assert not echoes(bad) and lab.world.bytes["tcp", ended, 443] == seen
        lab.run(lab.nf.apply, rules(16, 31, learned=known, services=()))
        assert echoes(good) and echoes(own)
        lab.run(lab.nf.apply, rules(16, 32))
        assert not echoes(good) and not echoes(own)


def echoes(sock: socket.socket) -> bool:
    sock.settimeout(2)
    try:
        sock.sendall(b"still there")
        return sock.recv(11) == b"still there"
    except OSError:
        return False


def test_the_hosts_rule_for_a_routed_veth_comes_back_and_goes_with_the_bottle() -> None:
    """Also when the device has gone before; a device of that name that comes later is nobody's."""

    def there() -> list[bool]:
        return ["iif routed0" in lab.shell("ip", family, "rule", "show", "priority", "2") for family in ("-4", "-6")]

    with Lab() as lab:
        made = Engine(lab)
        lab.open()
        made.attach("routed")
        assert there() == [True, True]
        lab.shell("ip", "-6", "rule", "del", "priority", "2")
        lab.run(lab.nf.hold_again, 16)
        assert there() == [True, True]
        lab.shell("ip", "link", "del", "routed0")
        lab.shell("ip", "link", "add", "routed0", "type", "bridge")
        lab.run(lab.nf.hold_again, 16)
        assert there() == [False, False]
        made.detach()
        made.attach("neighbour")  # a port of a bridge is taken down instead
        assert lab.shell("ip", "rule", "show", "priority", "2") == ""
        made.detach()
        lab.shell("ip", "link", "del", "routed0")
        lab.run(lab.ip, "link add routed0 type veth peer name eth0 netns routed")
        made.attach("routed")
        lab.shell("ip", "link", "del", "routed0")
        made.detach()
        assert there() == [False, False]


def test_its_own_table_is_made_as_nothing_else_could(engine: Engine) -> None:
    """A host without IPv6 in its pool: nothing of that family leaves."""
    with Lab(six=False) as lab:
        small = Engine(lab)
        lab.open()
        net = small.net()
        path = RUN / "box"
        lab.run(lambda: lab.nf.attach_bottle(
            type(net)(**{**{f: getattr(net, f) for f in net.__slots__}, "addr6": None, "gateway6": None}),
            str(path), path.stat().st_ino,
        ))  # fmt: skip
        lab.run(lab.nf.apply, rules(16, 16, *WEBS, services=()))
        until(lambda: small.reaches("box", WEB4))  # a new device takes a moment to have a carrier
        with pytest.raises(OSError) as refused:
            lab.connect("box", WEB6)
        assert refused.value.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES}
        assert lab.inside("box", lambda: socket.has_ipv6)
