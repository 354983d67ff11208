"""Budgets of settings, manifests and options as the ledger's list of scopes, most specific first.

    agent      the agent's budget in the nearest manifest that names him
    bottle     --budget, else the budget of the bottle's own manifest
    parent     one for each ancestor manifest: a pool that its children share
    host       settings `budget:`                ceiling   settings `ceiling:`

The ledger lets the nearest scope govern that defines a budget, and checks every ceiling besides. So a budget that may
only *lower* (of a manifest outside bottles_dir, or of a user without the grant) becomes a ceiling of its own wherever
somebody with more right has defined one: then both hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from agentmon import wire
from agentmon.errors import BadInput, Refused
from agentmon.policy import document, values
from agentmon.policy.checks import Checks
from agentmon.policy.manifest import Manifest
from agentmon.policy.options import Options, budget_option
from agentmon.policy.settings import Settings
from agentmon.policy.values import ANY_PROVIDER, Budget

Chain = Sequence[Manifest]


@dataclass(frozen=True, slots=True)
class _Level:
    """The budgets of one scope: those with the right to set an amount, and those that may only lower one."""

    scope: str
    name: str
    binding: tuple[wire.BudgetDef, ...] = ()
    lowering: tuple[wire.BudgetDef, ...] = ()


def scopes(
    settings: Settings,
    chain: Chain,
    options: Options,
    *,
    bottle: str,
    provider: str,
    known: Iterable[str],
    checks: Checks = Checks.OF_NEW,
) -> tuple[wire.ScopeDef, ...]:
    """All scopes a bottle's usage counts in.

    :param provider: the default for budgets that name none, or "".
    :param known: names of the providers that exist.
    :raises BadInput: unknown provider or agent, or no provider to go with a bare number.
    :raises Refused: the user may not raise what he asks for.
    """
    names = frozenset(known)
    levels = _levels(settings, chain, options, bottle, provider, names)
    if checks is Checks.OF_NEW and options.uid != 0 and not settings.grants.raise_budget:
        trusted = bool(chain) and chain[0].trusted
        above = [level for level in levels if level.scope != "agent" and (trusted or level.scope != "bottle")]
        _check_not_raised(_asked(options, provider, names), above)
    given = [b for level in levels for b in level.binding if not b.shadow]
    out: list[wire.ScopeDef] = []
    ceilings: list[wire.ScopeDef] = []
    for level in levels:
        below = tuple(b for b in level.lowering if _matching(given, b.provider))
        in_place = tuple(b for b in level.lowering if b not in below)
        out.append(wire.ScopeDef(level.scope, level.name, (*level.binding, *in_place)))
        if level.lowering:  # also while it is empty: a run is charged to the scopes it begins with
            ceilings.append(wire.ScopeDef("ceiling", f"{level.scope}:{level.name}", below))
    host_ceiling = tuple(_known(b, names).definition("month") for b in settings.ceiling)
    return (*out, wire.ScopeDef("ceiling", "host", host_ceiling), *ceilings)


def _levels(
    settings: Settings, chain: Chain, options: Options, bottle: str, provider: str, known: frozenset[str]
) -> list[_Level]:
    levels: list[_Level] = []
    if options.agent:
        budgets, trusted = _agent(chain, values.check_name(options.agent, "agent"))
        levels.append(_level("agent", options.agent, _defs(budgets, "run", provider, known), trusted))
    above = [_level("parent", m.scope, _defs(m.budget, "month", provider, known), m.trusted) for m in chain[1:]]
    above.append(_level("host", "host", _defs(settings.budget, "month", provider, known), True))

    asked = _asked(options, provider, known)
    written = _defs(chain[0].budget, "run", provider, known) if chain else ()
    trusted = bool(chain) and chain[0].trusted
    others = tuple(b for b in written if b.provider not in {a.provider for a in asked})
    if options.uid == 0 or settings.grants.raise_budget:
        own = _level("bottle", bottle, others, trusted)
        own = replace(own, binding=(*asked, *own.binding))
    elif trusted:
        own = _Level("bottle", bottle, written, asked)
    else:
        own = _Level("bottle", bottle, (), (*asked, *others))
    return [*levels, own, *above]


def _level(scope: str, name: str, budgets: tuple[wire.BudgetDef, ...], trusted: bool) -> _Level:
    return _Level(scope, name, budgets, ()) if trusted else _Level(scope, name, (), budgets)


def _agent(chain: Chain, name: str) -> tuple[tuple[Budget, ...], bool]:
    for manifest in chain:
        if name in manifest.agents:
            return manifest.agents[name], manifest.trusted
    known = sorted({agent for manifest in chain for agent in manifest.agents})
    if known:  # a slip of the pen must not shed the budget
        raise BadInput(f"--agent {name!r} is none of the manifest's agents", document.suggestion(name, known))
    return (), True


def _defs(budgets: Iterable[Budget], per: str, provider: str, known: frozenset[str]) -> tuple[wire.BudgetDef, ...]:
    out = []
    for budget in budgets:
        if not budget.provider and not provider:
            raise budget.place.error("tokens of which provider?", "write {claude: 50000}, or give `provider:`")
        out.append(_known(replace(budget, provider=budget.provider or provider), known).definition(per))
    return tuple(out)


def _known(budget: Budget, known: frozenset[str]) -> Budget:
    if budget.provider not in known and budget.provider != ANY_PROVIDER:
        hint = document.suggestion(budget.provider, (*known, ANY_PROVIDER))
        raise budget.place.error(f"unknown provider {budget.provider!r}", hint)
    return budget


def _asked(options: Options, provider: str, known: frozenset[str]) -> tuple[wire.BudgetDef, ...]:
    found: dict[str, wire.BudgetDef] = {}
    for text in options.budgets:
        named, tokens = budget_option(text)
        name = named or provider
        if not name:
            hint = "add --provider claude, or write --budget claude=" + str(tokens)
            raise BadInput(f"--budget {text}: tokens of which provider?", hint)
        if name not in known and name != ANY_PROVIDER:
            raise BadInput(f"--budget {text}: unknown provider {name!r}", document.suggestion(name, known))
        if name in found:
            raise BadInput(f"--budget {text}: {name} has a budget already", "give one --budget for each provider")
        found[name] = wire.BudgetDef(name, tokens, "run")
    return tuple(found.values())


def _check_not_raised(asked: Iterable[wire.BudgetDef], levels: Iterable[_Level]) -> None:
    for budget in asked:
        for level in levels:
            limit = _matching([b for b in level.binding if not b.shadow], budget.provider)
            if limit is not None and budget.tokens > limit.tokens:
                what = f"--budget {budget.provider}={budget.tokens} is more than {level.scope} {level.name} gives"
                hint = "root may raise it; so may members of agentmon where settings grant raise_budget"
                raise Refused(f"{what} ({limit.tokens} per {limit.per})", hint)


def _matching(budgets: Iterable[wire.BudgetDef], provider: str) -> wire.BudgetDef | None:
    by_provider: Mapping[str, wire.BudgetDef] = {b.provider: b for b in budgets}
    if provider == ANY_PROVIDER:
        return next(iter(by_provider.values()), None)
    return by_provider.get(provider, by_provider.get(ANY_PROVIDER))
