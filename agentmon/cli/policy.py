"""`agentmon policy check|explain|diff|learn`: files are read here, without a daemon; it knows running bottles."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentmon.cli.completing import bottles
from agentmon.cli.console import emit, emit_json, example, notice
from agentmon.cli.control import ask
from agentmon.cli.when import since_ns
from agentmon.errors import BadInput

if TYPE_CHECKING:
    from agentmon.policy.effective import EffectivePolicy
    from agentmon.policy.settings import Settings
    from agentmon.providers.declaration import Provider

_JSON = click.option("--json", "as_json", is_flag=True, help="One object instead of text.")
_SETTINGS = click.option(
    "--settings", "settings_file", type=click.Path(path_type=Path), help="Settings file.  [default: the host's]"
)


@click.group(epilog=example("agentmon policy check ci.yml"))
def policy() -> None:
    """Check, explain, compare and learn policies."""


@policy.command(epilog=example("agentmon policy check ci.yml", "agentmon policy check ci.yml --json"))
@click.argument("file", type=click.Path(path_type=Path))
@_SETTINGS
@_JSON
def check(file: Path, settings_file: Path | None, as_json: bool) -> None:
    """Check the manifest FILE and all that it extends, as `run` would. Nothing is applied."""
    from agentmon.policy import explain as explained
    from agentmon.policy.explain_text import check_text

    settings, providers = _host(settings_file)
    _show(explained.check(file, settings, providers), check_text, as_json)


@policy.command(
    epilog=example(
        "agentmon policy explain build-17",
        "agentmon policy explain ci.yml api.example.com:443",
        "agentmon policy explain ci.yml https://api.example.com/v1/messages",
    )
)
@click.argument("bottle", shell_complete=bottles)
@click.argument("dest", required=False)
@_SETTINGS
@_JSON
def explain(bottle: str, dest: str | None, settings_file: Path | None, as_json: bool) -> None:
    """Say of each rule of BOTTLE (a running bottle, or a manifest file) how deep it is checked and what it does not
    check; with DEST, what would happen to it and which layer decides."""
    from agentmon.policy import explain as explained
    from agentmon.policy.explain_text import explain_text

    if _is_file(bottle):
        providers = _host(settings_file)[1]
        data: dict[str, Any] = explained.explain(_effective(Path(bottle), settings_file), dest, providers)
    else:
        data = ask("explain", bottle=bottle, dest=dest)
        if data.get("stale"):
            notice(f"{data['stale']}: what was in force stays, and is shown")
    _show(data, explain_text, as_json)


@policy.command(epilog=example("agentmon policy diff old.yml new.yml", "agentmon policy diff build-17 ci.yml"))
@click.argument("a")
@click.argument("b")
@_SETTINGS
@_JSON
def diff(a: str, b: str, settings_file: Path | None, as_json: bool) -> int:
    """Show what changes from A to B (manifest files, or running bottles): what is newly reachable, what no longer, what
    is checked less deeply, budgets, limits, routes, and whether open connections would end. Rules are compared by what
    they allow. The exit status is 0 where nothing differs, and 1 where something does."""
    from agentmon.policy import diff as compared
    from agentmon.render.diff import diff_text

    named = next((name for name in (a, b) if not _is_file(name)), "")
    before, after = (_either(name, settings_file, named) for name in (a, b))
    data = compared.diff(before, after)
    _show(data, diff_text, as_json)
    return 0 if data["same"] else 1


def _either(name: str, settings_file: Path | None, bottle: str) -> EffectivePolicy:
    """A file's policy, for a bottle of that name (a budget is compared by its scope), or a running bottle's own."""
    if _is_file(name):
        return _effective(Path(name), settings_file, bottle or "bottle")
    from agentmon.policy.plain import from_plain

    return from_plain(ask("explain", bottle=name, whole=True))


@policy.command(
    epilog=example(
        "agentmon policy learn build --output build.yml",
        "agentmon policy learn build --policy ci.yml --since 2h",
    )
)
@click.argument("bottle", shell_complete=bottles)
@click.option(
    "--since", metavar="TIME", help="Only from what happened since: 15m, 2h, 7d ago, or 2026-01-31T12:00:00Z."
)
@click.option("--policy", "base", metavar="FILE", help="The manifest that BOTTLE ran with: the new one extends it.")
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    type=click.Choice(["observed", "refused", "allowed"]),
    help="Learn from events with this verdict. Repeatable.  [default: observed, refused]",
)
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the manifest to a new FILE.")
@_SETTINGS
@_JSON
def learn(
    bottle: str,
    since: str | None,
    base: str | None,
    verdicts: tuple[str, ...],
    output: Path | None,
    settings_file: Path | None,
    as_json: bool,
) -> None:
    """Propose the smallest manifest that would have allowed what BOTTLE was seen to do, with the evidence of each rule.
    BOTTLE may have ended. Read the result before you use it."""
    from agentmon.cli.learning import learned
    from agentmon.policy.learn import VERDICTS

    ran_with = (Path(base), _effective(Path(base), settings_file)) if base else None
    asked = frozenset(verdicts) or VERDICTS
    data = learned(bottle, since_ns(since, time.time_ns()), asked, ran_with, _host(settings_file)[1])
    if output is not None:
        _write_new(output, data["manifest"])
    if as_json:
        emit_json(data)
    elif output is None:
        emit(data["manifest"])


def _write_new(path: Path, text: str) -> None:
    """:raises BadInput: it is there already, or cannot be written."""
    try:
        with path.open("x") as file:
            file.write(text)
    except OSError as e:
        raise BadInput(f"--output {path}: {e.strerror}", "name a new file, where you may write") from None


def _show(data: dict[str, Any], text: Any, as_json: bool) -> None:
    if as_json:
        emit_json(data)
    else:
        emit(text(data))


def _is_file(name: str) -> bool:
    return "/" in name or name.endswith((".yml", ".yaml"))


def _host(settings_file: Path | None) -> tuple[Settings, dict[str, Provider]]:
    from agentmon.policy import settings
    from agentmon.providers import registry

    loaded = settings.load(settings_file)
    return loaded, registry.load(loaded.providers)


def _effective(file: Path, settings_file: Path | None, bottle: str = "") -> EffectivePolicy:
    from agentmon.policy.manifest import load_chain
    from agentmon.policy.merge import effective
    from agentmon.policy.options import Options

    settings, providers = _host(settings_file)
    chain = load_chain(file, settings.bottles_dir)
    return effective(settings, chain, Options(name=bottle or chain[0].bottle_name or "bottle"), providers=providers)
