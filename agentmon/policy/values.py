"""Readers of values that settings and manifests share: rules, budgets, sizes, durations."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentmon import wire
from agentmon.errors import BadInput
from agentmon.policy import document
from agentmon.policy.document import Mapping, Node, Place, Scalar
from agentmon.policy.rules import Rule, RuleError, parse_rule

PERIODS = ("run", "hour", "day", "week", "month")
MAX_TOKENS = 10**15
ANY_PROVIDER = "*"

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
CREDENTIAL = _NAME  # what a route and the settings call one


@dataclass(frozen=True, slots=True)
class PlacedRule:
    """A rule and where it was written."""

    rule: Rule
    origin: str


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as written; `per` is None where the file leaves it to the scope's default."""

    provider: str
    tokens: int
    per: str | None
    shadow: bool
    place: Place

    def definition(self, default_per: str) -> wire.BudgetDef:
        return wire.BudgetDef(self.provider, self.tokens, self.per or default_per, self.shadow)


def rule(node: Node) -> PlacedRule:
    written = document.text(node, "a rule such as api.example.com:443")
    try:
        return PlacedRule(parse_rule(written), node.place.at())
    except RuleError as e:
        raise node.place.error(e.message, e.hint) from e


def deny_rule(node: Node) -> PlacedRule:
    """A rule under `deny:`, with or without its "!"."""
    written = document.text(node, "a rule such as *.example.com")
    try:
        return PlacedRule(parse_rule("!" + written.removeprefix("!")), node.place.at())
    except RuleError as e:
        raise node.place.error(e.message, e.hint) from e


def rules(node: Node) -> tuple[PlacedRule, ...]:
    return document.each(node, "a list of rules", rule)


def deny_rules(node: Node) -> tuple[PlacedRule, ...]:
    return document.each(node, "a list of rules", deny_rule)


def budgets(node: Node) -> tuple[Budget, ...]:
    """`{claude: 5000000, codex: {tokens: 2000000, per: day, shadow: true}}`"""
    table = document.mapping(node, "tokens by provider, such as {claude: 200000}")
    return tuple(budget(provider, value) for provider, value in table.values.items())


def budget(provider: str, node: Node) -> Budget:
    if isinstance(node, Scalar):
        return Budget(provider, _tokens(node), None, False, node.place)
    table = document.mapping(node, "tokens, or {tokens: N, per: day}")
    document.check_keys(table, ("tokens", "per", "shadow"))
    if "tokens" not in table.values:
        raise node.place.error("tokens: is missing", "write {tokens: 200000, per: day}")
    per = document.choice(table.values["per"], PERIODS) if "per" in table.values else None
    shadow = "shadow" in table.values and document.boolean(table.values["shadow"])
    return Budget(provider, _tokens(table.values["tokens"]), per, shadow, node.place)


def _tokens(node: Node) -> int:
    return document.integer(node, least=0, most=MAX_TOKENS, expected="a number of tokens")


def size(node: Node) -> int:
    """Bytes: `256M`."""
    written = document.text(node, "a size such as 256M")
    found = re.fullmatch(r"([0-9]{1,12})([KMGT]?)", written)
    if not found:
        raise node.place.error(f"{written!r}; expected a size such as 256M", "units: K, M, G, T (1024)")
    return int(found[1]) * _SIZES[found[2]]


def duration(node: Node) -> int:
    """Seconds: `7d`, `300`."""
    written = document.text(node, "a duration such as 7d")
    found = re.fullmatch(r"([0-9]{1,9})([smhdw]?)", written)
    if not found:
        raise node.place.error(f"{written!r}; expected a duration such as 7d", "units: s, m, h, d, w")
    return int(found[1]) * _DURATIONS[found[2] or "s"]


def check_name(name: str, what: str) -> str:
    """:raises BadInput: for a bottle's, agent's or manifest's name that could not be a file, host or scope name."""
    if not _NAME.fullmatch(name):
        hint = "names have 1 to 63 lower-case letters, digits, '.', '_' and '-', and begin with a letter or digit"
        raise BadInput(f"{what} {name!r} is not a usable name", hint)
    return name


def optional(table: Mapping, key: str) -> Node | None:
    """The value of a key, or None where it is absent or null."""
    node = table.values.get(key)
    return None if node is None or (isinstance(node, Scalar) and node.is_null) else node
