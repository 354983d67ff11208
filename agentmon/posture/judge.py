"""Facts → findings: every check once, in the order of CHECKS. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agentmon.posture import rules_bottles, rules_daemon, rules_files, rules_kernel, rules_network
from agentmon.posture.facts import Facts
from agentmon.posture.model import Check, Finding, Status, Unseen, Verdict

CHECKS: tuple[Check, ...] = (
    *rules_kernel.CHECKS, *rules_network.CHECKS, *rules_files.CHECKS, *rules_daemon.CHECKS, *rules_bottles.CHECKS,
)  # fmt: skip
_LINUX_ONLY = "the rest is a matter of the Linux kernel: docs/operations/posture.md says what other hosts have instead"


def findings(facts: Facts) -> list[Finding]:
    """One per check; on a host that is not Linux, one that says so."""
    if isinstance(facts.platform, str) and facts.platform != "linux":
        return [_elsewhere(facts.platform)]
    return [_found(check, _verdict(check, facts)) for check in CHECKS]


def _verdict(check: Check, facts: Facts) -> Verdict:
    fact = getattr(facts, check.fact)
    if isinstance(fact, Unseen):
        return Verdict(Status.UNKNOWN, fact.why, fact.remedy)
    return check.judge(fact)


def _found(check: Check, verdict: Verdict) -> Finding:
    return Finding(check.id, check.title, verdict.status, verdict.evidence, check.why, verdict.remedy)


def _elsewhere(platform: str) -> Finding:
    return Finding(
        "host.platform", "The host is Linux", Status.FAIL, f"this is {platform}: there is no nftables, no BPF, no "
        "network namespace and no cgroup here", "every layer that decides is in the Linux kernel",
        f"run agents in a Linux VM (vagrant/ has one); {_LINUX_ONLY}",
    )  # fmt: skip


def exit_code(found: Iterable[Finding]) -> int:
    """0 good, 1 warnings or something that could not be seen, 2 failures."""
    seen = {finding.status for finding in found}
    if Status.FAIL in seen:
        return 2
    return 1 if seen & {Status.WARN, Status.UNKNOWN} else 0
