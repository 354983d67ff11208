"""The dashboard: what its model makes of what was asked, and what a person sees and does, at two sizes of terminal."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable

from agentmon.render import top as render
from agentmon.tui.app import Top
from agentmon.tui.model import Model, Order, Raw, View, tightest
from agentmon.tui.panes import Ask, Confirm

GOLDEN = Path(__file__).parents[1] / "golden/tui"
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def bottle(name: str, used: int = 0, held: int = 0, tokens: int = 0, **more: Any) -> dict[str, Any]:
    budget = {"scope": "bottle", "name": name, "provider": "claude", "tokens": tokens, "used": used, "held": held}
    base = {"bottle": name, "phase": "running", "command": ["claude", "-p"], "owner": 0, "processes": [1, 2],
            "budgets": [budget] if tokens else [], "scopes": [["bottle", name], ["host", "host"]]}  # fmt: skip
    return base | more


def refused(name: str, layer: str = "bpf", count: int = 1) -> dict[str, Any]:
    return {"ts": "2023-11-14T22:13:20Z", "kind": "connect", "verdict": "refused", "reason": "default", "bottle": name,
            "layer": layer, "comm": "curl", "pid": 7, "dst": "203.0.113.9", "port": 443, "proto": "tcp", "count": count,
            "hint": f"agentmon allow {name} tcp://203.0.113.9:443"}  # fmt: skip


BOTTLES = (
    bottle("build-17", 40_000, 20_000, 100_000, scopes=[["bottle", "build-17"], ["parent", "ci"], ["host", "host"]]),
    bottle("review-3", 950, 0, 1_000, phase="cut", scopes=[["bottle", "review-3"], ["parent", "ci"]]),
    bottle("agent", observe=True),
)
PROPOSAL = {
    "id": 3, "bottle": "agent", "method": "POST", "host": "paste.example", "path": "/new", "detector": "aws-key",
    "context": "key=[…]", "until": "2023-11-14T22:14:20.000000000Z",
}  # fmt: skip
RAW = Raw(
    START, BOTTLES, (PROPOSAL,),
    ({"scope": "host", "name": "host", "provider": "*", "tokens": 500_000, "used": 1, "held": 0},),
    ({"bottle": "build-17", "provider": "claude", "model": "claude-x", "tokens": 20_000},),
)  # fmt: skip


# ── the model ──


def names(view: View) -> list[str]:
    return [line.name for line in view.lines]


def test_bottles_stand_under_their_parent_and_the_host() -> None:
    view = Model().view(RAW)
    assert [(line.depth, line.name) for line in view.lines] == [
        (0, "this host"), (1, "ci"), (2, "build-17"), (2, "review-3"), (1, "agent"),
    ]  # fmt: skip
    host, ci, build, *_ = view.lines
    assert host.meter.limit == 500_000 and host.live == 1 and ci.processes == 4
    assert build.meter.remaining == 40_000 and build.live == 1 and build.meter.share == 0.6
    assert next(line for line in view.lines if line.name == "agent").state == "running OBSERVE"


def test_burn_and_time_to_exhaustion_come_from_what_was_used_meanwhile() -> None:
    model = Model()
    model.view(Raw(START, (bottle("b", 10_000, 0, 100_000),)))
    line = model.view(Raw(START + 30 * SECOND, (bottle("b", 20_000, 0, 100_000),))).lines[1]
    assert (line.burn, line.left_s) == (20_000, 240)
    line = model.view(Raw(START + 60 * SECOND, (bottle("b", 5, 0, 100_000),))).lines[1]  # a new window of the budget
    assert (line.burn, line.left_s) == (0, None)
    model.view(Raw(START + 61 * SECOND, ()))
    assert model.view(Raw(START + 62 * SECOND, (bottle("b", 9_000, 0, 100_000),))).lines[1].burn == 0


def test_the_tightest_budget_is_shown_and_a_shadow_never() -> None:
    rows = [{"scope": "bottle", "provider": "a", "tokens": 100, "used": 10, "held": 0},
            {"scope": "host", "provider": "b", "tokens": 100, "used": 50, "held": 40},
            {"scope": "agent", "provider": "c", "tokens": 100, "used": 99, "held": 0, "shadow": True}]  # fmt: skip
    assert tightest(rows).of == "host b" and tightest([]).limit == 0


def test_order_and_search() -> None:
    model = Model()
    model.told(refused("agent", count=5))
    raw = Raw(START, tuple(b | {"scopes": []} for b in BOTTLES))
    assert names(model.view(raw))[1:] == ["agent", "build-17", "review-3"]
    assert names(model.view(raw, Order.USED))[1:] == ["review-3", "build-17", "agent"]
    assert names(model.view(raw, Order.REFUSED))[1] == "agent"
    view = model.view(raw, search="CUT claude")
    assert names(view)[1:] == ["review-3"] and view.hidden == 2 and view.bottles == 3


def test_refusals_are_counted_by_layer() -> None:
    model = Model()
    for event in (refused("agent"), refused("agent", count=4), refused("agent", "resolver"), {"verdict": "allowed"}):
        model.told(event)
    agent = next(line for line in model.view(RAW).lines if line.name == "agent")
    assert agent.layers == {"bpf": 5, "resolver": 1} and agent.refused == 6


def test_once_says_all_of_it_as_text_and_as_an_object() -> None:
    view = Model().view(RAW)
    text = render.text(view)
    assert "███▒▒···" in text and "40.0k/100k" in text and "running OBSERVE" in text
    assert "1 proposals wait" in text
    value = json.loads(json.dumps(render.as_object(view)))
    assert value["lines"][2]["budget"] == {
        "of": "bottle claude", "used": 40_000, "held": 20_000, "tokens": 100_000, "remaining": 40_000,
    }  # fmt: skip
    away = render.text(Model().view(Raw(START, problem="no agentmon daemon is running")))
    assert "no agentmon daemon is running" in away
    assert [render.short(n) for n in (999, 1_000, 99_950, 123_456, 10**7, 3 * 10**9)] == [
        "999", "1.0k", "100k", "123k", "10.0M", "3.0G",
    ]  # fmt: skip


# ── the screen ──


class Desk:
    """An app with planted answers, and what it asked to be done."""

    def __init__(self, raw: Raw = RAW, refusal: str = "") -> None:
        self.raw, self.refusal, self.looks = raw, refusal, 0
        self.done: list[tuple[str, dict[str, Any]]] = []
        self.app = Top(self.look, self.act)

    def look(self) -> Raw:
        self.looks += 1
        return self.raw

    def act(self, op: str, **args: Any) -> str:
        self.done.append((op, args))
        return self.refusal

    def screen(self) -> str:
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"

    def run(self, story: Callable[[Any], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
        async def play() -> None:
            async with self.app.run_test(size=size) as pilot:
                await settled(pilot, lambda: self.app._table("#bottles").row_count > 0)
                await story(pilot)

        asyncio.run(play())

    def go_to(self, name: str) -> None:
        table = self.app._table("#bottles")
        table.move_cursor(
            row=[row.split()[-1] for row in (table.get_row_at(i)[0] for i in range(table.row_count))].index(name)
        )


async def settled(pilot: Any, what: Callable[[], Any], rounds: int = 200) -> None:
    for _ in range(rounds):
        await pilot.pause(0.01)
        if what():
            return
    raise AssertionError("the screen never came to it")


@pytest.mark.parametrize("size", [(80, 24), (140, 40)], ids=["80x24", "140x40"])
def test_what_is_seen(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    desk = Desk()
    for event in (refused("build-17", count=12), refused("agent", "resolver")):
        desk.app.model.told(event)

    async def story(pilot: Any) -> None:
        await pilot.pause()
        seen = desk.screen()
        golden = GOLDEN / f"top-{size[0]}x{size[1]}.txt"
        if os.environ.get("AGENTMON_GOLDEN") == "write":
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(seen)
        assert seen == golden.read_text(), "AGENTMON_GOLDEN=write writes it anew"

    desk.run(story, size)


@pytest.mark.parametrize(("key", "op"), [("c", "cut"), ("f", "freeze"), ("r", "resume"), ("k", "kill")])
def test_an_operation_is_done_after_a_yes_and_not_after_a_no(key: str, op: str) -> None:
    desk = Desk()

    async def story(pilot: Any) -> None:
        desk.go_to("build-17")
        for answer in ("n", "escape"):
            await pilot.press(key)
            await settled(pilot, lambda: isinstance(desk.app.screen, Confirm))
            await pilot.press(answer)
            await settled(pilot, lambda: not isinstance(desk.app.screen, Confirm))
        assert desk.done == []
        await pilot.press(key)
        await settled(pilot, lambda: isinstance(desk.app.screen, Confirm))
        await pilot.press("y")
        await settled(pilot, lambda: desk.done)
        assert desk.done == [(op, {"bottle": "build-17"})]

    desk.run(story)


def test_a_host_or_parent_is_not_operated_on() -> None:
    desk = Desk()

    async def story(pilot: Any) -> None:
        desk.go_to("ci")
        await pilot.press("k")
        await pilot.pause()
        assert not isinstance(desk.app.screen, Confirm) and not desk.done

    desk.run(story)


def test_budget_and_decisions_take_words() -> None:
    desk = Desk()

    async def story(pilot: Any) -> None:
        desk.go_to("review-3")
        await pilot.press("b")
        await settled(pilot, lambda: isinstance(desk.app.screen, Ask))
        await pilot.press(*"claude=5000", "enter")
        await settled(pilot, lambda: desk.done)
        assert desk.done.pop() == ("budget_set", {"bottle": "review-3", "budget": "claude=5000"})
        await pilot.press("a")
        await settled(pilot, lambda: isinstance(desk.app.screen, Ask))
        await pilot.press("escape")
        await settled(pilot, lambda: not isinstance(desk.app.screen, Ask))
        assert not desk.done
        await pilot.press("x")
        await settled(pilot, lambda: isinstance(desk.app.screen, Ask))
        await pilot.press(*"no", "enter")
        await settled(pilot, lambda: desk.done)
        assert desk.done == [("reject", {"id": 3, "reason": "no"})]

    desk.run(story)


def test_what_was_not_permitted_is_said() -> None:
    desk = Desk(refusal="uid 1000 may not use kill here (use sudo)")

    async def story(pilot: Any) -> None:
        desk.go_to("agent")
        await pilot.press("k")
        await settled(pilot, lambda: isinstance(desk.app.screen, Confirm))
        await pilot.press("y")
        await settled(pilot, lambda: any("may not use kill here" in n.message for n in desk.app._notifications))

    desk.run(story)


def test_search_sort_pause_contrast_and_help() -> None:
    desk = Desk()

    def rows() -> list[str]:
        table: DataTable[str] = desk.app._table("#bottles")
        return [str(table.get_row_at(i)[0]).strip() for i in range(table.row_count)]

    async def story(pilot: Any) -> None:
        await pilot.press("slash", *"review")
        await settled(pilot, lambda: rows() == ["this host", "ci", "review-3"])
        await pilot.press("enter")
        assert "2 hidden" in desk.screen()
        await pilot.press("slash", "escape")
        await settled(pilot, lambda: len(rows()) == 5)
        await pilot.press("s")
        assert "by used" in desk.screen()
        looks = desk.looks
        await pilot.press("p")
        desk.app.refresh_view()
        await pilot.pause(0.05)
        assert "PAUSED" in desk.screen() and desk.looks == looks
        await pilot.press("h")
        assert desk.app.theme == "contrast"
        await pilot.press("question_mark")
        await settled(pilot, lambda: "any key closes this" in desk.screen())
        await pilot.press("z")
        await settled(pilot, lambda: "any key closes this" not in desk.screen())

    desk.run(story)


def test_a_daemon_that_goes_away_is_said_and_one_that_comes_back_is_shown() -> None:
    desk = Desk()

    async def story(pilot: Any) -> None:
        desk.raw = Raw(START, problem="no agentmon daemon is running (agentmon daemon)")
        desk.app.refresh_view()
        await settled(pilot, lambda: "no agentmon daemon is running" in desk.screen())
        desk.raw = RAW
        desk.app.refresh_view()
        await settled(pilot, lambda: "build-17" in desk.screen() and "no agentmon" not in desk.screen())

    desk.run(story)


def test_what_a_job_named_is_not_obeyed() -> None:
    evil = "x\x1b[31m[bold red]y[/]\u202e"
    desk = Desk(Raw(START, (bottle(evil),), (PROPOSAL | {"host": evil, "path": ""},)))
    desk.app.model.told(refused(evil))

    async def story(pilot: Any) -> None:
        seen = desk.screen()
        assert "\x1b" not in seen and "\u202e" not in seen and "[bold red]" in seen

    desk.run(story)


def test_only_cells_that_changed_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(bottle(f"b{n:03}", n, 0, 1000) for n in range(300))
    desk = Desk(Raw(START, many))

    async def story(pilot: Any) -> None:
        table = desk.app._table("#bottles")
        touched: list[Any] = []
        update, clear = table.update_cell, table.clear
        monkeypatch.setattr(table, "update_cell", lambda *a, **k: (touched.append(a), update(*a, **k)))
        monkeypatch.setattr(table, "clear", lambda *a, **k: (touched.append("clear"), clear(*a, **k)))
        desk.app.take(Raw(START, many))
        assert touched == []
        desk.app.take(Raw(START, (bottle("b000", 900, 0, 1000), *many[1:])))
        assert 0 < len(touched) <= 3 and "clear" not in touched

    desk.run(story)
