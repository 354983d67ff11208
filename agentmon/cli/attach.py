"""`agentmon attach` and `detach`: supervising what already runs, and letting it go."""

from __future__ import annotations

import os
import re
from typing import Any

import click

from agentmon import paths
from agentmon.cli import containers
from agentmon.cli.completing import bottles
from agentmon.cli.console import emit, emit_json, example, notice
from agentmon.cli.control import ask, connect_or_start
from agentmon.errors import BadInput

_JSON = click.option("--json", "as_json", is_flag=True, help="Data instead of text.")


@click.command(
    epilog=example(
        "sudo agentmon attach --container web --allow api.example.com:443",
        "sudo agentmon attach --pid 4711 --policy ci.yml --budget claude=200000",
    )
)
@click.option("--pid", metavar="P", help="A process; everything in its network namespace is held.")
@click.option("--netns", metavar="NAME|PATH", help="A network namespace, as ip netns lists it, or a path.")
@click.option("--cgroup", metavar="PATH", help="A cgroup v2 directory.")
@click.option("--container", metavar="NAME|ID", help="A container of podman or Docker.")
@click.option("--name", metavar="N", help="The bottle's name.  [default: the manifest's, or the container's]")
@click.option("--policy", metavar="FILE", help="Manifest file.")
@click.option("--allow", metavar="RULE", multiple=True, help="May be reached. Repeatable.")
@click.option("--observe", is_flag=True, help="Let through and report what no rule allows.")
@click.option("--provider", metavar="P", help="What `--budget N` counts.")
@click.option("--agent", metavar="A", help="Agent whose budget governs.")
@click.option("--budget", metavar="TOKENS|P=TOKENS", multiple=True, help="Token budget. Repeatable, one per provider.")
@click.option("--shutdown", type=click.Choice(["cutoff", "freeze", "kill"]), help="What happens when it is spent.")
@_JSON
def attach(as_json: bool, container: str | None, **options: Any) -> int:
    """Hold what already runs to a policy: a container, or the processes of a network namespace.

    Its own ways out are shut and it gets one of agentmon's; connections that are open end. Root only.
    """
    args = _selected(container, options)
    connect_or_start().close()
    value = ask("attach", **args)
    trust = paths.TRUST / "bundle.pem"
    if as_json:
        emit_json({**value, "trust": str(trust)})
        return 0
    ended = f"; {value['ended']} older connections ended" if value["ended"] else ""
    emit(f"{value['bottle']}: attached to {value['attached']}, held by {', '.join(value['layers'])}{ended}")
    for text in value["notes"]:
        notice(text)
    notice(f"inspected hosts answer with agentmon's certificate: mount {trust} over its CA bundle, or they fail there")
    return 0


def _selected(container: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The request's arguments. :raises BadInput: none or several of the four that say what."""
    given = [name for name in ("pid", "netns", "cgroup") if options[name]] + (["container"] if container else [])
    if len(given) != 1:
        said = " and ".join(f"--{name}" for name in given) or "nothing"
        raise BadInput(
            f"one thing is attached at a time, and {said} was given", "one of --pid, --netns, --cgroup, --container"
        )
    args = {key: options[key] for key in ("pid", "netns", "cgroup", "provider", "agent", "shutdown", "observe")}
    args |= {"allow": list(options["allow"]), "budgets": list(options["budget"]), "name": options["name"]}
    if options["cgroup"]:
        args["cgroup"] = os.path.abspath(options["cgroup"])
    if container:
        args |= {"pid": str(containers.pid_of(container)), "what": f"container {container}"}
    if options["policy"]:
        from agentmon.cli.run import manifest_arguments

        args |= manifest_arguments(options["policy"])
    elif not args["name"]:
        args["name"] = _made_up(str(container or options[given[0]]), given[0])
    return {key: value for key, value in args.items() if value}


def _made_up(word: str, kind: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", word.lower().rstrip("/").rpartition("/")[2]).strip("-")[:32]
    return f"pid-{plain}" if kind == "pid" else plain or kind


@click.command(epilog=example("sudo agentmon detach web"))
@click.argument("bottle", shell_complete=bottles)
@_JSON
def detach(bottle: str, as_json: bool) -> int:
    """Let go of BOTTLE: every rule and program is removed, and its processes go on. Nothing holds them any more."""
    value = ask("detach", bottle=bottle)
    if as_json:
        emit_json(value)
    else:
        emit(f"{bottle}: let go; its processes go on, and nothing holds them any more")
    return 0
