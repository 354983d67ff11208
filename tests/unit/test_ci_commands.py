"""What `ci` commands ask of the daemon and how they end; with a daemon and real jobs: tests/e2e/test_ci.py."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentmon.ci.baseline import Compared, Reached
from agentmon.ci.session import Session
from agentmon.cli import ci_report, ci_session
from agentmon.cli.main import main
from agentmon.errors import BadInput
from agentmon.render.ci import with_ci
from agentmon.render.report import Report
from tests.support.live import COMMAND, ROOT

NOTHING: dict[str, Any] = {
    "pid": None, "cgroup": None, "netns": None, "container": None, "policy": None, "provider": None, "allow": (),
    "budget": (),
}  # fmt: skip
SESSION = Session("ci", "process 7", "observe", 1, 1, 2)
NEW = Compared((Reached("a.example:443", True, 1, ("build",), ("curl",), False),), ())


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"cgroup": "/sys/x/"}, {"cgroup": "/sys/x"}),
        ({"netns": "runner"}, {"netns": "runner"}),
        ({"container": "web"}, {"pid": "4711", "what": "container web"}),
        ({"pid": "nobody", "allow": ("a.example",)}, {"pid": "nobody", "allow": ["a.example"]}),
        ({"budget": ("claude=5",), "provider": "claude"}, {"budgets": ["claude=5"], "provider": "claude"}),
    ],
)
def test_what_is_asked_of_the_daemon(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], asked: dict[str, Any]
) -> None:
    """Observed, a job is told whole: the baseline's rules are given only where they are to hold."""
    monkeypatch.setattr("agentmon.cli.containers.pid_of", lambda name: 4711)
    given = NOTHING | options
    assert ci_session._arguments("n", False, ["b.example:443"], given) == {"name": "n", "observe": True} | asked
    held = ci_session._arguments("n", True, ["b.example:443"], given)
    assert held.pop("allow") == [*asked.get("allow", ()), "b.example:443"] and "observe" not in held


def test_one_thing_at_a_time() -> None:
    with pytest.raises(BadInput, match="--pid and --netns were given"):
        ci_session._arguments("n", False, [], NOTHING | {"pid": "1", "netns": "x"})


def planted(monkeypatch: pytest.MonkeyPatch, compared: Compared, label: str) -> None:
    report = Report("ci", 0, 10**18, "UTC", {}, {}, (), (), (), (), 0, {})
    found = (SESSION, with_ci(report, SESSION, compared, label), compared, label)
    monkeypatch.setattr(ci_report, "of", lambda name, file: found)
    monkeypatch.setattr("agentmon.ci.session.load", lambda name: SESSION)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.mark.parametrize(
    ("compared", "label", "status"),
    [(NEW, "egress.yml", 1), (NEW, "", 0), (Compared((), ()), "egress.yml", 0), (Compared((), (), 3), "egress.yml", 1),
     (Compared((), (("raw", "no-port"),)), "egress.yml", 1)],
)  # fmt: skip
def test_how_a_report_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compared: Compared, label: str, status: int
) -> None:
    planted(monkeypatch, compared, label)
    assert main(["ci", "report"]) == status
    out, err = capsys.readouterr()
    assert out.startswith("# agentmon: ci") and ("--update" in err) == bool(status)


def test_an_update_is_written_and_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planted(monkeypatch, NEW, "egress.yml")
    file, summary = tmp_path / "egress.yml", tmp_path / "summary"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert main(["ci", "report", "--baseline", str(file)]) == 2 and "no such file" in capsys.readouterr().err
    assert main(["ci", "report", "--baseline", str(file), "--update"]) == 0
    assert '"a.example:443"' in file.read_text() and summary.read_text().startswith("# agentmon: ci")
    assert capsys.readouterr().out == ""
    assert main(["ci", "report", "--update"]) == 2 and "--baseline FILE" in capsys.readouterr().err


def test_a_step_is_named_for_a_command_or_a_shell() -> None:
    def step(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, "ci", "step", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
        )

    assert step("a b", "--", "sh", "-c", 'echo "$AGENTMON_STEP"; exit 3').stdout == "a b\n"
    assert step("a b", "--", "sh", "-c", "exit 3").returncode == 3
    assert step("it's").stdout == "export AGENTMON_STEP='it'\"'\"'s'\n"
    for words, said in (
        ((" ",), "cannot name a step"),
        (("a\nb",), "cannot name"),
        (("x", "--", "/no/such"), "/no/such"),
    ):
        done = step(*words)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
