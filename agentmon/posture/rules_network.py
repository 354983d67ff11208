"""Rules about the host's network: what else filters, forwards and listens there. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agentmon.posture.facts import Chain, Conntrack, HostSocket
from agentmon.posture.model import Check, Verdict, fail, ok, warn

_OURS = -150  # priority of agentmon's own chain in prerouting (netfilter/render.py)
_FULL, _FILLING = 0.95, 0.75


def _ipv6(switches: Mapping[str, str]) -> Verdict:
    if "ipv6.conf.all.disable_ipv6" not in switches:
        return ok("this host has no IPv6; bottles have none either")
    if switches["ipv6.conf.all.disable_ipv6"] == "1":
        return ok("net.ipv6.conf.all.disable_ipv6 = 1; bottles are held in both families all the same")
    return ok("IPv6 is on, and held exactly as IPv4 is")


def _localnet(switches: Mapping[str, str]) -> Verdict:
    open_ = sorted(k for k, v in switches.items() if k.endswith(".route_localnet") and v == "1")
    if open_:
        return fail(f"net.{open_[0]} = 1", f"sysctl {' '.join(f'net.{k}=0' for k in open_)}")
    return ok("route_localnet is 0 everywhere")


def _source_route(switches: Mapping[str, str]) -> Verdict:
    """The kernel asks `all` and the device's: both have to be 1 (IPv4), so `all` decides."""
    open_ = [k for k in ("ipv4.conf.all.accept_source_route",) if switches.get(k) == "1"]
    open_ += [k for k in ("ipv6.conf.all.accept_source_route",) if switches.get(k, "0") not in {"0", "-1"}]
    if open_:
        return warn(f"net.{open_[0]} = {switches[open_[0]]}", f"sysctl {' '.join(f'net.{k}=0' for k in open_)}")
    return ok("packets that carry their own route are dropped")


def _accept_local(switches: Mapping[str, str]) -> Verdict:
    open_ = sorted(k for k, v in switches.items() if k.endswith(".accept_local") and v == "1")
    if open_:
        return fail(f"net.{open_[0]} = 1", f"sysctl {' '.join(f'net.{k}=0' for k in open_)}")
    return ok("accept_local is 0 everywhere")


def _loopback_arp(switches: Mapping[str, str]) -> Verdict:
    if switches.get("ipv4.conf.all.proxy_arp") == "1":
        return warn(
            "net.ipv4.conf.all.proxy_arp = 1: this host answers for addresses of others", "sysctl "
            "net.ipv4.conf.all.proxy_arp=0",
        )  # fmt: skip
    return ok("no proxy ARP for every interface")


def _conntrack(room: Conntrack) -> Verdict:
    if room.limit == 0:
        return ok(f"{room.count} flows; the table grows as needed")
    used = room.count / room.limit
    said = f"{room.count} of {room.limit} flows ({used:.0%})"
    remedy = f"sysctl net.netfilter.nf_conntrack_max={max(262144, 2 * room.limit)}"
    if used >= _FULL:
        return fail(said, remedy)
    return warn(said, remedy) if used >= _FILLING else ok(said)


def _name(chain: Chain) -> str:
    return f"chain {chain.name} of table {chain.table} (hook {chain.hook}, priority {chain.priority})"


def _forward_drop(chains: tuple[Chain, ...]) -> Verdict:
    dropping = [c for c in chains if c.hook == "forward" and c.policy == "drop"]
    if dropping:
        return warn(
            f"{_name(dropping[0])} drops by default: what bottles may reach directly is dropped there too",
            "agentmon setup docker (it adds one rule for bottles, and takes it back with --undo)",
        )
    return ok("no other chain drops what is forwarded by default")


def _before_ours(chains: tuple[Chain, ...]) -> Verdict:
    """A chain between conntrack and ours sees and can change packets first; NAT there changes where they go."""
    early = [c for c in chains if c.hook == "prerouting" and -200 < c.priority < _OURS]
    if early:
        what = f"{_name(early[0])} comes before agentmon's: it can change marks and addresses that agentmon decides on"
        return warn(what, f"give it a priority of {_OURS + 1} or more, or see that it leaves bottles' packets alone")
    return ok("no other chain sees packets between conntrack and agentmon's")


def _raw(chains: tuple[Chain, ...]) -> Verdict:
    raw = [c for c in chains if c.hook in {"prerouting", "output"} and c.priority <= -300 and c.kind == "filter"]
    raw = [c for c in raw if c.policy == "drop" or c.table.rpartition(" ")[2] not in {"raw", "firewalld"}]
    if raw:
        what = f"{_name(raw[0])} comes before conntrack: a `notrack` there takes the epoch from flows of bottles"
        return warn(what, f"see that `nft list table {raw[0].table}` has no notrack for bottles' addresses")
    return ok("nothing unknown before conntrack")


def _forwarding(switches: Mapping[str, str]) -> Verdict:
    on = [k for k in ("ipv4.conf.all.forwarding", "ipv6.conf.all.forwarding") if switches.get(k) == "1"]
    if on:
        what = f"net.{on[0]} = 1: this host forwards between all its interfaces, also for its neighbours"
        return warn(
            what, f"agentmon needs it on its own devices only: sysctl net.{on[0]}=0, or a dropping forward chain"
        )
    return ok("only single interfaces forward")


def _leftovers(found: tuple[str, ...]) -> Verdict:
    if found:
        said = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        what = f"no daemon runs, but there are {said}: they hold what they held, and nobody follows names or budgets"
        return warn(what, "agentmon daemon adopts them; sudo make uninstall removes all")
    return ok("nothing is in force without a daemon")


def _sockets(sockets: tuple[HostSocket, ...]) -> Verdict:
    """Bottles do not see them; a job that runs as a user of the host in another way, does."""
    open_ = [s for s in sockets if s.mode & 0o002 or s.jobs]
    if open_:
        first = open_[0]
        how = "everybody may write it" if first.mode & 0o002 else "the jobs' user agentmon-job may write it"
        remedy = f"chmod o-rwx {first.path}; take agentmon-job out of its group: whoever writes it is root"
        return fail(f"{first.path}: {how}", remedy)
    return ok(", ".join(s.path for s in sockets) or "none on this host")


CHECKS = (
    Check("net.ipv6", "IPv6 is held like IPv4", "a family that nobody filters is a way out", "switches", _ipv6),
    Check(
        "net.route_localnet", "Loopback cannot be routed to",
        "a bottle would reach what listens on this host's 127.0.0.1", "switches", _localnet,
    ),
    Check(
        "net.accept_local", "Packets with this host's own source are dropped",
        "a bottle could speak in this host's name", "switches", _accept_local,
    ),
    Check(
        "net.source_route", "Source routing is refused", "the sender would choose the way past the filters",
        "switches", _source_route,
    ),
    Check("net.proxy_arp", "No proxy ARP", "neighbours would send what is not ours", "switches", _loopback_arp),
    Check(
        "net.forwarding", "Forwarding is limited to single interfaces",
        "a host that forwards everything is a way around its neighbours' firewalls", "switches", _forwarding,
    ),
    Check(
        "net.conntrack", "The table of flows has room", "a full table refuses every new connection, allowed ones too",
        "conntrack", _conntrack,
    ),
    Check(
        "net.forward_drop", "No other firewall drops what bottles may reach",
        "allowed destinations would time out, and people loosen policies", "chains", _forward_drop,
    ),
    Check(
        "net.earlier_chains", "No other chain changes packets before agentmon sees them",
        "verdicts rest on address and mark", "chains", _before_ours,
    ),
    Check(
        "net.untracked", "Conntrack sees every packet of bottles", "a flow without an entry has no epoch: a removed "
        "rule would not end it", "chains", _raw,
    ),
    Check(
        "net.leftovers", "Nothing is in force without a daemon", "nobody answers for it", "leftovers", _leftovers
    ),
    Check(
        "host.sockets", "Control sockets of the host are closed to jobs", "docker.sock and its kin are root",
        "sockets", _sockets,
    ),
)  # fmt: skip
