"""struct am_event → Event: every field, every name, odd bytes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ebpf import abi, events


def record(**fields: object) -> bytes:
    made = abi.EventRecord(
        ts_ns=5, cgroup_id=4711, slot=16, epoch=3, pid=812, tgid=811, uid=1000, rule=2, count=1, port=443,
        proto=6, kind=0, verdict=1, reason=0, family=2, socktype=1,
    )  # fmt: skip
    made.addr[:] = b"\0" * 10 + b"\xff\xff" + bytes([203, 0, 113, 9])
    made.comm[:] = b"curl".ljust(16, b"\0")
    for name, value in fields.items():
        if isinstance(value, bytes):
            getattr(made, name)[:] = value
        else:
            setattr(made, name, value)
    return bytes(made)


def test_bpf_events_every_field() -> None:
    (event,) = events.decode(record())
    assert event == events.Event(
        5,
        16,
        3,
        "connect",
        "refused",
        "default",
        812,
        811,
        0,
        1000,
        "curl",
        "tcp",
        ip_address("203.0.113.9"),
        443,
        2,
        1,
    )


def test_bpf_events_come_in_order_and_ipv6_stays_ipv6() -> None:
    address = ip_address("2001:db8::1")
    found = events.decode(record(ts_ns=1) + record(ts_ns=2, addr=address.packed, kind=1, proto=17))
    assert [(e.ts_ns, e.kind, e.proto) for e in found] == [(1, "connect", "tcp"), (2, "send", "udp")]
    assert found[1].dst == address


@pytest.mark.parametrize(
    ("proto", "socktype", "name"),
    [(1, 3, "raw"), (1, 2, "icmp"), (58, 2, "icmp6"), (136, 2, "udplite"), (200, 2, "200")],
)
def test_bpf_events_socket_events_have_no_destination(proto: int, socktype: int, name: str) -> None:
    kind = abi.C["AM_KIND_SOCKET"]
    (event,) = events.decode(
        record(kind=kind, reason=abi.C["AM_REASON_FAMILY"], proto=proto, socktype=socktype, addr=bytes(16), port=0)
    )
    assert (event.kind, event.dst, event.proto) == ("socket", None, name)


@pytest.mark.parametrize(("number", "reason"), list(enumerate(abi.REASONS)))
def test_bpf_events_reasons(number: int, reason: str) -> None:
    assert events.decode(record(reason=number))[0].reason == reason


def test_bpf_events_names_of_kinds_and_verdicts_are_those_of_the_spec() -> None:
    assert abi.KINDS == ("connect", "send", "socket", "escape", "bypass")
    assert abi.VERDICTS == ("allowed", "refused", "observed")
    assert abi.REASONS[:8] == ("default", "deny", "cut", "closed", "protected", "family", "expired", "netns")


def test_bpf_events_a_command_name_is_what_the_job_chose() -> None:
    (event,) = events.decode(record(comm=b"\xff\x1b[31m\xc3\xa4" + b"x" * 8))
    assert event.comm == "\\xff\x1b[31mäxxxxxxxx"


def test_bpf_events_a_torn_buffer_is_an_error() -> None:
    with pytest.raises(ValueError, match="89 bytes of events: records have 88 bytes each"):
        events.decode(record() + b"x")
