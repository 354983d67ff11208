"""`agentmon run`: one command in a new bottle, its streams and its exit status."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from agentmon import wire
from agentmon.blocking import BlockingChannel
from agentmon.cli.console import complain, example, notice
from agentmon.cli.control import connect, connect_or_start, raised, say_progress
from agentmon.cli.main import EXIT_OWN
from agentmon.cli.pump import Outcome, Pump
from agentmon.errors import AgentmonError, BadInput, DaemonUnreachable, HostLacks
from agentmon.events import now_ns, rfc3339

_ATTEMPTS = 3  # a daemon that was just ending when we connected is replaced by a new one


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog=example(
        "sudo agentmon run --allow api.example.com:443 -- curl https://api.example.com/",
        'sudo agentmon run --provider claude --budget 200000 -- claude -p "fix the tests"',
        "sudo agentmon run --policy ci.yml --json-summary out.json -- make test",
    ),
)
@click.option("--name", metavar="N", help="The bottle's name.  [default: the manifest's, or made up]")
@click.option("--policy", metavar="FILE", help="Manifest file.")
@click.option("--allow", metavar="RULE", multiple=True, help="May be reached. Repeatable.")
@click.option("--provider", metavar="P", help="What `--budget N` counts, and whose client may use its own files.")
@click.option("--agent", metavar="A", help="Agent whose budget governs.")
@click.option("--budget", metavar="TOKENS|P=TOKENS", multiple=True, help="Token budget. Repeatable, one per provider.")
@click.option("--shutdown", type=click.Choice(["cutoff", "freeze", "kill"]), help="What happens when it is spent.")
@click.option("--user", metavar="U", help="Run as this user (root only).  [default: you; agentmon-job for root]")
@click.option("--root", is_flag=True, help="Run as uid 0 of a user namespace.")
@click.option("--observe", is_flag=True, help="Let through and report what no rule allows (root only).")
@click.option("--home", type=click.Choice(["private", "host"]), help="A HOME of its own, or the real one.")
@click.option("--ro", metavar="PATH", multiple=True, help="Show PATH read-only. Repeatable.")
@click.option("--rw", metavar="PATH", multiple=True, help="Show PATH writable. Repeatable.")
@click.option("--env", metavar="K=V", multiple=True, help="Set a variable. Repeatable.")
@click.option("--json-summary", metavar="FILE", type=click.Path(path_type=Path), help="Write how it went to FILE.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD [ARG]...")
def run(command: tuple[str, ...], json_summary: Path | None, **options: Any) -> int:
    """Run CMD in a new bottle: it reaches what its policy allows and stops when its budget is spent.

    Streams, signals, window size, working directory, environment and exit status are passed through. The exit status
    is CMD's own; 126 or 127 if it cannot be executed, 125 for every failure of agentmon itself.
    """
    started = now_ns()
    name = options["name"] or ("" if options["policy"] else _made_up_name(command[0]))
    if json_summary is not None:
        _check_writable(json_summary)
    try:
        outcome, run_id = _run(_arguments(command, name, options))
    except AgentmonError as e:
        _summarise(json_summary, name, started, EXIT_OWN, {"error": {"class": e.kind, "message": e.message}})
        raise
    except KeyboardInterrupt:  # before the command ran: the daemon sees us go and takes the bottle down
        _summarise(json_summary, name, started, 130, {"error": {"class": "Interrupted", "message": "interrupted"}})
        raise
    summary = dict(outcome.summary)
    if json_summary is not None:
        summary |= _booked(run_id, str(summary.get("bottle") or name), started, summary)
    return finish(outcome, summary, json_summary, name, started)


def _booked(run_id: str, bottle: str, started: int, summary: dict[str, Any]) -> dict[str, Any]:
    """`usage` and `cut` of the summary with what the ledger says, where this user may read it: the daemon knows the
    budgets and whether the bottle is cut at its end, the ledger every row and whether it ever was."""
    from agentmon.cli.books import run_summary

    try:
        rows, cut = run_summary(run_id, bottle, started)
    except AgentmonError:
        return {}
    told = summary.get("usage") or {}
    usage = {provider: {**told.get(provider, {}), **rows.get(provider, {})} for provider in told | rows}
    both = {**(cut or {}), **(summary.get("cut") or {})}
    return {"usage": usage, "cut": both or None}


def finish(outcome: Outcome, summary: dict[str, Any], json_summary: Path | None, name: str, started: int) -> int:
    """Say and write how it ended; the exit status."""
    status = EXIT_OWN if "error" in summary else outcome.exit  # the daemon ended it: the signal was agentmon's own
    if outcome.error and "error" not in summary:
        summary["error"] = {"class": "AgentmonError", "message": outcome.error}
    error = summary.get("error")
    if error:
        complain(str(error["message"]), str(error.get("hint", "")))
    elif os.isatty(2) and (count := sum((summary.get("refused") or {}).values())):
        times = "once" if count == 1 else f"{count} times"
        notice(f"refused {times}, see: agentmon events --bottle {summary.get('bottle') or name} --verdict refused")
    _summarise(json_summary, name, started, status, summary)
    return status


def _made_up_name(command: str) -> str:
    stem = "".join(c for c in Path(command).name.lower() if c.isascii() and c.isalnum())
    return f"{stem or 'job'}-{os.urandom(3).hex()}"


def _arguments(command: Sequence[str], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The `run` request. Paths become absolute here: the daemon's working directory is not the caller's."""
    if options["root"]:
        raise HostLacks("--root is not there yet", "leave it out: the command runs as an ordinary user")
    terminal = os.isatty(0) and os.isatty(1)
    size = os.get_terminal_size(1) if terminal else os.terminal_size((80, 24))
    args: dict[str, Any] = {
        "argv": list(command), "env": _environment(options["env"]), "cwd": _working_directory(), "name": name,
        "allow": list(options["allow"]), "budgets": list(options["budget"]), "observe": options["observe"],
        "root": False, "ro": [_absolute(p) for p in options["ro"]], "rw": [_absolute(p) for p in options["rw"]],
        "tty": terminal, "rows": size.lines or 24, "cols": size.columns or 80,
    }  # fmt: skip
    if options["policy"]:
        args |= manifest_arguments(options["policy"])
    args |= {key: options[key] for key in ("provider", "agent", "shutdown", "user", "home") if options[key]}
    if (run_as := _sudo_user()) is not None:
        args["run_as"] = run_as
    _check_text(args)
    return args


def manifest_arguments(name: str) -> dict[str, Any]:
    """The manifest's path, and its text and its parents': read with the caller's rights, not the daemon's."""
    from agentmon.policy import manifest, settings

    bottles_dir = settings.load().bottles_dir
    path = manifest.find(name, bottles_dir)
    return {"policy_file": str(path.absolute()), "manifests": manifest.gather(path, bottles_dir)}


def _environment(settings: Sequence[str]) -> dict[str, str]:
    env = {}
    for name, value in os.environ.items():
        if _is_text(name) and _is_text(value):
            env[name] = value
        else:
            notice(f"the variable {name!r} is not UTF-8, ignoring")
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise BadInput(f'--env "{text}" sets nothing', "write --env NAME=VALUE")
        env[name] = value
    return env


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise BadInput("the working directory has been removed", "cd to one that exists") from None


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _sudo_user() -> list[int] | None:
    """Who called sudo: root's word for it, so only root's is believed."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    return [int(uid), int(gid)] if os.geteuid() == 0 and uid.isdecimal() and gid.isdecimal() else None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_text(args: dict[str, Any]) -> None:
    for key in ("argv", "ro", "rw", "allow"):
        for word in args[key]:
            if not _is_text(word):
                raise BadInput(f"{word!r} is not UTF-8", "arguments of a bottle's command are UTF-8")
    if not _is_text(args["cwd"]):
        raise BadInput("the name of the working directory is not UTF-8")


def _check_writable(path: Path) -> None:
    try:
        path.open("a").close()
    except OSError as e:
        raise BadInput(f"--json-summary {path}: {e.strerror}", "name a file that can be written") from None


def _summarise(path: Path | None, name: str, started: int, status: int, summary: dict[str, Any]) -> None:
    """`--json-summary`, with every key of the contract whatever happened."""
    if path is None:
        return
    error = summary.get("error")
    value = {
        "bottle": summary.get("bottle") or name, "exit": status,
        "error": {"class": error["class"], "message": error["message"]} if error else None,
        "started": rfc3339(started), "ended": rfc3339(now_ns()),
        "refused": summary.get("refused") or {}, "usage": summary.get("usage") or {}, "cut": summary.get("cut"),
    }  # fmt: skip
    try:
        path.write_text(json.dumps(value, indent=2) + "\n")
    except OSError as e:
        complain(f"--json-summary {path}: {e.strerror}, ignoring")


def _run(args: dict[str, Any]) -> tuple[Outcome, str]:
    """How it went, and the run's id."""
    for attempt in range(_ATTEMPTS):
        channel = connect_or_start()
        request = wire.Request(channel.next_id(), "run", args)
        try:
            first = _first_item(channel, request)
        except (ConnectionError, wire.WireError) as e:
            channel.close()
            if attempt == _ATTEMPTS - 1:
                raise DaemonUnreachable(f"the daemon went away while it started the bottle: {e}", "try again") from None
            time.sleep(0.05)
            continue
        except KeyboardInterrupt:
            channel.close()
            raise
        slot, fds, run_id = int(first["slot"]), channel.fds, str(first.get("run", ""))
        channel.fds = []
        return Pump(channel, request.id, slot, fds, partial(reattach, slot, run_id)).run(), run_id
    raise AssertionError


def _first_item(channel: BlockingChannel, request: wire.Request) -> dict[str, Any]:
    """The item that says the bottle is open; its descriptors are in channel.fds.

    :raises AgentmonError: the bottle was not opened.
    """
    channel.send(request)
    while True:
        message = channel.recv()
        if getattr(message, "id", None) != request.id:
            continue
        if isinstance(message, wire.Reply):
            channel.close()
            if message.error:
                raise raised(message.error)
            raise AgentmonError("the bottle ended before its command ran", "agentmon events --kind daemon")
        value = getattr(message, "value", None)
        if not say_progress(value) and isinstance(value, dict) and "slot" in value:
            return value


def reattach(slot: int, run_id: str) -> BlockingChannel | None:
    """A channel on which a new daemon tells the end of this bottle; its request has the id 1. None: not (yet)."""
    channel = connect()
    request = wire.Request(channel.next_id(), "reattach", {"slot": slot, "run": run_id})
    channel.send(request)
    return channel
