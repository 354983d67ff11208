"""What ebpf.spec.Bpf promises, of the fake and of the kernel alike."""

from __future__ import annotations

import errno
import os
import random
import select
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Protocol

import pytest

from ebpf import cgroup, model
from ebpf.errors import MapFull, Missing, Unencodable, UnknownSlot
from ebpf.fake import FakeBpf
from ebpf.programs import CgroupPrograms
from ebpf.spec import Address, BottlePolicy, Bpf, Endpoint, Entry, Event, Listen, Mode, Proto
from tests.support.bpf_lab import SIZES, Bottle, Lab, Process, endpoint, entry


class Subject(Protocol):
    """An implementation, one bottle of it (slot 16), and a way to ask for verdicts."""

    bpf: FakeBpf | CgroupPrograms
    cgroup_id: int
    cookie: int

    def verdict(self, proto: Proto, address: Address, port: int) -> tuple[str, str]:
        """What a process of the bottle is told: verdict and reason ("" when it was allowed)."""


class Fake:
    def __init__(self) -> None:
        self.bpf = FakeBpf(SIZES)
        self.cgroup_id, self.cookie = 4711, 77

    def __enter__(self) -> Fake:
        self.bpf.open("/nowhere")
        return self

    def __exit__(self, *_: object) -> None:
        self.bpf.close()
        os.close(self.bpf._wake)

    def verdict(self, proto: Proto, address: Address, port: int) -> tuple[str, str]:
        found = self.bpf.verdict(16, proto, address, port, self.cookie)
        return found.verdict, "" if found.verdict == "allowed" else found.reason


class Kernel:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.bpf: CgroupPrograms = lab.programs
        self._job: Process | None = None

    def __enter__(self) -> Kernel:
        self.bottle = Bottle(self.lab, 16)
        self.cgroup_id, self.cookie = self.bottle.id, self.lab.cookie
        return self

    def __exit__(self, *_: object) -> None:
        self.bpf.open(str(self.lab.parent))  # also where the test closed it
        self.lab.end_processes()
        for slot in self.bpf.slots():
            self.bpf.delete_bottle(slot)
        self.lab.remove_bottles()
        self.lab.received()
        self.bpf.read()

    def verdict(self, proto: Proto, address: Address, port: int) -> tuple[str, str]:
        self._job = self._job or self.bottle.process()
        self.bpf.table("am_seen").delete_batch(b"".join(k for k, _ in self.bpf.table("am_seen").items()))
        self.bpf.read()
        attempt = self._job.connect if proto == "tcp" else self._job.sendto
        number = attempt(str(address), port)
        found = self.lab.events(self._job)
        if not found:
            assert number != errno.EPERM
            return "allowed", ""
        assert (number == errno.EPERM) == (found[0].verdict == "refused")
        return found[0].verdict, found[0].reason


@pytest.fixture(scope="module", params=["fake", pytest.param("kernel", marks=pytest.mark.root)])
def lab(request: pytest.FixtureRequest) -> Lab | None:
    """None: the fake."""
    return None if request.param == "fake" else request.getfixturevalue("bpf_lab")


@pytest.fixture
def subject(lab: Lab | None) -> Iterator[Subject]:
    with Fake() if lab is None else Kernel(lab) as made:
        yield made


def policy(subject: Subject, number: int, **fields: Any) -> BottlePolicy:
    defaults = {"epoch": 1, "mode": Mode.ENFORCE, "netns_cookie": subject.cookie}
    return BottlePolicy(slot=16, cgroup_id=subject.cgroup_id, policy_id=number, **{**defaults, **fields})


def test_bpf_contract_it_is_a_bpf(subject: Subject) -> None:
    def takes(bpf: Bpf) -> frozenset[int]:
        return bpf.slots()

    assert takes(subject.bpf) == frozenset()
    assert subject.bpf.lost() == 0
    assert subject.bpf.read() == []
    assert subject.bpf.fileno() > 2


def test_bpf_contract_apply_learn_mode_delete(subject: Subject) -> None:
    bpf, known, other = subject.bpf, ip_address("198.51.100.7"), ip_address("198.51.100.8")
    assert subject.verdict("tcp", known, 443) == ("refused", "unknown")
    bpf.apply(
        policy(subject, 1, allow=(entry("198.51.100.7/32", 443),), services=(endpoint("203.0.113.5", 53, "udp"),))
    )
    assert bpf.slots() == {16}
    assert subject.verdict("tcp", known, 443) == ("allowed", "")
    assert subject.verdict("tcp", other, 443) == ("refused", "default")
    bpf.learn(16, [entry("198.51.100.8/32", 443, timeout_s=300)])
    assert subject.verdict("tcp", other, 443) == ("allowed", "")
    bpf.set_mode(16, Mode.CUT)
    assert bpf.modes() == {16: Mode.CUT}
    assert subject.verdict("tcp", known, 443) == ("refused", "cut")
    assert subject.verdict("udp", ip_address("203.0.113.5"), 53) == ("allowed", "")
    bpf.set_mode(16, Mode.OBSERVE)
    assert subject.verdict("tcp", ip_address("203.0.113.77"), 80) == ("observed", "default")
    bpf.apply(policy(subject, 2))
    assert subject.verdict("tcp", other, 443) == ("refused", "default")
    for _ in range(2):
        bpf.delete_bottle(16)
        assert bpf.slots() == frozenset()
    assert subject.verdict("tcp", known, 443) == ("refused", "unknown")


def test_bpf_contract_errors(subject: Subject) -> None:
    bpf = subject.bpf
    for call in (lambda: bpf.set_mode(16, Mode.CUT), lambda: bpf.learn(16, [])):
        with pytest.raises(UnknownSlot, match="slot 16"):
            call()
    bpf.apply(policy(subject, 1))
    with pytest.raises(Unencodable, match="a network cannot be learned"):
        bpf.learn(16, [entry("198.51.100.0/24", 443, timeout_s=5)])
    with pytest.raises(Unencodable, match="ports 443-80"):
        bpf.learn(16, [entry("198.51.100.7/32", (443, 80), timeout_s=5)])
    with pytest.raises(Unencodable, match="9 port ranges"):
        bpf.apply(policy(subject, 2, allow=(entry("10.0.0.0/8", *range(1, 19, 2)),)))
    with pytest.raises(MapFull, match="am_host holds 256"):
        bpf.apply(policy(subject, 3, allow=tuple(entry(f"10.0.{i >> 8}.{i & 255}/32", (1, 99)) for i in range(300))))
    with pytest.raises(MapFull, match="am_deny holds 256"):
        bpf.apply(policy(subject, 4, deny=tuple(entry(f"10.{i >> 8}.{i & 255}.0/24", (1, 99)) for i in range(300))))
    with pytest.raises(ValueError, match="is the bottle in slot 16 already"):
        bpf.apply(BottlePolicy(17, subject.cgroup_id, 5, 1, Mode.ENFORCE))
    bpf.apply(BottlePolicy(17, subject.cgroup_id + 1, 1, 1, Mode.ENFORCE))  # a policy_id seen before does no harm
    assert bpf.slots() == {16, 17}


def test_bpf_contract_bottles_are_limited_too(subject: Subject) -> None:
    for i in range(64):
        subject.bpf.apply(BottlePolicy(100 + i, 1 << 40 | i, 100 + i, 1, Mode.CLOSED))
    with pytest.raises(MapFull, match="am_bottle holds 64 entries"):
        subject.bpf.apply(policy(subject, 1, allow=(entry("198.51.100.7/32", 443),)))
    assert subject.verdict("tcp", ip_address("198.51.100.7"), 443) == ("refused", "unknown")
    subject.bpf.delete_bottle(100)
    subject.bpf.apply(policy(subject, 1, allow=(entry("198.51.100.7/32", 443),)))
    assert subject.verdict("tcp", ip_address("198.51.100.7"), 443) == ("allowed", "")


def test_bpf_contract_a_slot_may_get_another_cgroup(subject: Subject) -> None:
    first = policy(subject, 1, allow=(entry("198.51.100.7/32", 443),))
    subject.bpf.apply(replace(first, cgroup_id=1 << 40))
    subject.bpf.apply(first)
    assert subject.verdict("tcp", ip_address("198.51.100.7"), 443) == ("allowed", "")
    subject.bpf.apply(replace(first, slot=17, cgroup_id=1 << 40))
    assert subject.bpf.slots() == {16, 17}


@pytest.fixture
def foreign(subject: Subject) -> Iterator[tuple[int, str]]:
    """A cgroup that is not below the parent: its id and path."""
    if isinstance(subject, Fake):
        yield 4800, "/foreign"
        return
    path = cgroup.find_v2() / f"agentmon-test-contract-{os.getpid()}"
    path.mkdir()
    yield cgroup.cgroup_id(path), str(path)
    path.rmdir()


def test_bpf_contract_attach_and_detach(subject: Subject, foreign: tuple[int, str]) -> None:
    bpf, (cgroup_id, path) = subject.bpf, foreign
    with pytest.raises(UnknownSlot, match="slot 30"):
        bpf.attach(30, path)
    assert bpf.attached() == frozenset()
    for ending in (bpf.detach, bpf.delete_bottle):
        bpf.apply(BottlePolicy(30, cgroup_id, 1, 1, Mode.ENFORCE))
        for _ in range(2):
            bpf.attach(30, path)
            assert bpf.attached() == {30}
        bpf.apply(BottlePolicy(30, cgroup_id, 2, 2, Mode.OBSERVE))
        assert bpf.attached() == {30}
        for _ in range(2):
            ending(30)
            assert bpf.attached() == frozenset()
    assert bpf.slots() == frozenset()


def test_bpf_contract_features_and_the_guarded(subject: Subject) -> None:
    assert subject.bpf.features() <= {"vouch", "origin", "unix"}
    assert subject.bpf.guarded() == {}


def test_bpf_contract_listen_and_unix_are_checked(subject: Subject) -> None:
    with pytest.raises(Unencodable, match="listen: ports 90-80"):
        subject.bpf.apply(policy(subject, 1, listen=(Listen("tcp", 90, 80),)))
    with pytest.raises(Unencodable, match="listen: tcp: 9 port ranges, 8 fit"):
        subject.bpf.apply(policy(subject, 1, listen=tuple(Listen("tcp", p, p) for p in range(1, 19, 2))))
    for path in ("run/x", "/run/../x", "/run//x", "/run/./x", "/run/x\0y", ""):
        with pytest.raises(Unencodable, match="unix: ") as error:
            subject.bpf.apply(policy(subject, 1, unix=(path,)))
        assert "write an absolute path" in error.value.hint
    with pytest.raises(Unencodable, match="longer than a socket's path can be"):
        subject.bpf.apply(policy(subject, 1, unix=("/" + "x" * 108,)))
    assert subject.bpf.slots() == frozenset()


def test_bpf_contract_closed_says_so(subject: Subject) -> None:
    subject.bpf.apply(policy(subject, 1))
    for _ in range(2):
        subject.bpf.close()
        assert subject.bpf.slots() == frozenset()
    for call in (subject.bpf.fileno, subject.bpf.read, subject.bpf.lost, lambda: subject.bpf.apply(policy(subject, 1))):
        with pytest.raises(Missing, match="open BPF programs"):
            call()


def test_bpf_contract_a_release_is_not_a_close(subject: Subject) -> None:
    subject.bpf.apply(policy(subject, 1, mode=Mode.CUT))
    subject.bpf.release()
    subject.bpf.open(str(subject.lab.parent) if isinstance(subject, Kernel) else "/nowhere")
    assert subject.bpf.modes() == {16: Mode.CUT}


def test_bpf_contract_the_descriptor_announces_events(subject: Subject) -> None:
    bpf = subject.bpf
    bpf.read()
    if isinstance(bpf, FakeBpf):
        bpf.emit(Event(1, 16, 1, "connect", "refused", "default", 5, 5, 1, 0, "x", "tcp", None, 443, 0, 1))
        bpf.lose(3)
        assert bpf.lost() == 3
    else:
        job = subject.bottle.process()  # type: ignore[attr-defined]
        job.connect("198.51.100.8", 443)
    assert select.select([bpf.fileno()], [], [], 5)[0]
    assert [e.verdict for e in bpf.read()] == ["refused"]
    if isinstance(bpf, FakeBpf):
        assert not select.select([bpf.fileno()], [], [], 0)[0]


HOSTS = (
    "198.51.100.7", "198.51.100.8", "198.51.99.1", "10.1.2.3", "10.9.9.9", "127.0.0.1", "169.254.169.254", "224.0.0.9",
    "2001:db8::7", "2001:db8:1::9", "fd00:ec2::254", "fe80::1", "::1", "64:ff9b::7f00:1", "64:ff9b::c633:6407",
    "::ffff:198.51.100.7", "::ffff:127.0.0.1",
)  # fmt: skip
NETWORKS = (
    "198.51.100.7/32", "198.51.100.0/24", "198.51.0.0/16", "10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "127.0.0.0/8",
    "2001:db8::/32", "2001:db8::7/128", "2001:db8:1::/48", "::/0", "64:ff9b::/96", "::ffff:198.51.100.0/120",
)  # fmt: skip
RANGES = ((53, 53), (80, 90), (443, 443), (1, 65535), (400, 500))


def random_policy(subject: Subject, chance: random.Random, number: int) -> BottlePolicy:
    def rules(most: int) -> tuple[Entry, ...]:
        return tuple(
            Entry(ip_network(chance.choice(NETWORKS)), chance.choice(("tcp", "udp")), (chance.choice(RANGES),))
            for _ in range(chance.randrange(most))
        )

    services = tuple(
        Endpoint(ip_address(chance.choice(HOSTS[:5])), chance.choice(("tcp", "udp")), 443, chance.random() < 0.5)
        for _ in range(chance.randrange(2))
    )
    cookie = chance.choice((subject.cookie, subject.cookie, subject.cookie, 0, subject.cookie + 1))
    mode = chance.choice((Mode.ENFORCE, Mode.ENFORCE, Mode.OBSERVE, Mode.CUT, Mode.CLOSED))
    return policy(subject, number, mode=mode, services=services, allow=rules(6), deny=rules(3), netns_cookie=cookie)


@pytest.mark.parametrize("seed", range(3))
def test_bpf_contract_verdicts_are_the_models(subject: Subject, seed: int) -> None:
    """The programs and the model agree on policies that nobody would write by hand."""
    chance = random.Random(seed)
    for number in range(1, 13):
        made = random_policy(subject, chance, number)
        subject.bpf.apply(made)
        for host in chance.sample(HOSTS, 6):
            address: IPv4Address | IPv6Address = ip_address(host)
            proto: Proto = chance.choice(("tcp", "udp"))
            port = chance.choice((53, 85, 443, 450, 8080))
            expected = model.decide(made, (), subject.cookie, proto, (address, port), 0)
            reason = "" if expected.verdict == "allowed" else expected.reason
            assert subject.verdict(proto, address, port) == (expected.verdict, reason), (made, proto, host, port)
