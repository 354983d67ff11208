"""rules: what one line of an allowlist means. Standard library only: daemon, services and the guard share it.

    text ─ grammar.parse_rule ─▶ Rule ┐
                                      ├─ decide.PolicySet ─▶ Decision (allowed, depth, rule, reason)
    name or address, port, protocol ──┘
    hosts.py canonical names   ports.py port sets   ranges.py addresses nobody may be given   relate.py rule and rule

Imports stay cheap on purpose (no re, typing or dataclasses): the guard pays for them in every process.
"""

from agentmon.policy.rules.decide import Conflict, Decision, PolicySet, conflicts
from agentmon.policy.rules.grammar import Depth, Rule, host_pattern, parse_rule, path_matches
from agentmon.policy.rules.hosts import RuleError, a_label, canonical_host
from agentmon.policy.rules.ranges import METADATA, NEVER_ANSWERED, private_only_exact, protected_in, stripped
from agentmon.policy.rules.relate import Index, covers, overlaps

__all__ = [
    "METADATA",
    "NEVER_ANSWERED",
    "Conflict",
    "Decision",
    "Depth",
    "Index",
    "PolicySet",
    "Rule",
    "RuleError",
    "a_label",
    "canonical_host",
    "conflicts",
    "covers",
    "host_pattern",
    "overlaps",
    "parse_rule",
    "path_matches",
    "private_only_exact",
    "protected_in",
    "stripped",
]
