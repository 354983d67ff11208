"""The command line without a daemon: help, usage errors, exit statuses, messages; nothing here needs root."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from agentmon.cli import main as cli
from agentmon.cli import operator
from agentmon.cli.when import since_ns
from agentmon.errors import BadInput
from agentmon.events import Event
from agentmon.ledger.events_store import EventStore
from agentmon.ledger.store import Store

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [name for name in cli.agentmon.list_commands(click.Context(cli.agentmon)) if name != "demo"]


def walk() -> list[list[str]]:
    """Every command and subcommand."""
    found: list[list[str]] = [[]]
    for name in COMMANDS:
        command = cli.agentmon.get_command(click.Context(cli.agentmon), name)
        assert command is not None
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, sub] for sub in command.list_commands(click.Context(command))]
    return found


def agentmon(tmp_path: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """In a private root: no daemon of this host is asked, and none is started."""
    environment = {**os.environ, "AGENTMON_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-m", "agentmon.cli", *args], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("path", walk(), ids=" ".join)
def test_every_help_ends_with_an_example_that_is_a_command(path: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*path, "--help"]) == 0
    text = capsys.readouterr().out
    _, found, examples = text.rpartition("Example:\n")
    assert found, "no example"
    for line in filter(None, map(str.strip, examples.splitlines())):
        words = shlex.split(line)
        words = words[words.index("agentmon") :]  # behind sudo and its options
        assert (words[0] == "agentmon" and words[1 : 1 + len(path)] == path) or not path
        _parses(words[1 : words.index(">")] if ">" in words else words[1:])


def _parses(words: list[str]) -> None:
    """The example's options and arguments exist: click takes them as far as calling the command."""
    context = cli.agentmon.make_context("agentmon", words[:1])
    command = cli.agentmon.get_command(context, words[0])
    assert command is not None
    rest = words[1:]
    while isinstance(command, click.Group):
        command = command.get_command(context, rest.pop(0))
        assert command is not None
    command.make_context(words[0], rest, parent=context)


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from agentmon.cli.main import main; main(['--help']);"
        "print(*sorted(m for m in sys.modules if 'agentmon' in m))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.splitlines()[-1].split() == [
        "agentmon",
        "agentmon.cli",
        "agentmon.cli.console",
        "agentmon.cli.main",
        "agentmon.errors",
    ]


@pytest.mark.parametrize(
    ("args", "status", "error", "hint"),
    [
        (["nosuch"], 2, "there is no command 'nosuch'", "agentmon --help"),
        (["ps", "--wrong"], 2, "No such option", "agentmon ps --help"),
        (["events", "--kind", "x"], 2, "Invalid value for '--kind'", "agentmon events --help"),
        (["events", "--since", "soon"], 2, '--since "soon" is no time', "write 15m"),
        (["cut"], 2, "name one bottle, or say --all", "agentmon cut --all"),
        (["kill", "b", "--all"], 2, "name one bottle", "agentmon kill --all"),
        (["budget", "set", "b", "claude", "0"], 2, "Invalid value for 'TOKENS'", "agentmon budget set --help"),
        (["policy", "check", "/nosuch.yml"], 2, "/nosuch.yml", "path"),
        (["ps"], 5, "no agentmon daemon is running", "agentmon daemon"),
        (["usage"], 1, "ledger.db", ""),
        (["events"], 1, "events.db", "agentmon daemon"),
        (["events", "-f"], 5, "no agentmon daemon is running", "agentmon daemon"),
        (["run"], 125, "Missing argument", "agentmon run --help"),
        (["run", "--wrong", "--", "true"], 125, "No such option", "agentmon run --help"),
        (["run", "--root", "--", "true"], 125, "--root is not there yet", "leave it out"),
        (["run", "--env", "novalue", "--", "true"], 125, '--env "novalue" sets nothing', "NAME=VALUE"),
        (["run", "--policy", "/nosuch.yml", "--", "true"], 125, "/nosuch.yml", ""),
        (["run", "--json-summary", "/nosuch/dir/x", "--", "true"], 125, "--json-summary /nosuch/dir/x: No such", ""),
        (["run", "--", "a\udcffb"], 125, "is not UTF-8", ""),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else None,
)
def test_failures_say_what_and_what_to_do(tmp_path: Path, args: list[str], status: int, error: str, hint: str) -> None:
    done = agentmon(tmp_path, *args)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and error in done.stderr
    assert "Traceback" not in done.stderr
    if hint:
        assert "hint: " in done.stderr and hint in done.stderr


def test_a_bug_is_one_sentence_and_a_traceback_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli._COMMANDS, "ps", ("nosuchmodule", "x", "x"))
    assert cli.main(["ps"]) == 1
    quiet = capsys.readouterr().err
    assert "error: agentmon itself failed: ModuleNotFoundError" in quiet and "Traceback" not in quiet
    monkeypatch.setenv("AGENTMON_DEBUG", "1")
    assert cli.main(["ps"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_run_failing_writes_its_summary_with_every_key(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    done = agentmon(tmp_path, "run", "--name", "n", "--root", "--json-summary", str(file), "--", "true")
    assert done.returncode == 125
    value = json.loads(file.read_text())
    assert list(value) == ["bottle", "exit", "error", "started", "ended", "refused", "usage", "cut"]
    assert value["error"] == {"class": "HostLacks", "message": "--root is not there yet"} and value["bottle"] == "n"


def test_a_summary_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    done = agentmon(tmp_path, "run", "--json-summary", "/nosuch/dir/x", "--root", "--", "true")
    assert done.returncode == 125 and done.stderr.count("error:") == 1 and done.stderr.count("--json-summary") == 1


@pytest.mark.parametrize("path", [[], ["policy"], ["budget"], ["ledger"]], ids=" ".join)
def test_a_group_without_a_command_shows_its_help(tmp_path: Path, path: list[str]) -> None:
    done = agentmon(tmp_path, *path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(" ".join(["Usage: agentmon", *path])) and "error:" not in done.stderr
    assert "Example:" in done.stderr


def test_a_backup_is_made_or_says_which_file_is_wrong(tmp_path: Path) -> None:
    directory = tmp_path / "var/lib/agentmon/ledger"
    directory.mkdir(parents=True)
    store = Store(str(directory / "ledger.db"))
    store.open()
    store.close()
    good = tmp_path / "copy.db"
    done = agentmon(tmp_path, "ledger", "backup", str(good))
    assert done.returncode == 0 and str(good) in done.stdout and good.stat().st_size > 0
    text = tmp_path / "text"
    text.write_text("this is no database, and long enough to be looked at as one. " * 100)
    for bad in (tmp_path, tmp_path / "no/such/dir/x", Path("/dev/null"), text):
        done = agentmon(tmp_path, "ledger", "backup", str(bad))
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: {bad}: ") and "hint: " in done.stderr
    assert text.read_text().startswith("this is no database")


def test_version(tmp_path: Path) -> None:
    done = agentmon(tmp_path, "--version")
    assert done.returncode == 0 and done.stdout.startswith("agentmon, version ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_ships(tmp_path: Path, shell: str) -> None:
    assert "_AGENTMON_COMPLETE" in agentmon(tmp_path, "completion", shell).stdout


def test_output_to_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    env = {**os.environ, "AGENTMON_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "agentmon.cli", "policy", "explain", "x.yml"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=env,
        cwd=_manifest(tmp_path),
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""


def _manifest(tmp_path: Path) -> Path:
    (tmp_path / "x.yml").write_text('allow: ["a.example:443"]\n')
    return tmp_path


def test_policies_are_checked_explained_and_compared_without_a_daemon(tmp_path: Path) -> None:
    file = _manifest(tmp_path) / "x.yml"
    assert agentmon(tmp_path, "policy", "check", str(file)).returncode == 0
    whole = json.loads(agentmon(tmp_path, "policy", "explain", str(file), "--json").stdout)
    assert [rule["rule"] for rule in whole["rules"]] == ["a.example:443"]
    refused = agentmon(tmp_path, "policy", "explain", str(file), "b.example:443").stdout
    assert "refused" in refused and "agentmon allow" in refused
    other = tmp_path / "y.yml"
    other.write_text('allow: ["b.example:443"]\n')
    assert json.loads(agentmon(tmp_path, "policy", "diff", str(file), str(other), "--json").stdout)["added"] == [
        "b.example:443"
    ]


def test_events_are_read_without_a_daemon(tmp_path: Path) -> None:
    directory = tmp_path / "var/lib/agentmon/events"
    directory.mkdir(parents=True)
    store = EventStore(str(directory / "events.db"))
    told = [Event("dns", "refused", name, "default", "resolver", host="x.example", ts_ns=10**18) for name in "ab"]
    store.append(told)
    store.close()
    done = agentmon(tmp_path, "events", "--bottle", "a", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["bottle"] for line in done.stdout.splitlines()] == ["a"]
    assert agentmon(tmp_path, "events", "--kind", "connect").stdout == ""
    assert "asked for x.example: refused by the resolver" in agentmon(tmp_path, "events").stdout


REFUSED = {"bottle": "b", "message": "its budget is spent", "hint": "agentmon resume b --budget 400"}


@pytest.mark.parametrize(
    ("bottle", "value", "status", "out", "err"),
    [
        (None, {"bottles": [], "refused": []}, 0, "no bottle is running\n", ""),
        (None, {"bottles": ["a", "c"]}, 0, "a: resumed\nc: resumed\n", ""),
        (
            None,
            {"bottles": ["a"], "refused": [REFUSED]},
            3,
            "a: resumed\n",
            "error: b: its budget is spent\nhint: agentmon resume b --budget 400\n",
        ),
        (None, {"bottles": [], "refused": [REFUSED | {"hint": ""}]}, 3, "", "error: b: its budget is spent\n"),
        ("a", {"bottles": ["a"]}, 0, "a: resumed\n", ""),
        ("a", {"bottles": ["a"], "result": "thawed"}, 0, "a: resumed (thawed)\n", ""),
        ("a", None, 0, "a: resumed\n", ""),
    ],
)
def test_what_became_of_each_bottle_is_said(
    bottle: str | None, value: object, status: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert operator.report("resume", bottle, value, False) == status
    said = capsys.readouterr()
    assert (said.out, said.err) == (out, err)
    assert operator.report("resume", bottle, value, True) == status
    assert json.loads(capsys.readouterr().out) == (value or {"bottle": "a", "result": None})


HOUR_NS = 3_600_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 0),
        ("", 0),
        ("1h", 9 * HOUR_NS),
        ("90s", 10 * HOUR_NS - 90_000_000_000),
        ("2m", 10 * HOUR_NS - 120_000_000_000),
        ("1970-01-01T05:00:00Z", 5 * HOUR_NS),
        ("1970-01-01T05:00:00+01:00", 4 * HOUR_NS),
    ],
)
def test_since(text: str | None, expected: int) -> None:
    assert since_ns(text, 10 * HOUR_NS) == expected


@pytest.mark.parametrize("text", ["soon", "1y", "-1h", "1.5h", "2026-13-01"])
def test_since_that_is_no_time(text: str) -> None:
    with pytest.raises(BadInput, match="is no time"):
        since_ns(text, 0)
