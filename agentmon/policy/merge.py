"""Settings, manifest chain and options become one EffectivePolicy.

allow, ro, rw, unix       add up: options first, then child, parent, …
routes, agents            add up; for the same host (with all its routes) or agent the one nearest to the child holds
limits                    key by key, the nearest
shutdown, guard, home,
io_uring, provider,
listen                    the nearest that says anything: options, child, parent, …, settings
                          guard, listen: a manifest of elsewhere only makes stricter what those of the host say
"!" rules, deny:          always add, and win
budgets                   scopes.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from agentmon import wire
from agentmon.errors import BadInput, Refused
from agentmon.policy import document, sockets, unbuilt, values
from agentmon.policy.checks import Checks
from agentmon.policy.effective import LIMITS, EffectivePolicy
from agentmon.policy.manifest import GUARDS, HOMES, Manifest, only_lowers, untrusted
from agentmon.policy.options import Options, environment
from agentmon.policy.rules import Rule, RuleError, conflicts, parse_rule
from agentmon.policy.scopes import scopes
from agentmon.policy.settings import SHUTDOWNS, UNREADABLE, Settings
from agentmon.policy.values import PlacedRule
from agentmon.providers.declaration import Provider

__all__ = ["SETTINGS_ORIGIN", "Options", "check_conflicts", "effective", "option_rule"]

T = TypeVar("T")
Providers = Mapping[str, Provider]
SETTINGS_ORIGIN = "settings "  # how the origin of a rule from `deny:` begins


def effective(
    settings: Settings,
    chain: Sequence[Manifest] | None,
    options: Options,
    providers: Providers,
    checks: Checks = Checks.OF_NEW,
) -> EffectivePolicy:
    """One bottle's policy.

    :param chain: as manifest.load_chain() gives it, child first; None or empty without a manifest.
    :param providers: as providers.registry.load(settings.providers) gives them.
    :raises BadInput: what cannot be used, with its place.
    :raises Refused: what this user may not ask for.
    """
    manifests = tuple(chain or ())
    for manifest in manifests:
        untrusted(manifest, settings)
        if checks is Checks.OF_NEW:
            only_lowers(manifest, settings)
    unbuilt.refuse_settings(settings)
    _check_options(settings, options, checks)
    bottle = options.name or (manifests[0].bottle_name if manifests else "")
    if not bottle:
        raise BadInput("the bottle has no name", "give --name, or a manifest whose file name is one")
    provider = _provider(manifests, options, providers)
    placed = _rules(settings, manifests, options, providers.get(provider))
    held = routes(manifests)
    decrypted = inspected(held, providers)
    check_conflicts(placed, decrypted)
    return EffectivePolicy(
        bottle=values.check_name(bottle, "bottle"),
        rules=tuple(p.rule for p in placed),
        origins=tuple(p.origin for p in placed),
        inspected=decrypted,
        routes=held,
        scopes=scopes(settings, manifests, options, bottle=bottle, provider=provider, known=providers, checks=checks),
        weights=dict(settings.weights),
        agent=options.agent,
        provider=provider,
        shutdown=_nearest((options.shutdown or None, *(m.shutdown for m in manifests)), settings.shutdown),
        guard=_guard(manifests),
        observe=options.observe,
        home=_nearest((options.home or None, *(m.home for m in manifests)), "private"),
        ro=_paths(options, options.ro, (path for m in manifests for path in m.ro)),
        rw=_paths(options, options.rw, (path for m in manifests for path in m.rw)),
        unix=tuple(dict.fromkeys(path for m in manifests for path in m.unix)),
        listen=_listen(manifests),
        io_uring=_nearest((m.io_uring for m in manifests), False),
        limits={key: _nearest((m.limits.get(key) for m in manifests), value) for key, value in LIMITS.items()},
        log=settings.log,
        unreadable=_unreadable(settings, manifests),
        sources=tuple(m.file for m in manifests) + ((settings.source,) if settings.source else ()),
    )


def _nearest(found: Iterable[T | None], default: T) -> T:
    return next((value for value in found if value is not None), default)


def _guard(manifests: Sequence[Manifest]) -> str:
    given = _nearest((m.guard for m in manifests if m.trusted), "observe")
    asked = (m.guard for m in manifests if m.guard and not m.trusted)
    return max((given, *asked), key=GUARDS.index)


def _unreadable(settings: Settings, manifests: Sequence[Manifest]) -> str:
    """The strictest that anybody says: no manifest, whoever wrote it, is milder than the host."""
    asked = (m.unreadable for m in manifests if m.unreadable)
    return max((settings.unreadable, *asked), key=UNREADABLE.index)


def _listen(manifests: Sequence[Manifest]) -> tuple[str, ...] | None:
    given = _nearest((m.listen for m in manifests if m.trusted), None)
    for manifest in manifests:
        if not manifest.trusted:
            given = sockets.narrowed(given, manifest.listen)
    return given


def _nearest_by(found: Iterable[T], key: Callable[[T], str]) -> tuple[T, ...]:
    out: dict[str, T] = {}
    for value in found:
        out.setdefault(key(value), value)
    return tuple(out.values())


def inspected(held: Sequence[wire.Route], providers: Providers) -> tuple[str, ...]:
    """Host patterns that the proxy decrypts: providers' hosts, and hosts of routes."""
    metered = sorted({host for p in providers.values() for host in p.hosts})
    return tuple(dict.fromkeys((*metered, *(route.host for route in held))))


def routes(manifests: Sequence[Manifest]) -> tuple[wire.Route, ...]:
    """In the order written, child first; a host's routes all come from the nearest manifest that names it."""
    out: list[wire.Route] = []
    for manifest in manifests:
        named = {route.host for route in out}
        out += [placed.route for placed in manifest.routes if placed.route.host not in named]
    return tuple(out)


def _check_options(settings: Settings, options: Options, checks: Checks) -> None:
    environment(options)
    for flag, value, allowed in (("--shutdown", options.shutdown, SHUTDOWNS), ("--home", options.home, HOMES)):
        if value and value not in allowed:
            raise BadInput(f"{flag} {value!r}; expected {' | '.join(allowed)}", document.suggestion(value, allowed))
    if options.uid == 0 or checks is Checks.OF_RUNNING:
        return
    if options.observe and not settings.grants.observe:
        hint = "run it as root, or write `grants: {observe: true}` into the settings"
        raise Refused("--observe relaxes the allowlist, and you may not do that", hint)
    if options.shutdown and SHUTDOWNS.index(options.shutdown) < SHUTDOWNS.index(settings.shutdown):
        raise Refused(
            f"--shutdown {options.shutdown} is milder than the host's {settings.shutdown}", "only root may choose that"
        )


def _provider(manifests: Sequence[Manifest], options: Options, providers: Providers) -> str:
    if options.provider:
        if options.provider not in providers:
            what = f"--provider {options.provider!r}: there is no such provider"
            raise BadInput(what, document.suggestion(options.provider, providers))
        return options.provider
    for manifest in manifests:
        if manifest.provider is not None:
            if manifest.provider not in providers:
                what = f"unknown provider {manifest.provider!r}"
                raise manifest.places["provider"].error(what, document.suggestion(manifest.provider, providers))
            return manifest.provider
    return ""


def _rules(
    settings: Settings, manifests: Sequence[Manifest], options: Options, provider: Provider | None
) -> tuple[PlacedRule, ...]:
    found = [option_rule(text, "--allow") for text in options.allow]
    found += [placed for manifest in manifests for placed in manifest.allow]
    if provider is not None and not manifests:
        hosts = (h for h in (*provider.hosts, *provider.also) if "*" not in h.removeprefix("*."))
        found += [PlacedRule(parse_rule(f"{host}:443"), f"provider {provider.name}") for host in hosts]
    found += [PlacedRule(p.rule, SETTINGS_ORIGIN + p.origin) for p in settings.deny]
    # A deny of the settings keeps its origin although a manifest says the same: it cannot be taken back.
    fixed = {p.rule.text for p in found if p.origin.startswith(SETTINGS_ORIGIN)}
    kept = [p for p in found if p.rule.text not in fixed or p.origin.startswith(SETTINGS_ORIGIN)]
    return _nearest_by(kept, lambda placed: placed.rule.text)


def option_rule(text: str, option: str) -> PlacedRule:
    """A rule from a command line. :raises BadInput: with the option's name."""
    try:
        return PlacedRule(parse_rule(text), option)
    except RuleError as e:
        raise BadInput(f"{option} {text!r}: {e.message}" if text else f"{option}: {e.message}", e.hint) from e


def check_conflicts(placed: Sequence[PlacedRule], inspected: Sequence[str]) -> None:
    """:raises BadInput: for a host that is to be direct and held by name at once, with the place of the direct rule."""
    origins: dict[Rule, str] = {p.rule: p.origin for p in placed}
    for conflict in conflicts(origins, inspected):
        raise BadInput(f"{origins[conflict.direct]}: {conflict.message()}", conflict.hint())


def _paths(options: Options, asked: Sequence[str], written: Iterable[str]) -> tuple[str, ...]:
    out: dict[str, None] = {}
    for path in (*asked, *written):
        full = path
        if path == "~" or path.startswith("~/"):
            if not options.user_home:
                raise BadInput(f"{path!r}: nobody's home directory is known", "write the path out")
            full = options.user_home + path[1:]
        if not full.startswith("/") or ".." in full.split("/") or "\0" in full:
            raise BadInput(f"path {path!r} is not absolute", "write it from / on, without '..'")
        out[os.path.normpath(full)] = None
    return tuple(out)
