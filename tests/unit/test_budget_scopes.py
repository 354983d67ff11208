"""Which budgets hold, from files and options to the ledger's answer: every combination of scopes against an oracle."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from agentmon.ledger.state import Now
from agentmon.policy import manifest, settings
from agentmon.policy.merge import Options, effective
from agentmon.providers.declaration import Provider
from bench.admission import ME, WALL, empty_book
from tests.support.ledger_book import Book
from tests.support.ledger_rig import budget as of
from tests.support.ledger_rig import scope

PROVIDERS = {name: Provider(name, hosts=(f"api.{name}.example",), endpoints=()) for name in ("claude", "codex")}
SHAPES = ("", "claude", "*")  # whose budget a place has; "" for none
PLACES = ("agent", "own", "parent", "host", "ceiling", "option")
HOSTS = {"agent": 700, "own": 500, "parent": 600, "host": 400, "ceiling": 450, "option": 800}  # nearer is not smaller
REPOSITORYS = HOSTS | {"agent": 300, "own": 350}  # more than the host gives would not load
ALL = 10_000

Given = dict[str, str]  # by place: its shape


def oracle(given: Given, tokens: dict[str, int], provider: str, *, repository: bool) -> int:
    """What a request that wants everything may hold, said as the documents say it."""

    def counts(place: str) -> bool:
        overridden = place == "own" and given["own"] and given["own"] == given["option"]
        return given[place] in (provider, "*") and not overridden

    def nearest(*scopes: tuple[str, ...]) -> list[int]:
        return next((found for s in scopes if (found := [tokens[p] for p in s if counts(p)])), [])

    bottle, own = ("option", "own"), ("agent", "own")
    if not repository:
        found = nearest(("agent",), bottle, ("parent",), ("host",))
    elif found := nearest(("option",), ("parent",), ("host",)):
        found += [tokens[p] for p in own if counts(p)]  # the repository's only lower it
    else:
        found = nearest(*((p,) for p in own))
    return min([*found, *([tokens["ceiling"]] if counts("ceiling") else []), ALL])


@cache
def written(name: str, agent: str, own: str, agents: int, owns: int, *, trusted: bool) -> manifest.Manifest:
    text = f"agents: {{rev: {{budget: {{'{agent}': {agents}}}}}}}\n" if agent else "agents: {rev: {}}\n"
    text += f"budget: {{'{own}': {owns}}}\n" if own else ""
    return manifest.parse(text, f"/m/{name}.yml", trusted=trusted)


@cache
def hosts(host: str, ceiling: str) -> settings.Settings:
    text = f"budget: {{'{host}': {HOSTS['host']}}}\n" if host else ""
    return settings.parse(text + (f"ceiling: {{'{ceiling}': {HOSTS['ceiling']}}}\n" if ceiling else ""), "s.yml")


@pytest.mark.parametrize("repository", [False, True])
def test_every_combination_of_scopes_providers_and_the_option(repository: bool) -> None:
    tokens = REPOSITORYS if repository else HOSTS
    book = empty_book()
    book.begin(Now(WALL, 1))
    seen = set()
    for shapes in itertools.product(SHAPES, repeat=len(PLACES)):
        given = dict(zip(PLACES, shapes, strict=True))
        child = written("web", given["agent"], given["own"], tokens["agent"], tokens["own"], trusted=not repository)
        base = written("base", "", given["parent"], 0, tokens["parent"], trusted=True)
        asked = (f"{given['option']}={tokens['option']}",) if given["option"] else ()
        options = Options(name="b", agent="rev", budgets=asked)
        policy = effective(hosts(given["host"], given["ceiling"]), (child, base), options, PROVIDERS)
        book.ask(wire.OpenRun(1, 1, "b", "r", "rev", policy.scopes, {}), ME)
        for provider in PROVIDERS:
            hold: Any = book.ask(wire.Reserve(1, 1, provider, "m", 0, ALL, provider), ME)
            expected = oracle(given, tokens, provider, repository=repository)
            assert hold.tokens == expected, (given, provider)
            book.ask(wire.Release(1, hold.hold), ME)
            seen.add(expected)
        book.ask(wire.CloseRun(1, 1, "r"), ME)
        book.take()
    assert seen >= {*(tokens[place] for place in ("agent", "own", "parent", "host", "ceiling")), ALL}


@pytest.mark.parametrize("place", ["agent", "own", "parent"])
def test_a_repositorys_manifest_lowers_at_every_scope_and_raises_at_none(place: str) -> None:
    """Whatever it says, nobody may hold more than without it."""
    for shape, amount in itertools.product(("claude", "*"), (1, 399)):
        for host in ("claude", "*"):
            agent, own = (shape if place == "agent" else ""), (shape if place == "own" else "")
            child = written("web", agent, own, amount, amount, trusted=False)
            base = written("base", "", shape if place == "parent" else "", 0, amount, trusted=False)
            policy = effective(hosts(host, ""), (child, base), Options(name="b", agent="rev"), PROVIDERS)
            book = empty_book()
            book.begin(Now(WALL, 1))
            book.ask(wire.OpenRun(1, 1, "b", "r", "rev", policy.scopes, {}), ME)
            hold: Any = book.ask(wire.Reserve(1, 1, "claude", "m", 0, ALL, "k"), ME)
            assert hold.tokens == amount


HOUR, DAY = 3600, 86400
STEPS = {"hour": HOUR, "day": DAY, "week": 7 * DAY, "month": 31 * DAY}


@pytest.mark.parametrize("where", ["agent", "bottle", "parent", "host", "ceiling"])
def test_a_spent_window_ends_with_the_window_and_not_before(where: str, tmp_path: Path) -> None:
    book = Book(tmp_path)
    start = replace(book.now, wall_ns=1_780_272_000 * 10**9)  # 2026-06-01, a Monday, midnight UTC
    for slot, per in enumerate(("run", *STEPS), 1):
        provider = f"p{slot}"
        book.now = start
        name = "host" if where == "host" else f"{where}{slot}"
        scopes = {(where, name): (of(provider, 100, per),)}
        given = [scope(*at, *b) for at, b in scopes.items()]
        book.open(slot, *given, bottle=name if where == "bottle" else "")
        book.spend(slot, 100, f"r{slot}", provider)
        length = STEPS.get(per, 10 * STEPS["month"])
        book.now = replace(start, wall_ns=start.wall_ns + (min(length, 30 * DAY) - 60) * 10**9)
        denied = book.reserve(slot, 0, 1, "early", provider)
        assert isinstance(denied, wire.Denied) and (denied.scope, denied.per, denied.waits) == (where, per, False)
        book.now = replace(start, wall_ns=start.wall_ns + length * 10**9)
        assert isinstance(book.reserve(slot, 0, 1, "late", provider), wire.Denied if per == "run" else wire.Granted)
    book.store.close()


@pytest.mark.parametrize("where", ["agent", "bottle", "parent", "ceiling"])
def test_a_budget_is_set_where_somebody_is_charged_and_nowhere_else(where: str, tmp_path: Path) -> None:
    book = Book(tmp_path)
    name = {"bottle": "b1", "host": "host"}.get(where, "n")
    book.open(1, scope(where, name))
    slip = book.ask(wire.SetBudget, where, "slip", "", of("claude", 5), 0)
    assert (slip.error, slip.message) == ("BadInput", f"no running bottle is charged to {where} 'slip'")
    assert isinstance(book.ask(wire.SetBudget, where, name, "", of("claude", 50, "day"), 0), wire.Done)
    assert book.reserve(1, 0, ALL, "k").tokens == 50
    assert book.line(1, where)["per"] == "day"
    book.store.close()


@pytest.mark.parametrize("where", ["agent", "bottle", "parent", "host", "ceiling"])
def test_a_budget_changed_between_hold_and_settlement(where: str, tmp_path: Path) -> None:
    """The hold stays what it is, the row is charged in full, and the new amount is what it is compared with."""
    book = Book(tmp_path)
    name = {"bottle": "b1", "host": "host"}.get(where, "n")
    for key, tokens, crossed in (("lowered", 40, True), ("raised", 900, False)):
        book.open(1, scope(where, name, of("claude", 100)), run=key)
        hold = book.reserve(1, 0, 60, key)
        book.crossed.clear()
        changed = book.ask(wire.SetBudget, where, name, "", of("claude", tokens), 0)
        assert isinstance(changed, wire.Done), changed
        assert book.line(1, where) | {"held": 60, "tokens": tokens} == book.line(1, where)
        assert isinstance(book.reserve(1, 0, 50, "next"), wire.Denied) is crossed
        settled = book.ask(wire.Settle, hold.hold, wire.Usage("claude", "m", key, output=55))
        assert settled.crossed is crossed and book.line(1, where)["used"] == 55
        assert [c.threshold for c in book.crossed] == ([100] if crossed else [])
        book.ask(wire.SetBudget, where, name, "", of("claude", 100), 0)
        book.ask(wire.CloseRun, 1, key)
    book.store.close()
