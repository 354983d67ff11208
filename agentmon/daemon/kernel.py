"""nft, BPF and cgroups together, per bottle. Synchronous: each call is one short kernel transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import ebpf.abi
import ebpf.sockets
import ebpf.spec
import netfilter.spec
from agentmon import addresses, paths
from agentmon.addresses import Pool
from agentmon.compile import Compiled, Place, compile_bottle
from agentmon.control.state import Attached, Bottle, Phase
from agentmon.daemon.cgroups import Tree
from agentmon.daemon.netns_cookie import netns_cookie
from agentmon.launch.host_sockets import Places
from netfilter import foreign
from netfilter.netns import namespaces

MODES = {
    "closed": (netfilter.spec.Mode.CLOSED, ebpf.spec.Mode.CLOSED),
    "enforce": (netfilter.spec.Mode.ENFORCE, ebpf.spec.Mode.ENFORCE),
    "observe": (netfilter.spec.Mode.OBSERVE, ebpf.spec.Mode.OBSERVE),
    "cut": (netfilter.spec.Mode.CUT, ebpf.spec.Mode.CUT),
}


def mode_of(bottle: Bottle) -> str:
    """The mode a bottle's rules are to be in, by its phase."""
    if bottle.phase in {Phase.CUT, Phase.FROZEN}:
        return "cut"
    return "observe" if bottle.policy.observe else "enforce"


ALL_PORTS = ((1, 65535),)


def _covers(wide: IPv4Network | IPv6Network, narrow: IPv4Network | IPv6Network) -> bool:
    return wide.version == narrow.version and narrow.subnet_of(wide)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Kept:
    cgroup_id: int
    cookie: int
    places: Places | None = None
    programs: str = ""  # a cgroup of others that still has to get the programs


class Kernel:
    """Every kernel object of every bottle.

    :param places: where a bottle may connect to unix sockets.
    :raises OSError: from each call, when the kernel refuses; the state before the call stays in force.
    """

    def __init__(
        self,
        nft: netfilter.spec.Netfilter,
        bpf: ebpf.spec.Bpf,
        tree: Tree,
        pool: Pool,
        places: Callable[[Bottle], Places],
    ) -> None:
        self.nft = nft
        self.bpf = bpf
        self.tree = tree
        self.pool = pool
        self._places = places
        self._kept: dict[int, _Kept] = {}
        self._attached: dict[int, Attached] = {}
        self._policy_id = 0

    def open(self, host: netfilter.spec.HostSpec) -> None:
        """Everything that is there once for all bottles, closed; idempotent."""
        self.nft.open_host(host)
        self.tree.open()
        self.bpf.open(str(self.tree.parent))

    def left_out(self) -> dict[str, str]:
        """Optional groups of BPF programs that are not in force, with the reason where it is known: an earlier daemon
        may have been told."""
        reasons: Mapping[str, str] = getattr(self.bpf, "left_out", {})
        missing = {*(ebpf.abi.FEATURES.keys() - self.bpf.features()), *reasons}
        return {name: reasons.get(name, "the kernel did not take its programs") for name in sorted(missing)}

    def close(self) -> None:
        """Remove all of it, the rest also where one layer fails; idempotent. No bottle is left when this is called."""
        try:
            self.bpf.close()
            self.tree.close()
        finally:
            self.nft.close_host()

    def net(self, slot: int) -> netfilter.spec.BottleNet:
        pair, gateway = self.pool.at(slot), self.pool.gateway
        return netfilter.spec.BottleNet(
            slot=slot,
            netns=addresses.netns(slot),
            veth=addresses.veth(slot),
            mac_host=addresses.mac(slot, host=True),
            mac_bottle=addresses.mac(slot, host=False),
            addr4=pair.v4,
            addr6=pair.v6,
            gateway4=gateway.v4,
            gateway6=gateway.v6,
            foreign=netfilter.spec.Foreign(self.pool.resolver.all()) if slot in self._attached else None,
        )

    def make_cgroup(self, slot: int, pids: int) -> None:
        self._kept[slot] = _Kept(self.tree.make(slot, pids), 0)

    # ── what others started ──

    def know(self, slot: int, attached: Attached) -> None:
        """A bottle is attached: its cgroup is its own one, or a leaf of ours, which is made if it is not there."""
        self._attached[slot] = attached
        if attached.cgroup:
            self._kept[slot] = _Kept(self.tree.take(slot, Path(attached.cgroup)), 0, programs=attached.cgroup)
        elif self.tree.bottle(slot).is_dir():
            self._kept[slot] = _Kept(self.tree.cgroup_id(slot), 0)
        else:
            self.make_cgroup(slot, 0)

    def hold(self, slot: int) -> netfilter.spec.Holding:
        """Its namespace is closed, with a device of ours as the only way out."""
        attached = self._attached[slot]
        held = self.nft.attach_bottle(self.net(slot), attached.namespace, attached.inode)
        self._kept[slot].cookie = self._cookie(slot)
        return held

    @staticmethod
    def is_attached(slot: int) -> bool:
        """Whether the slot's namespace is one that others made, by what is in it: for a slot that nobody knows."""
        return foreign.is_foreign(addresses.netns(slot))

    def hold_again(self, slot: int) -> tuple[str, ...]:
        """What somebody took away is put back; what that was, in words."""
        attached, name = self._attached[slot], addresses.netns(slot)
        named = namespaces.exists(name)
        if not named:
            namespaces.bind(name, attached.namespace, attached.inode)
        return (*(() if named else ("its name",)), *self.nft.hold_again(slot))

    def attach_programs(self, slot: int) -> None:
        """The programs on its own cgroup, if they are not there yet."""
        kept = self._kept[slot]
        if kept.programs:
            self.bpf.attach(slot, kept.programs)
            kept.programs = ""

    def end_older(self, slot: int) -> int:
        """End every connection in its namespace but those within it: none has an address that passes. How many."""
        path = str(Path(paths.NETNS) / addresses.netns(slot))
        away = [
            c
            for c in ebpf.sockets.all_connected(path)
            if c.source[0] != c.destination[0] and not c.destination[0].is_loopback
        ]
        return ebpf.sockets.destroy(away, path)

    def make_net(self, slot: int) -> None:
        self.nft.create_bottle(self.net(slot))
        self._kept[slot].cookie = self._cookie(slot)

    def adopt(self, slot: int) -> None:
        """Take over a bottle that an earlier daemon made. :raises OSError: a part of it is gone."""
        self._kept[slot] = _Kept(self.tree.cgroup_id(slot), self._cookie(slot))
        self.nft.adopt_bottle(self.net(slot))

    def adopt_attached(self, slot: int, attached: Attached) -> None:
        """The same for what an earlier daemon was attached to."""
        self.know(slot, attached)
        self._kept[slot].cookie = self._cookie(slot)
        self.nft.adopt_bottle(self.net(slot))

    def compiled(self, bottle: Bottle, mode: str) -> Compiled:
        kept = self._kept[bottle.slot]
        attached = self._attached.get(bottle.slot)
        if kept.places is None and attached is None and "unix" in self.bpf.features():
            kept.places = self._places(bottle)
        self._policy_id = max(self._policy_id + 1, bottle.epoch << 8)
        place = Place(
            slot=bottle.slot,
            net=self.net(bottle.slot),
            pool=self.pool,
            cgroup_id=kept.cgroup_id,
            worker=bottle.worker,
            netns_cookie=kept.cookie,
            policy_id=self._policy_id,
            unix=None if kept.places is None else kept.places.open,
            unix_given=bottle.policy.unix if kept.places is not None else (),
            unix_closed=() if kept.places is None else kept.places.closed,
            nameservers=() if attached is None else tuple(ip_address(a) for a in attached.nameservers),
        )
        return compile_bottle(bottle.policy, place, bottle.epoch, mode, run=bottle.run)

    def apply(
        self,
        bottle: Bottle,
        mode: str,
        nft_learned: Sequence[netfilter.spec.Learned] = (),
        bpf_learned: Sequence[ebpf.spec.Entry] = (),
        fenced: Iterable[IPv4Address | IPv6Address] = (),
    ) -> bool:
        """Both layers to `mode` with the bottle's policy and what its names had resolved to; nft first, so that BPF's
        consent meets open rules. True: flows that they refuse now are still to be ended (netfilter's `end_refused`).

        :param fenced: addresses denied beside the policy's own: a deeper rule holds them.
        """
        rules, bpf = self._fenced(bottle, mode, fenced)
        owes = self.nft.put(replace(rules, learned=tuple(nft_learned)))
        self.bpf.apply(replace(bpf, allow=(*bpf.allow, *bpf_learned)))
        self.attach_programs(bottle.slot)
        return owes

    def plan(
        self,
        bottle: Bottle,
        mode: str,
        nft_learned: Sequence[netfilter.spec.Learned] = (),
        fenced: Iterable[IPv4Address | IPv6Address] = (),
    ) -> list[str]:
        """What `apply` would do to the rules of packets, a line for each step; nothing is changed."""
        rules, _ = self._fenced(bottle, mode, fenced)
        return self.nft.plan(replace(rules, learned=tuple(nft_learned)))

    def _fenced(
        self, bottle: Bottle, mode: str, fenced: Iterable[IPv4Address | IPv6Address]
    ) -> tuple[netfilter.spec.BottleRules, ebpf.spec.BottlePolicy]:
        compiled = self.compiled(bottle, mode)
        rules, bpf = compiled.rules, compiled.bpf
        for address in sorted(fenced, key=str):
            network = ip_network(address)
            for proto in ("tcp", "udp"):
                if any(d.proto == proto and _covers(d.network, network) and d.ports == ALL_PORTS for d in rules.deny):
                    continue
                rules = replace(rules, deny=(*rules.deny, netfilter.spec.Direct(network, proto, ALL_PORTS)))
                bpf = replace(
                    bpf, deny=(*bpf.deny, ebpf.spec.Entry(network, proto, ALL_PORTS, len(bottle.policy.rules)))
                )
        return rules, bpf

    def apply_bpf_closed(self, bottle: Bottle) -> None:
        self.bpf.apply(self.compiled(bottle, "closed").bpf)

    def cut(self, slot: int) -> None:
        """nft first (it holds the flows that are open), then BPF (it refuses new ones with EPERM), also where somebody
        has just flushed nft: it holds the cut when it is put back. A bottle whose start has not come to BPF yet gets
        its mode there with its rules."""
        try:
            self.nft.cut(slot)
        finally:
            if slot in self.bpf.slots():
                self.bpf.set_mode(slot, ebpf.spec.Mode.CUT)

    def forget_bpf(self, slot: int) -> None:
        self.bpf.delete_bottle(slot)

    def delete_net(self, slot: int) -> None:
        self.nft.delete_bottle(slot)

    def remove_cgroup(self, slot: int) -> None:
        self.tree.remove(slot)
        self._kept.pop(slot, None)
        self._attached.pop(slot, None)

    def slots(self) -> frozenset[int]:
        """Slots of which any layer holds something."""
        return self.nft.slots() | self.bpf.slots() | self.tree.slots()

    def clean(self, slot: int) -> None:
        """Remove whatever is left of a slot, processes first; goes on past what is not there."""
        self.tree.kill(slot)
        steps: tuple[Callable[[int], None], ...] = (self.forget_bpf, self.delete_net, self.remove_cgroup)
        for remove in steps:
            with contextlib.suppress(FileNotFoundError):
                remove(slot)

    @staticmethod
    def _cookie(slot: int) -> int:
        return netns_cookie(str(Path(paths.NETNS) / addresses.netns(slot)))
