"""A whole policy as plain values, and back: for a bottle's state file, and for the command line that compares it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec

from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import parse_rule


def to_plain(policy: EffectivePolicy) -> dict[str, Any]:
    """JSON's types alone; rules as their canonical texts."""
    out = {f.name: getattr(policy, f.name) for f in fields(policy) if f.name != "rules"}
    plain: dict[str, Any] = msgspec.to_builtins({**out, "rules": [rule.text for rule in policy.rules]})
    return plain


def from_plain(plain: Mapping[str, Any]) -> EffectivePolicy:
    """:raises msgspec.MsgspecError, KeyError, TypeError, ValueError: no policy of this version."""
    hints = typing.get_type_hints(EffectivePolicy)
    values = {k: msgspec.convert(v, hints[k]) for k, v in plain.items() if k != "rules"}
    return EffectivePolicy(rules=tuple(parse_rule(text) for text in plain["rules"]), **values)
