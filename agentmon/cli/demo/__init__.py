"""`agentmon demo`: the whole product on this host, against a stand-in internet of network namespaces.

    stage   the stand-in internet, an ordinary daemon, a bottle: processes that end when the demo does
    interrupt  Ctrl-C unwinds it, and never loses a process
    look    what the kernel and the system show of the bottle's start
    play    what happens, in order, and what was seen of it ─▶ Seen
    verdict Seen ─▶ the contract's JSON, and what is not as it should be (pure)
    show    the same for people (pure)

The demo speaks to agentmon only through its command line, as its users do.
"""

from __future__ import annotations

import click

from agentmon.cli.console import complain, emit, emit_json, example


@click.command(epilog=example("sudo agentmon demo", "sudo agentmon demo --json"))
@click.option("--json", "as_json", is_flag=True, help="Data instead of text.")
def demo(as_json: bool) -> int:
    """Show all of it on this host: no API key, no outside traffic, nothing left afterwards.

    An agent with the real SDKs works in a bottle, is refused what no rule allows, spends its budget, is cut off and
    resumed. The exit status is 0 only if everything was as it should be.
    """
    from agentmon.cli.demo import interrupt, play, show, stage, verdict

    with interrupt.stopped_cleanly():
        seen = play.play(stage.progress())
    problems = verdict.problems(seen)
    if as_json:
        emit_json(verdict.as_json(seen))
    else:
        emit(show.text(seen, problems))
    for problem in problems:
        complain(problem)
    return 1 if problems else 0
