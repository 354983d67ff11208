"""A report of planted rows: what it counts, that every form says the same, and that a job's words stay words."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from agentmon.cli import main as cli
from agentmon.render import report as render
from agentmon.render.report import Report, Used, refusals, used
from agentmon.render.report_html import html
from agentmon.render.report_markdown import markdown

EVIL = "<script>alert(1)</script>|`x`\n# h\x1b[31m"
COUNTS = {"requests": 2, "input": 10, "cache_read": 0, "cache_write": 0, "output": 5, "weighted": 15, "estimated": 0,
          "incomplete": 0}  # fmt: skip


def event(host: str, count: int = 1, **more: Any) -> dict[str, Any]:
    base = {"ts": "2026-01-02T03:04:05Z", "kind": "dns", "verdict": "refused", "reason": "default", "layer": "resolver",
            "bottle": "b", "comm": "curl", "pid": 7, "host": host, "hint": f"agentmon allow b {host}"}  # fmt: skip
    return base | {"count": count} | more


def made(events: list[dict[str, Any]] | None = None, **changes: Any) -> Report:
    listed, more, layers = refusals(events or [])
    given: dict[str, Any] = {
        "bottle": "b", "since_ns": 0, "until_ns": 10**18, "zone": "UTC",
        "usage": {"provider": (Used("claude", COUNTS),)},
        "days": {("2026-01-01", "claude"): 10, ("2026-01-02", "claude"): 5, ("2026-01-02", "codex"): 7}, "budgets": (),
        "cuts": ({"ts": "t", "bottle": "b", "policy": "cutoff", "trigger": "budget", "by": "x", "latency_ns": 2_500_000,
                  "result": "1 streams closed"},),
        "approvals": (), "refusals": listed, "more": more, "layers": layers,
    }  # fmt: skip
    return Report(**given | changes)


def test_the_same_refusal_is_one_line_whoever_of_the_bottle_tried_it() -> None:
    listed, more, layers = refusals(
        [event("x.example", 2), event("x.example", pid=8), event("y.example"), event("z", verdict="allowed"),
         event("", kind="usage")]
    )  # fmt: skip
    assert [(r.count, r.hint) for r in listed] == [(3, "agentmon allow b x.example"), (1, "agentmon allow b y.example")]
    assert layers == {"resolver": 4} and more == 0
    listed, more, layers = refusals([event(f"h{n}.example") for n in range(80)])
    assert len(listed) == 50 and more == 30 and layers == {"resolver": 80}


def test_groups_come_largest_first_and_days_in_order() -> None:
    rows = [{"model": m, **COUNTS, "weighted": w} for m, w in (("a", 1), ("b", 9))]
    assert [u.name for u in used(rows, "model")] == ["b", "a"]
    rows = [{"day": d, **COUNTS, "weighted": w} for d, w in (("2026-01-01", 1), ("2026-01-02", 9))]
    assert [u.name for u in used(rows, "day")] == ["2026-01-01", "2026-01-02"]


class Page(HTMLParser):
    """Tags in order; every open one is closed."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_whole_loads_nothing_and_draws_what_its_tables_say() -> None:
    text = html(made([event("x.example", 3)]))
    page = Page(text)
    assert not any(tag in {"script", "link", "img", "iframe"} for tag, _ in page.seen)
    assert not [a for _, attrs in page.seen for a in attrs if a in {"src", "href"} or a.startswith("on")]
    assert "default-src 'none'" in text
    assert [a["role"] for tag, a in page.seen if tag == "svg"] == ["img", "img"]
    heights = [float(str(a["height"])) for tag, a in page.seen if tag == "rect" and a.get("height") not in {"10", "16"}]
    assert sorted(round(h / max(heights), 2) for h in heights) == [round(5 / 10, 2), round(7 / 10, 2), 1.0]
    assert "2026-01-02 codex: 7" in text and "x.example" in text and "2.5" in text


@pytest.mark.parametrize("place", ["host", "bottle", "model"])
def test_what_a_job_named_is_never_markup(place: str) -> None:
    changes: dict[str, Any] = {}
    if place == "bottle":
        changes["bottle"] = EVIL
    if place == "model":
        changes["usage"] = {"model": (Used(EVIL, COUNTS),)}
    report = made([event(EVIL if place == "host" else "x.example", hint="")], **changes)
    text = html(report)
    assert "<script" not in text and "\x1b" not in text
    Page(text)
    said = markdown(report)
    assert "<script" not in said and "\x1b" not in said and "\n# h" not in said
    body = [line for line in said.splitlines() if line.startswith("|")]
    assert body and all(len(re.findall(r"(?<!\\)\|", line)) in {5, 8, 9} for line in body)  # no cell of its own


def test_nothing_happened() -> None:
    report = made(usage={}, days={}, cuts=())
    assert "nothing was refused." in markdown(report) and "no cuts" in markdown(report)
    Page(html(report))
    assert json.loads(json.dumps(render.as_object(report)))["tokens"] == 0


def test_a_file_that_cannot_be_written_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from agentmon.cli import reporting

    monkeypatch.setattr(reporting, "gather", lambda *a: made())
    assert cli.main(["report", "--html", "/nonexistent/x.html"]) == 2
    err = capsys.readouterr().err
    assert "error: --html /nonexistent/x.html: No such file" in err and "hint: " in err
    assert cli.main(["report", "--json"]) == 0 and json.loads(capsys.readouterr().out)["bottle"] == "b"
