"""The changes whose nftables commands stand in tests/golden/netfilter, by name."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from netfilter import render, render_bottle, render_egress, render_foreign
from netfilter.elements import Segments
from netfilter.language import Command
from netfilter.spec import BottleRules, Foreign, Learned, Mode
from tests.support.nf_lab import direct, host_spec, learned, net, services

HOST = host_spec()
RULES = BottleRules(
    16,
    7,
    Mode.ENFORCE,
    services(),
    allow=(
        direct("198.51.100.7/32", "tcp", 443),
        direct("198.51.100.0/24", "tcp", 443, 8443),
        direct("203.0.113.0/28", "udp"),
        direct("2001:db8::/32", "tcp", 443),
        direct("2001:db8::7/128", "udp", 514),
    ),
    deny=(direct("198.51.100.128/25"), direct("2001:db8:bad::/48")),
)
NAMES = (
    learned("203.0.113.77", timeout_s=90),
    learned("2001:db8:1::9", 5432),
    Learned(ip_address("203.0.113.78"), "tcp", ((8000, 8100), (443, 443)), 60),
    Learned(ip_address("203.0.113.79"), "udp", ((53, 53),), 0),
)


def applied(rules: BottleRules, before: BottleRules | None, *, six: bool = True) -> list[Command]:
    """Both sides of one `apply`, the host's first."""
    fresh = before is None or before.epoch != rules.epoch
    change = Segments().change(rules.learned, 0)
    static = render_bottle.static(rules)
    changed = render_bottle.differences(static, None if before is None else render_bottle.static(before))
    commands: list[Command] = []
    for slot in (rules.slot, None):
        commands += render_bottle.changed_sets(slot, changed)
        if fresh:
            commands += [*render_bottle.flushed("lrx", slot), *render_bottle.learned_anew(change, slot)]
        else:
            commands += render_bottle.learned_in(change, slot)
        if slot is None:
            commands += render_bottle.inner_chain(rules)
        else:
            commands += render_bottle.bottle_chain(net(slot, six=six), rules, before)
    return commands


def ranges() -> list[Command]:
    segments = Segments()
    first = Learned(ip_address("203.0.113.78"), "tcp", ((8000, 8100),), 60)
    commands = render_bottle.learned_in(segments.change([first], 0), 16)
    return commands + render_bottle.learned_in(
        segments.change([first._replace(ports=((8050, 8200),), timeout_s=600)], 0), 16
    )


def taken_back() -> list[Command]:
    """A removal that needs no new epoch: out of the allowlist, and into what the epoch does not speak for."""
    old, new = render_bottle.static(RULES), render_bottle.static(replace(RULES, allow=RULES.allow[2:]))
    changed = render_bottle.differences(new, old)
    gone = [e for d in changed for e in d.gone.elements]
    return [
        command
        for slot in (16, None)
        for command in [*render_bottle.changed_sets(slot, changed), *render_bottle.taken_back(slot, gone, ())]
    ]


CREATED = [*render.host_table(HOST), *render_bottle.bottle_closed(net(16))]
# name → (what must be there before, the change)
CASES: dict[str, tuple[list[Command], list[Command]]] = {
    "host": ([], render.host_table(HOST)),
    "host-ipv4": ([], render.host_table(host_spec(six=False))),
    "bottle-created": (render.host_table(HOST), render_bottle.bottle_closed(net(16))),
    "inner-created": ([], render_bottle.inner_closed()),
    "ranges": (CREATED, ranges()),
}
for _mode in Mode:
    _rules = replace(RULES, mode=_mode, learned=NAMES if _mode is Mode.ENFORCE else ())
    CASES[f"mode-{_mode.value}"] = ([*render_bottle.inner_closed(), *CREATED], applied(_rules, None))
CASES["mode-enforce-ipv4"] = (
    [*render_bottle.inner_closed(), *render.host_table(host_spec(six=False)),
     *render_bottle.bottle_closed(net(16, six=False))],
    applied(replace(RULES, services=services()[:4], allow=RULES.allow[:3], deny=RULES.deny[:1]), None, six=False),
)  # fmt: skip
_more = replace(RULES, allow=(*RULES.allow[1:], direct("192.168.7.0/24")), learned=NAMES[:3])
CASES["same-epoch"] = ([*CASES["mode-enforce"][0], *CASES["mode-enforce"][1]], applied(_more, RULES))
CASES["next-epoch"] = (CASES["same-epoch"][0], applied(replace(_more, epoch=8, deny=()), RULES))
CASES["inner-egress"] = ([], [*render_egress.inner_egress(net(16), "lo")])
CASES["inner-egress-ipv4"] = ([], [*render_egress.inner_egress(net(16, six=False), "lo")])
CASES["taken-back"] = (CASES["same-epoch"][0], taken_back())
_foreign = replace(net(16), foreign=Foreign((HOST.service_addresses[0], HOST.service_addresses[3])))
CASES["foreign-created"] = ([], [*render_foreign.inner_closed(_foreign)])
CASES["foreign-judging"] = (CASES["foreign-created"][1], [*render_foreign.inner_chain(_foreign, RULES)])
CASES["host-shut"] = ([], [*render_foreign.shut(16, [(1, "lo")])])
CASES["deleted"] = (CREATED, render_bottle.bottle_deleted(16))
