"""The command line as people meet it: every help has an example that parses, the reference is what the commands say,
no bad input gives a traceback, and `--help` reads next to nothing."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.cli import completing
from agentmon.cli.main import agentmon, main
from agentmon.closest import closest
from scripts import cli_docs

ROOT = Path(__file__).parents[2]
PAGES = list(cli_docs.pages())
COMMANDS = [page.words for page in PAGES]
HEAVY = (
    "mitmproxy",
    "pyroute2",
    "bcc",
    "nftables",
    "apsw",
    "msgspec",
    "yaml",
    "textual",
    "asyncio",
    "traceback",
    "ssl",
)


def command_of(words: tuple[str, ...]) -> tuple[click.Command, click.Context]:
    """The command that these words name, and the context it is parsed in."""
    command: click.Command = agentmon
    context = click.Context(agentmon, info_name="agentmon")
    for word in words[1:]:
        assert isinstance(command, click.Group)
        inner = command.get_command(context, word)
        assert inner is not None, words
        command, context = inner, click.Context(inner, info_name=word, parent=context)
    return command, context


def parse(line: str) -> None:
    """Up to the first command of a pipeline, with the real parsers, nothing invoked."""
    words = shlex.split(line, comments=True)
    words = words[words.index("agentmon") :]
    words = words[: next((i for i, word in enumerate(words) if word in {"|", ">", ">>", "&&", ";"}), len(words))]
    command, context, rest = agentmon, click.Context(agentmon, info_name="agentmon"), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        inner = command.get_command(context, rest[0])
        assert inner is not None, line
        command, rest = inner, rest[1:]
    if not isinstance(command, click.Group):
        command.make_context("x", list(rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_help_says_what_it_does_and_ends_with_an_example_that_parses(page: cli_docs.Page) -> None:
    assert page.text and page.text[0].endswith((".", ":")), page.text
    assert page.examples, f"{page.name} has no example"
    for line in page.examples:
        if "agentmon" in line:
            parse(line)
    for option, text in page.options:
        assert text, f"{page.name} {option} is not explained"


def test_the_reference_and_the_manual_are_what_the_commands_say() -> None:
    assert not cli_docs.differing(), "run: make docs"


def test_every_command_line_in_the_documentation_parses() -> None:
    lines = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]:
        if page.name == "CHANGELOG.md" or "adr" in page.parts:
            continue
        for line in page.read_text().splitlines():
            found = re.match(r"^(?: {4}|\$ |)\s*((?:sudo )?(?:\.venv/bin/)?agentmon [a-z].*)$", line)
            if line.startswith("    ") and found and "  " not in found[1].strip() and "…" not in line:
                lines.append((page, found[1].replace(".venv/bin/", "")))
    assert len(lines) > 20
    for page, line in lines:
        if re.search(r"[\[\]|(]|\bBOTTLE\b|\bFILE\b", line):
            continue  # a synopsis
        try:
            parse(line)
        except (click.ClickException, AssertionError) as error:
            pytest.fail(f"{page.relative_to(ROOT)}: {line}: {error}")


words_that_hurt = st.one_of(
    st.sampled_from(["", "-", "--", "---", "-h", "--help=1", "é", "🦀" * 50, "a" * 5000, "%s", "../..", "--json=1",
                     "-1", "9" * 40, "1e9", "NaN", "=", "a=b=c", "[::1]:1", "@", "\n", "$(x)", "--bottle"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(COMMANDS), st.lists(words_that_hurt, max_size=5))
def test_bad_words_are_usage_errors_never_more(words: tuple[str, ...], args: list[str]) -> None:
    """Parsed by the real parsers; what parses is not invoked."""
    command, parent = command_of(words)
    with contextlib.suppress(click.exceptions.Exit, click.ClickException, click.Abort):
        command.make_context(words[-1], list(args), parent=parent.parent)


@pytest.mark.parametrize(
    ("args", "status", "said", "hint"),
    [
        (["evnts"], 2, "there is no command 'evnts'", "did you mean: agentmon events"),
        (["xyzzy"], 2, "there is no command 'xyzzy'", "agentmon --help lists them"),
        (["policy", "chek"], 2, "Did you mean 'check'", "agentmon policy --help"),
        (["events", "--kin", "dns"], 2, "No such option '--kin'", "agentmon events --help"),
        (["events", "--kind", "nothing"], 2, "'nothing' is not one of", "agentmon events --help"),
        (["usage", "--since", "yesterday"], 2, "yesterday", ""),
        (["policy", "check", "/nonexistent.yml"], 2, "/nonexistent.yml", ""),
        (["run", "--allow"], 125, "requires an argument", "--help"),
        (["run", "--json-summary", "/nonexistent/x", "--", "true"], 125, "/nonexistent/x", ""),
        (["cut"], 2, "name one bottle, or say --all", "agentmon ps"),
    ],
)
def test_what_is_wrong_and_what_to_do(
    capsys: pytest.CaptureFixture[str], args: list[str], status: int, said: str, hint: str
) -> None:
    assert main(args) == status
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and said in err and hint in err and "Traceback" not in err
    assert "hint: " in err


def test_help_reads_next_to_nothing() -> None:
    code = "import sys; from agentmon.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & set(HEAVY), loaded & set(HEAVY)
    assert "Commands:" in done.stdout


@pytest.mark.parametrize("args", [["--help"], ["events", "--help"], ["completion", "bash"]])
def test_output_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_none(args: list[str]) -> None:
    command = [sys.executable, "-m", "agentmon.cli", *args]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "error: " in done.stderr and "No space left" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr and "failed" not in done.stderr, done.stderr


# ── completion ──


def test_bottles_are_completed_by_name_and_nothing_is_said_without_a_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentmon.cli import control
    from agentmon.errors import DaemonUnreachable

    rows = [{"bottle": name, "phase": "running", "command": ["make", "test"]} for name in ("build-17", "build-9", "ci")]
    monkeypatch.setattr(control, "ask", lambda op: rows)
    context = click.Context(agentmon)
    found = completing.bottles(context, click.Argument(["bottle"]), "build")
    assert [item.value for item in found] == ["build-17", "build-9"] and found[0].help == "running: make test"

    def away(op: str) -> None:
        raise DaemonUnreachable("no agentmon daemon is running")

    monkeypatch.setattr(control, "ask", away)
    assert completing.bottles(context, click.Argument(["bottle"]), "b") == []


SHELLS = {
    "bash": 'source "$1"; COMP_WORDS=(agentmon ev); COMP_CWORD=1; _agentmon_completion agentmon; '
    'echo "${COMPREPLY[@]}"',
    "zsh": 'autoload -U compinit; compinit -D; source "$1"; echo ${(k)functions[_agentmon_completion]:+defined} '
    '${_comps[agentmon]}; env COMP_WORDS="agentmon ev" COMP_CWORD=1 _AGENTMON_COMPLETE=zsh_complete agentmon',
    "fish": 'source $argv[1]; complete -C "agentmon ev"',
}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_in_the_real_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    place = tmp_path / "bin"
    place.mkdir()
    (place / "agentmon").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m agentmon.cli "$@"\n')
    (place / "agentmon").chmod(0o755)
    env = {"PATH": f"{place}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}
    script = tmp_path / "script"
    with script.open("w") as out:
        subprocess.run(["agentmon", "completion", shell], env=env, stdout=out, check=True)
    words = [shell, "-c", SHELLS[shell], *(["x"] if shell != "fish" else []), str(script)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert "events" in done.stdout, done.stderr + done.stdout


def test_the_closest_word() -> None:
    assert closest("Evnts", ["events", "ps"]) == "events"
    assert closest("zzz", ["events", "ps"]) == ""
