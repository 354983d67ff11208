"""Rules about the kernel and the tools that everything rests on. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agentmon.posture.facts import CgroupLayout, Feature
from agentmon.posture.model import Check, Verdict, fail, ok, warn

_MAJOR_LSM = frozenset({"apparmor", "selinux", "smack", "tomoyo"})
_CONTROLLERS = frozenset({"pids", "memory"})


def _missing(features: Iterable[Feature], *, needed: bool) -> list[Feature]:
    return [f for f in features if f.missing and f.needed is needed]


def _told(features: Iterable[Feature]) -> str:
    return "; ".join(f"{f.name}: {f.missing}" for f in features)


def _remedies(features: Iterable[Feature]) -> str:
    return "; ".join(dict.fromkeys(f.remedy for f in features if f.remedy))


def _needed(features: tuple[Feature, ...]) -> Verdict:
    missing = _missing(features, needed=True)
    if missing:
        return fail(_told(missing), _remedies(missing))
    return ok(f"tried: {', '.join(f.name for f in features if f.needed)}")


def _optional(features: tuple[Feature, ...]) -> Verdict:
    missing = _missing(features, needed=False)
    if missing:
        return warn(_told(missing), _remedies(missing) or "a newer kernel; without it the other layers hold alone")
    return ok(f"tried: {', '.join(f.name for f in features if not f.needed) or 'nothing else'}")


def _cgroups_found(layout: CgroupLayout) -> Verdict:
    if layout.v2:
        return ok(f"cgroup v2 at {layout.v2}{' (hybrid)' if layout.hybrid else ''}")
    return fail("cgroup v2 is mounted nowhere", "boot with systemd.unified_cgroup_hierarchy=1")


def _controllers(layout: CgroupLayout) -> Verdict:
    if lacking := sorted(_CONTROLLERS - layout.controllers):
        what = f"{layout.v2 or 'cgroup v2'} lacks the controllers {', '.join(lacking)}"
        return warn(what, "boot with systemd.unified_cgroup_hierarchy=1; until then limits: pids holds by RLIMIT only")
    return ok(", ".join(sorted(layout.controllers)))


def _lockdown(mode: str) -> Verdict:
    if mode == "confidentiality":
        what = "lockdown is 'confidentiality': BPF programs may not read kernel memory, so events name no library"
        return warn(what, "boot with lockdown=integrity")
    return ok(f"lockdown is {mode!r}")


def _unprivileged_bpf(value: int) -> Verdict:
    if value == 0:
        what = "kernel.unprivileged_bpf_disabled = 0: any user of this host may load BPF programs"
        return warn(what, "sysctl kernel.unprivileged_bpf_disabled=1")
    return ok(f"kernel.unprivileged_bpf_disabled = {value}")


def _lsm(names: tuple[str, ...]) -> Verdict:
    if not _MAJOR_LSM & set(names):
        what = f"no mandatory access control is in force (active: {', '.join(names) or 'none'})"
        return warn(what, "enable AppArmor or SELinux, as the distribution does by default")
    return ok(", ".join(names))


def _bwrap(version: str) -> Verdict:
    return ok(version) if version else fail("bwrap is not there: no job can be started", "apt-get install bubblewrap")


def _root(is_root: bool) -> Verdict:
    if is_root:
        return ok("looked at as root")
    return warn("looked at without root: what needs it is 'unknown' below", "sudo agentmon posture")


CHECKS = (
    Check(
        "report.root", "The report sees everything", "what cannot be looked at cannot be vouched for", "root", _root
    ),
    Check(
        "kernel.nft", "nftables, conntrack and routing can do what bottles need",
        "without them no packet is held: agentmon refuses to start", "nft", _needed,
    ),
    Check(
        "kernel.nft_optional", "Optional parts of nftables",
        "an egress hook inside the namespace holds frames that a root there builds by hand, before they reach the host",
        "nft", _optional,
    ),
    Check(
        "kernel.bpf", "cgroup BPF programs load", "without them no refusal names its process, and io_uring is held by "
        "packets only", "bpf", _needed,
    ),
    Check(
        "kernel.bpf_optional", "Optional BPF hooks",
        "without them vouching, unix sockets or attribution are weaker, as `status` says", "bpf", _optional,
    ),
    Check(
        "kernel.cgroup", "cgroup v2 is there", "bottles are known, frozen and killed by their cgroup", "cgroups",
        _cgroups_found,
    ),
    Check(
        "kernel.controllers", "cgroup v2 has the controllers for limits",
        "a fork bomb in a bottle is the host's problem without them", "cgroups", _controllers,
    ),
    Check(
        "kernel.lockdown", "Kernel lockdown leaves attribution alone",
        "events would not name the native library that connected", "lockdown", _lockdown,
    ),
    Check(
        "kernel.unprivileged_bpf", "Only privileged users load BPF programs",
        "verifier bugs are a usual way from a user to the kernel", "unprivileged_bpf", _unprivileged_bpf,
    ),
    Check(
        "kernel.lsm", "Mandatory access control is in force", "it is the second fence around the services and jobs",
        "lsm", _lsm,
    ),
    Check("tools.bwrap", "The launcher's sandbox is installed", "jobs are started by it", "bwrap", _bwrap),
)  # fmt: skip
