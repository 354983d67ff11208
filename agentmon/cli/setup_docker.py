"""`agentmon setup docker`: one marked rule in DOCKER-USER, with consent, and its undo.

Docker sets the policy of FORWARD to drop; DOCKER-USER is where it leaves room for an administrator's own rules.
What carries our mark has been judged by our rules already (docs/operations/firewalls.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import click

from agentmon.cli.console import emit, example
from agentmon.errors import AgentmonError, BadInput, HostLacks

CHAIN = "DOCKER-USER"
MARK = "0x1000000/0x1000000"  # netfilter.spec.PASS_MARK; a test holds them equal
RULE = ("-m", "mark", "--mark", MARK, "-m", "comment", "--comment", "agentmon", "-j", "ACCEPT")
_TOOLS = ("iptables", "ip6tables")


@click.group(epilog=example("sudo agentmon setup docker"))
def setup() -> None:
    """Make agentmon get along with what else runs on this host."""


@setup.command(epilog=example("sudo agentmon setup docker", "sudo agentmon setup docker --undo --yes"))
@click.option("--undo", is_flag=True, help="Remove the rule again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def docker(undo: bool, yes: bool) -> None:
    """Let Docker's firewall pass what bottles are permitted: one rule in its chain DOCKER-USER.

    The rule accepts packets that carry agentmon's mark, which only agentmon's own rules set. It lasts until the next
    boot, over restarts of Docker too.
    """
    if os.geteuid() != 0:
        raise HostLacks("the firewall's rules are root's to change", "sudo agentmon setup docker")
    tools = [tool for tool in _available() if _succeeds(tool, "-S", CHAIN)]
    if not tools:
        raise HostLacks(f"there is no chain {CHAIN}", "start Docker first: it makes the chain")
    todo = [tool for tool in tools if _succeeds(tool, "-C", CHAIN, *RULE) is undo]
    if not todo:
        emit(f"nothing to do: the rule is {'not there' if undo else 'there'} ({', '.join(tools)})")
        return
    place = ("-D", CHAIN) if undo else ("-I", CHAIN, "1")
    emit("\n".join(" ".join((tool, *place, *RULE)) for tool in todo))
    if not yes:
        _consent()
    for tool in todo:
        _run(tool, *place, *RULE)
        while undo and _succeeds(tool, "-C", CHAIN, *RULE):
            _run(tool, *place, *RULE)
    emit("removed" if undo else "done; agentmon setup docker --undo removes it")


def _consent() -> None:
    if not sys.stdin.isatty():
        raise BadInput("nobody can be asked", "--yes does it without asking")
    click.confirm("Do this?", abort=True)


def _available() -> list[str]:
    found = [tool for tool in _TOOLS if shutil.which(tool)]
    if not found:
        raise HostLacks("iptables is missing", "apt-get install iptables")
    return found


def _call(tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool, "-w", *words], capture_output=True, text=True, check=False)


def _succeeds(tool: str, *words: str) -> bool:
    return _call(tool, *words).returncode == 0


def _run(tool: str, *words: str) -> None:
    done = _call(tool, *words)
    if done.returncode != 0:
        what = f"{tool} {' '.join(words)}: {done.stderr.strip() or done.returncode}"
        raise AgentmonError(what, f"see {tool} -S {CHAIN}")
