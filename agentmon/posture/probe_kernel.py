"""Looking at the kernel and the tools: what they take is tried, what they say of themselves is read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ebpf.errors
import ebpf.probe
import netfilter.errors
import netfilter.probe
from agentmon.posture.facts import CgroupLayout, Feature, Seen
from agentmon.posture.model import Unseen

_ROOT = Unseen("only root can try it", "sudo agentmon posture")


def platform() -> Seen[str]:
    return sys.platform


def root() -> Seen[bool]:
    return os.geteuid() == 0


def nft() -> Seen[tuple[Feature, ...]]:
    """In a namespace of its own that ends with the probe."""
    if os.geteuid() != 0:
        return _ROOT
    try:
        return tuple(Feature(f.name, f.needed, f.why_not, f.remedy) for f in netfilter.probe.probe())
    except netfilter.errors.Missing as error:
        return (Feature("nftables and namespaces", True, error.what, error.remedy),)


def bpf() -> Seen[tuple[Feature, ...]]:
    """Programs of two instructions, loaded and closed again."""
    if os.geteuid() != 0:
        return _ROOT
    try:
        return tuple(Feature(f.feature, f.required, f.missing, f.hint) for f in ebpf.probe.probe())
    except ebpf.errors.Missing as error:
        return (Feature("BPF", True, error.what, error.hint),)


def cgroups(mountinfo: Path = Path("/proc/self/mountinfo")) -> Seen[CgroupLayout]:
    """proc_pid_mountinfo(5); the root's cgroup.controllers."""
    v2, v1 = "", False
    for line in mountinfo.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        kind = after.split(" ", 1)[0]
        if kind == "cgroup2" and not v2:
            v2 = before.split()[4]
        v1 = v1 or kind == "cgroup"
    if not v2:
        return CgroupLayout("", v1, frozenset())
    controllers = (Path(v2) / "cgroup.controllers").read_text().split()
    return CgroupLayout(v2, v1, frozenset(controllers))


def lockdown(file: Path = Path("/sys/kernel/security/lockdown")) -> Seen[str]:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return "none"  # not built in, or securityfs is not mounted: then nothing is locked down by it either
    return text.partition("[")[2].partition("]")[0] or "none"


def unprivileged_bpf(file: Path = Path("/proc/sys/kernel/unprivileged_bpf_disabled")) -> Seen[int]:
    try:
        return int(file.read_text())
    except FileNotFoundError:
        return 2  # a kernel without the switch has no unprivileged BPF either (bpf(2))


def lsm(file: Path = Path("/sys/kernel/security/lsm")) -> Seen[tuple[str, ...]]:
    try:
        return tuple(file.read_text().strip().split(","))
    except FileNotFoundError:
        return Unseen(f"{file} is not there", "mount -t securityfs none /sys/kernel/security")


def bwrap() -> Seen[str]:
    """Its version; "" where it is not installed."""
    path = shutil.which("bwrap")
    if path is None:
        return ""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=2, check=False)
    return f"{done.stdout.strip() or 'bwrap'} at {path}"
