"""`agentmon ci`: a CI runner, or the steps of a job, observed or held, and reported by step."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from agentmon.cli.console import emit, emit_json, example, notice
from agentmon.errors import AgentmonError, BadInput, HostLacks, Refused

_NAME = click.option(
    "--name", metavar="N", default="ci", show_default=True, help="The session's name, and its bottle's."
)
_BASELINE = click.option(
    "--baseline",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What is expected: a manifest with `allow:` alone.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One object instead of text.")


@click.group(
    epilog=example("sudo agentmon ci start", "sudo -E agentmon ci exec -- make test", "sudo agentmon ci report")
)
def ci() -> None:
    """Observe or hold a CI job: start before it, report after it, fail when it reached something new."""


@ci.command(
    epilog=example(
        "sudo agentmon ci start --baseline ci/egress.yml",
        "sudo agentmon ci start --enforce --baseline ci/egress.yml",
        "sudo agentmon ci start --pid 4711 --policy ci.yml --budget claude=200000",
    )
)
@_NAME
@click.option(
    "--enforce", is_flag=True, help="Refuse what neither the baseline nor the policy allows.  [default: observe]"
)
@_BASELINE
@click.option("--pid", metavar="P", help="Hold the runner with this process, whole and as it is.")
@click.option("--cgroup", metavar="PATH", help="The same, by its cgroup v2 directory.")
@click.option("--netns", metavar="NAME|PATH", help="The same, by its network namespace.")
@click.option("--container", metavar="NAME|ID", help="The same, by its container.")
@click.option("--policy", metavar="FILE", help="Manifest file: providers, routes, budgets, denials.")
@click.option("--allow", metavar="RULE", multiple=True, help="May be reached, and is not told. Repeatable.")
@click.option("--provider", metavar="P", help="What `--budget N` counts.")
@click.option("--budget", metavar="TOKENS|P=TOKENS", multiple=True, help="Token budget. Repeatable, one per provider.")
@_JSON
def start(name: str, enforce: bool, baseline: Path | None, as_json: bool, **options: Any) -> None:
    """Start observing. A runner with a network namespace of its own is held whole and unchanged (--pid, --cgroup,
    --netns, --container). Without these a place is made that steps enter with `agentmon ci exec`. Root only."""
    from agentmon.cli.ci_session import begin

    if os.geteuid() != 0:
        raise Refused("only root can hold a runner", "use sudo")
    found = begin(name, enforce, baseline, options)
    if as_json:
        emit_json(found)
        return
    how = "observed" if not enforce else "held to its policy"
    emit(f"{name}: {found['what']} is {how} by {', '.join(found['layers'])}")
    for text in found["notes"]:
        notice(text)
    if found["place"]:
        words = "" if name == "ci" else f"--name {name} "
        notice(f"steps enter with: sudo -E agentmon ci exec {words}-- COMMAND")


@ci.command(
    "exec",
    context_settings={"allow_interspersed_args": False},
    epilog=example("sudo -E agentmon ci exec -- make test", "sudo -E agentmon ci exec --step lint -- bash -e lint.sh"),
)
@_NAME
@click.option("--step", metavar="NAME", help="Name of the step.  [default: the CI system's variable]")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD [ARG]...")
def enter(name: str, step: str | None, command: tuple[str, ...]) -> None:
    """Run CMD in the place that `ci start` made, as the user who called sudo. Exit status, streams and environment are
    CMD's own; 126 or 127 if it cannot be executed, 125 for failures of entering."""
    from agentmon.ci import place, session, watch
    from agentmon.ci.steps import step_of

    if os.geteuid() != 0:
        raise Refused("only root can enter the place of a CI session", "sudo -E agentmon ci exec -- COMMAND")
    found = session.load(name)
    if found.stopped_ns:
        raise BadInput(f"session {name!r} has been stopped", "sudo agentmon ci start")
    if found.holder is None:
        raise BadInput(f"session {name!r} holds {found.what}: there is no place to enter", "run the command as it is")
    if place.process_of(found.holder.pid) != found.holder:
        raise AgentmonError(f"the place of session {name!r} has gone", "sudo agentmon ci stop; then start again")
    user, environment = _caller()
    path = _path()
    if step:
        environment["AGENTMON_STEP"] = step
    argv = place.argv(found.holder, user, path, command)
    if named := step_of(b"\0".join(os.fsencode(f"{k}={v}") for k, v in environment.items())):
        watch.note_self(session.steps_file(name), named)
    try:
        place.enter(found.cgroup)
        os.execvpe(argv[0], argv, environment | {"PATH": place.PATH})
    except FileNotFoundError as e:
        raise HostLacks(f"{argv[0]} or the session's cgroup is not there: {e}", "apt-get install util-linux") from e
    except OSError as e:
        raise HostLacks(f"the session's cgroup cannot be entered: {e}", "run this as root, on the host") from e


def _caller() -> tuple[tuple[int, int], dict[str, str]]:
    """Who called sudo, else who runs this, and the environment that belongs to it."""
    import pwd

    environment = dict(os.environ)
    uid = environment.get("SUDO_UID", "0")
    try:
        entry = pwd.getpwuid(int(uid))
    except (KeyError, ValueError):
        raise BadInput(f"SUDO_UID={uid!r} names no user of this host", "use sudo, or unset it") from None
    if entry.pw_uid:
        environment |= {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    return (entry.pw_uid, entry.pw_gid), environment


def _path() -> str:
    """The PATH of who called sudo, which gives what it starts one of its own (sudoers(5), secure_path); else ours."""
    pid = os.getppid()
    for _ in range(2):  # sudo may have a process between itself and what it starts (use_pty)
        try:
            place = Path(f"/proc/{pid}")
            if (place / "comm").read_text().strip() != "sudo":
                break
            for part in (place / "environ").read_bytes().split(b"\0"):
                if part.startswith(b"PATH="):
                    return os.fsdecode(part.removeprefix(b"PATH="))
            pid = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return os.environ.get("PATH", os.defpath)


@ci.command(
    context_settings={"allow_interspersed_args": False},
    epilog=example("agentmon ci step lint -- make lint"),
)
@click.argument("step")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD [ARG]...]")
def step(step: str, command: tuple[str, ...]) -> None:
    """Name what runs STEP, where the CI system sets no variable that does: run CMD so, or print what a shell evaluates
    to name all that it starts from then on: eval "$(agentmon ci step NAME)". Inside the job; it needs no rights."""
    if not step.strip() or not step.isprintable():
        raise BadInput(f"{step!r} cannot name a step", "one line of text")
    command = command[1:] if command[:1] == ("--",) else command
    if not command:
        emit(f"export AGENTMON_STEP={shlex.quote(step)}")
        return
    argv: tuple[str, ...] = command
    if os.environ.get("AGENTMON_STEP") != step:  # once more, so that who looks sees the name before the command runs
        argv = (sys.executable, *sys.orig_argv[1:])
    try:
        os.execvpe(argv[0], argv, os.environ | {"AGENTMON_STEP": step})
    except OSError as e:
        raise BadInput(f"{command[0]}: {e.strerror}", "agentmon ci step NAME -- COMMAND") from e


@ci.command(epilog=example("sudo agentmon ci stop"))
@_NAME
@_JSON
def stop(name: str, as_json: bool) -> None:
    """Let go of the runner, or take away the place that steps enter. What was seen stays for `ci report`. Root only."""
    from agentmon.cli.ci_session import finish

    if os.geteuid() != 0:
        raise Refused("only root can let go of a runner", "use sudo")
    found = finish(name)
    for text in found["notes"]:
        notice(text)
    if as_json:
        emit_json(found)
    else:
        emit(f"{name}: {found['what']} is not held any more")


@ci.command(
    epilog=example(
        "sudo agentmon ci report --baseline ci/egress.yml --artefacts out",
        "sudo agentmon ci report --baseline ci/egress.yml --update",
    )
)
@_NAME
@_BASELINE
@click.option("--update", is_flag=True, help="Write what is new into the baseline, and succeed.")
@click.option(
    "--summary", metavar="FILE", type=click.Path(path_type=Path), envvar="GITHUB_STEP_SUMMARY",
    help="Append the Markdown to FILE, not to stdout.  [default: $GITHUB_STEP_SUMMARY]",
)  # fmt: skip
@click.option(
    "--artefacts",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write report.html, report.json, report.md there.",
)
@_JSON
def report(
    name: str, baseline: Path | None, update: bool, summary: Path | None, artefacts: Path | None, as_json: bool
) -> int:
    """Report what the job reached, by step, what it was refused and used. The exit status is 1 where something is not
    in the baseline, cannot be said by a rule, or was lost; 0 where no baseline is given. Before or after `ci stop`."""
    from agentmon.cli import ci_report
    from agentmon.render.ci import as_ci_object
    from agentmon.render.report_markdown import markdown

    if update and baseline is None:
        from agentmon.ci import session

        given = session.load(name).baseline
        if not given:
            raise BadInput("--update needs the file", "--baseline FILE")
        baseline = Path(given)
    if not update and baseline is not None and not baseline.exists():
        raise BadInput(f"--baseline {baseline}: there is no such file", "write a first one with --update")
    found = ci_report.of(name, baseline)
    one, made, compared, label = found
    if artefacts is not None:
        ci_report.artefacts(artefacts, found)
    if summary is not None:
        ci_report.append(summary, markdown(made))
    if as_json:
        emit_json(as_ci_object(made, one, compared, label))
    elif summary is None:
        emit(markdown(made))
    if update and baseline is not None:
        notice(f"{ci_report.update(baseline, compared)} rules added to {baseline}")
        return 0
    if not label or compared.clean:
        return 0
    shown = ", ".join(compared.new[:5]) + ("…" if len(compared.new) > 5 else "")
    raise AgentmonError(
        f"not as {label} expects: {shown or 'see the report'}",
        "read the report; what is right goes into the baseline with: agentmon ci report --update",
    )
