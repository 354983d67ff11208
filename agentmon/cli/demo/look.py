"""A bottle's start as the kernel and the system show it: read by their own commands and files, not asked of agentmon.

Only which slot and addresses the bottle has comes from `agentmon ps`.
"""

from __future__ import annotations

import os
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from agentmon import paths
from agentmon.addresses import SERVICE_NETNS, netns, veth

Facts = dict[str, str | bool]  # what it is → a short fact; False: not there
NAMES = ("netns", "veth", "tables", "rules", "programs", "services", "probe")


def start(row: dict[str, Any]) -> Facts:
    """:param row: of `agentmon ps --json`, while the bottle's job runs."""
    slot = int(row["slot"])
    addresses = [address for address in (row["addr4"], row["addr6"]) if address]
    return {
        "netns": _netns(slot),
        "veth": _veth(slot),
        "tables": _tables(slot),
        "rules": _rules(addresses),
        "programs": _programs(slot),
        "services": services(paths.SVC),
        # The launcher lets go of the job only when the probe in the bottle found everything in force.
        "probe": "passed: the job runs" if row["phase"] == "running" else False,
    }


def _netns(slot: int) -> str | bool:
    names = [netns(slot), SERVICE_NETNS]
    inodes = {(paths.NETNS / name).stat().st_ino for name in names if (paths.NETNS / name).exists()}
    own = Path("/proc/self/ns/net").stat().st_ino
    return ", ".join(names) if len(inodes - {own}) == len(names) else False


def _veth(slot: int) -> str | bool:
    both = (
        _said("ip", "-o", "link", "show", "dev", veth(slot)),
        _inside(slot, "ip", "-o", "link", "show", "dev", "eth0"),
    )
    return f"{veth(slot)} to eth0" if all("LOWER_UP" in line for line in both) else False


def _tables(slot: int) -> str | bool:
    """The host's has a chain for this bottle; the namespace has a table of its own."""
    host = _said("nft", "list", "table", "inet", "agentmon")
    inside = _inside(slot, "nft", "list", "table", "inet", "agentmon")
    if f"chain b{slot} " not in host or not inside:
        return False
    return f"host {len(host.splitlines())} lines with chain b{slot}, bottle {len(inside.splitlines())}"


def _rules(addresses: list[str]) -> str | bool:
    """For each address a rule that what nobody has marked goes nowhere."""
    found = [_backstop(address) for address in addresses]
    return ", ".join(found) if found and all(found) else False


def _backstop(address: str) -> str:
    own = ip_address(address)
    for line in _said("ip", f"-{own.version}", "rule").splitlines():
        words = line.split()
        if words[1] == "from" and "/" in words[2] and words[-1] == "unreachable" and own in ip_network(words[2]):
            return " ".join(words[1:])
    return ""


def _programs(slot: int) -> str | bool:
    """What is in force for the bottle's cgroup by bpftool's word; without bpftool, the pinned links."""
    group = _cgroup2() / "agentmon" / f"b{slot}"
    if not group.is_dir():
        return False
    listing = _said("bpftool", "cgroup", "show", str(group), "effective")
    pins = sorted(pin.name for pin in (paths.BPFFS / "links").iterdir()) if (paths.BPFFS / "links").is_dir() else []
    found = [pin for pin in pins if not listing or pin[:15] in listing]  # the kernel keeps 15 letters of a name
    how = f"in force for {group.name}" if listing else "pinned"
    return f"{len(found)} {how}: {' '.join(found)}" if found and found == pins else False


def _cgroup2() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(fields.split()[4])
    return Path("/sys/fs/cgroup")


def services(directory: Path) -> str | bool:
    """The services whose process lives; False if one does not, or there is none."""
    alive = {file.stem: Path(f"/proc/{file.read_text().strip()}/stat").exists() for file in directory.glob("*.pid")}
    return " ".join(sorted(alive)) if alive and all(alive.values()) else False


def _inside(slot: int, *argv: str) -> str:
    return _said("nsenter", f"--net={paths.NETNS / netns(slot)}", *argv)


def _said(*argv: str) -> str:
    """A command's output; nothing where it fails or is not there."""
    environment = os.environ | {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
