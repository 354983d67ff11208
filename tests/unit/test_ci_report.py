"""The baseline (the same bytes for the same rules, and only what is not in it is new) and what a report says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentmon.ci import baseline, session
from agentmon.ci.baseline import Compared, Reached
from agentmon.ci.session import Session
from agentmon.ci.steps import Seen, Steps, ns
from agentmon.cli import ci_report
from agentmon.errors import BadInput
from agentmon.policy import manifest
from agentmon.policy.rules import parse_rule
from agentmon.render.ci import as_ci_object, with_ci
from agentmon.render.report import Report
from agentmon.render.report_html import html
from agentmon.render.report_markdown import markdown

EVIL = "<b>`x`|\x1b[31m"
STEPS = Steps([Seen(1, ns("2026-01-02T03:00:00Z"), "build"), Seen(2, ns("2026-01-02T03:01:00Z"), "test")])
SESSION = Session("ci", "process 7", "observe", 1, ns("2026-01-02T03:00:00Z"), ns("2026-01-02T03:02:00Z"))
REPORT = Report("ci", 0, 10**18, "UTC", {}, {}, (), (), (), (), 0, {})


def seen(host: str, pid: int, second: int = 1, **more: Any) -> list[dict[str, Any]]:
    """A lookup and what connected after it, observed."""
    base = {"verdict": "observed", "bottle": "ci", "tgid": pid, "pid": pid, "comm": "curl", "reason": "default"}
    base |= {"ts": f"2026-01-02T03:01:{second:02}.000000000Z"}
    connect = {
        "kind": "connect",
        "layer": "bpf",
        "proto": "tcp",
        "dst": "192.0.2.1",
        "port": 443,
        "detail": {"names": [host]},
    }
    return [base | {"kind": "dns", "layer": "resolver", "host": host}, base | connect | more]


def compare(events: list[dict[str, Any]], *rules: str, lost: int = 0) -> Compared:
    return baseline.compare("ci", events, STEPS, [parse_rule(rule) for rule in rules], (), lost=lost)


def test_what_is_not_in_the_baseline_is_new_and_each_has_its_steps() -> None:
    events = seen("a.example", 1) + seen("b.example", 2, 2) + seen("a.example", 2, 3)
    found = compare(events, "a.example:443")
    assert [(r.rule, r.new, r.steps, r.count) for r in found.reached] == [
        ("b.example:443", True, ("test",), 1), ("a.example:443", False, ("build", "test"), 2),
    ]  # fmt: skip
    assert found.new == ("b.example:443",) and not found.clean
    assert compare(events, "*.example:443").clean and compare(events, "a.example", "b.example").clean
    assert not compare(events, "a.example:8443", "b.example:443").clean
    assert compare([]).clean


def test_what_cannot_be_told_is_never_clean_and_what_was_never_let_through_is_no_news() -> None:
    assert not compare([], lost=1).clean
    many = {"kind": "connect", "verdict": "observed", "bottle": "ci", "detail": {"others": True}, "count": 9, "ts": "t"}
    assert compare([many]).untold == (("", "others"),)
    metadata = seen("a.example", 1)[1] | {"dst": "169.254.169.254", "verdict": "refused", "reason": "protected"}
    assert compare([metadata]).clean


def test_a_baseline_is_a_manifest_and_the_same_whatever_the_order(tmp_path: Path) -> None:
    rules = ["b.example:443", "10.0.0.0/8:5432", "[2001:db8::1]:80", "https://x.example/a b"[:19], "b.example:443"]
    assert baseline.text(rules) == baseline.text(rules[::-1])
    for given in (rules, []):
        file = tmp_path / "egress.yml"
        file.write_text(baseline.text(given))
        assert {p.rule.text for p in manifest.load(file, tmp_path / "etc").allow} == set(given)


def test_updating_adds_and_never_takes_away(tmp_path: Path) -> None:
    file = tmp_path / "egress.yml"
    found = compare(seen("b.example", 1))
    assert ci_report.update(file, found) == 1
    first = file.read_bytes()
    ci_report.update(file, compare(seen("b.example", 1), "b.example:443"))
    assert file.read_bytes() == first
    ci_report.update(file, compare(seen("a.example", 1), "b.example:443"))
    assert [rule.text for rule in ci_report.rules(file)] == ["a.example:443", "b.example:443"]
    file.write_text("allow: [a.example]\nbudget: {claude: 5}\n")
    with pytest.raises(BadInput, match="`budget` stands there"):
        ci_report.update(file, found)
    with pytest.raises(BadInput):
        ci_report.update(tmp_path / "no/egress.yml", found)
    for attempt in (lambda: ci_report.append(tmp_path, ""), lambda: ci_report.artefacts(file, None)):  # type: ignore[arg-type]
        with pytest.raises(BadInput):
            attempt()


def test_every_form_says_the_same_and_a_jobs_words_stay_words() -> None:
    evil = Reached(f"{EVIL}:443", True, 3, (EVIL,), (EVIL,), True)
    found = Compared((evil, Reached("a.example:443", False, 1, ("build",), ("git",), False)), (("x:1", "no-rule"),), 2)
    report = with_ci(REPORT, SESSION, found, "egress.yml")
    text, page = markdown(report), html(report)
    said = (
        "process 7 was observed for 2 min 0 s: 2 destinations. Not as expected: 1 destination not in egress.yml, 1 that"
    )
    for form in (text, page):
        assert said in form and "\x1b" not in form and "<b>" not in form
        assert (
            form.index("Not in the baseline") < form.index("Reached, as expected") < form.index("What no rule can say")
        )
    assert text.index("Not in the baseline") < text.index("## Refused")
    data = as_ci_object(report, SESSION, found, "egress.yml")["ci"]
    assert (data["clean"], data["lost"], data["new"]) == (False, 2, [f"{EVIL}:443"])
    plain = with_ci(REPORT, replace_session(stopped_ns=0), replace(found, untold=(), lost=0), "")
    assert "so far" in markdown(plain) and "expected" not in markdown(plain)
    assert as_ci_object(plain, SESSION, found, "")["ci"]["clean"] is None


def replace_session(**changes: Any) -> Session:
    import msgspec

    return msgspec.structs.replace(SESSION, **changes)


def test_a_session_is_what_was_saved_and_a_damaged_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmon.paths.CI", tmp_path / "ci")
    session.save(SESSION)
    assert session.load("ci") == SESSION
    session.file("ci").write_text("{")
    with pytest.raises(BadInput, match=r"ci\.json"):
        session.load("ci")
    for name in ("", "../x", "A", "-a"):
        with pytest.raises(BadInput):
            session.load(name)
