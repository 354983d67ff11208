"""`agentmon allow` and `agentmon deny`: a running bottle's policy with one rule more or less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentmon.errors import Refused
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.merge import SETTINGS_ORIGIN, check_conflicts, option_rule
from agentmon.policy.rules import Depth, Rule, RuleError, covers, overlaps, parse_rule
from agentmon.policy.values import PlacedRule


def placed(policy: EffectivePolicy) -> tuple[PlacedRule, ...]:
    """The policy's rules with their origins."""
    origins = policy.origins or ("",) * len(policy.rules)
    return tuple(PlacedRule(rule, origin) for rule, origin in zip(policy.rules, origins, strict=True))


def with_allowed(policy: EffectivePolicy, text: str) -> EffectivePolicy:
    """The policy with `text` allowed: denies of the same target go, then the rule is added if it is not there.

    :raises BadInput: for a rule that cannot be used, or one that contradicts how its host is held.
    :raises Refused: where a deny rule that stays covers it: the new rule would be without effect.
    """
    new = option_rule(text.removeprefix("!"), "agentmon allow")
    kept = []
    for old in placed(policy):
        fixed = old.origin.startswith(SETTINGS_ORIGIN)
        if old.rule.deny and old.rule.same_target(new.rule) and not fixed:
            continue
        if old.rule.deny and covers(old.rule, new.rule):
            hint = "it stands above every manifest" if fixed else f"take {old.rule.text} back first: agentmon allow"
            raise Refused(f"{new.rule.text} is denied by {old.rule.text} ({old.origin})", hint)
        kept.append(old)
    if new.rule not in {old.rule for old in kept}:
        kept.insert(0, new)
    check_conflicts(kept, policy.inspected)
    return _with(policy, kept)


def with_denied(policy: EffectivePolicy, text: str) -> EffectivePolicy:
    """The policy with `text` denied: an allow of the same target goes; a deny is added where something else, or
    nothing, allowed it.

    :raises BadInput: for a rule that cannot be used.
    """
    new = option_rule("!" + text.removeprefix("!"), "agentmon deny")
    before = placed(policy)
    twins = [new.rule, *_as_allowed(text)]
    kept = [old for old in before if old.rule.deny or not any(old.rule.same_target(twin) for twin in twins)]
    removed = len(kept) < len(before)
    still_open = any(not old.rule.deny and _may_open(old.rule, new.rule) for old in kept)
    if (still_open or not removed) and new.rule not in policy.rules:
        kept.insert(0, new)
    return _with(policy, kept)


def with_host_denied(policy: EffectivePolicy, deny: Sequence[PlacedRule]) -> EffectivePolicy:
    """The policy under the settings' `deny:` of now, instead of the one it was made with; as merge.effective() puts it:
    these keep their origin although a manifest says the same."""
    texts = {placed.rule.text for placed in deny}
    own = [p for p in placed(policy) if not p.origin.startswith(SETTINGS_ORIGIN) and p.rule.text not in texts]
    fixed = {p.rule.text: PlacedRule(p.rule, SETTINGS_ORIGIN + p.origin) for p in deny}
    return _with(policy, [*own, *fixed.values()])


def _may_open(allow: Rule, denied: Rule) -> bool:
    """Whether `allow` opens something of `denied`; a direct name may resolve to any address."""
    if denied.network is not None and allow.host and allow.depth is Depth.DIRECT:
        return True
    return overlaps(allow, denied)


def with_rule(policy: EffectivePolicy, text: str, deny: bool) -> EffectivePolicy:
    """with_denied() or with_allowed()."""
    return with_denied(policy, text) if deny else with_allowed(policy, text)


def is_removal(old: EffectivePolicy, new: EffectivePolicy) -> bool:
    """True where something that `old` allowed may be refused by `new`: then a new epoch is needed (DESIGN 5)."""
    allowed_before = {rule for rule in old.rules if not rule.deny}
    allowed_after = {rule for rule in new.rules if not rule.deny}
    denied_before = {rule for rule in old.rules if rule.deny}
    denied_after = {rule for rule in new.rules if rule.deny}
    paths = any(rule.depth is Depth.INSPECTED for rule in allowed_after - allowed_before)
    inspected = frozenset(new.inspected) - frozenset(old.inspected)
    return bool(allowed_before - allowed_after or denied_after - denied_before or paths or inspected)


def _as_allowed(text: str) -> list[Rule]:
    """The rule that `agentmon allow` would have added; none for what can only be denied (127.0.0.1)."""
    try:
        return [parse_rule(text.removeprefix("!"))]
    except RuleError:
        return []


def _with(policy: EffectivePolicy, rules: list[PlacedRule]) -> EffectivePolicy:
    return replace(policy, rules=tuple(p.rule for p in rules), origins=tuple(p.origin for p in rules))
