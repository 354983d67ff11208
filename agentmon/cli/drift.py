"""`agentmon drift`: whether a provider is still what its baseline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agentmon.cli.console import emit, emit_json, example, notice


@click.command(
    epilog=example(
        "sudo agentmon drift --provider claude", "sudo agentmon drift --provider claude --record",
        "sudo agentmon drift --json --baseline ci/drift",
    )
)  # fmt: skip
@click.option(
    "--provider", metavar="P", help="claude or openai.  [default: all of which the credential is on this host]"
)
@click.option("--baseline", metavar="DIR", type=click.Path(path_type=Path), help="Where baselines are kept.")
@click.option("--record", is_flag=True, help="Keep what is there now as the baseline.")
@click.option("--credential", metavar="NAME", help="The key to use.  [default: anthropic, openai]")
@click.option("--model", metavar="M", help="The model to ask.  [default: a small one]")
@click.option("--save", metavar="DIR", type=click.Path(path_type=Path), help="Keep the answers' bodies in DIR, too.")
@click.option("--connect", metavar="ADDRESS:PORT", help="Instead of what the name resolves to: a stand-in.")
@click.option("--ca", metavar="FILE", type=click.Path(path_type=Path), help="Roots to trust instead of the system's.")
@click.option("--json", "as_json", is_flag=True, help="One object per provider.")
def drift(
    provider: str | None, baseline: Path | None, record: bool, save: Path | None, as_json: bool, **options: Any
) -> int:
    """Ask a provider a few small questions with a key of this host and compare certificate, protocol, shapes of answers
    and streams, usage and headers with the baseline. It costs at most some hundred tokens, and says so before.

    Only names and types of fields are kept, nothing that a model said, and not the key. The exit status is 0 where
    nothing drifted, 1 where something did. For a nightly job: docs/operations/drift.md.
    """
    from agentmon.drift import run

    kept = baseline or run.BASELINES
    if record and options["connect"]:
        notice("this baseline is of a stand-in, not of the provider")
    status = 0
    for target, key in run.targets(provider, options["credential"], options["model"]):
        if not as_json:
            notice(f"{target.host}: {len(target.calls)} requests, at most {target.most_tokens} tokens of output")
        now, replies = run.look(target, key, run.way(options["connect"], options["ca"]))
        if save is not None:
            run.save(save, target, replies)
        if record:
            run.record(kept, now)
            notice(f"recorded as {run.file(kept, target.provider)}")
            continue
        was = run.load(kept, target.provider)
        status = max(status, _told(was, now, as_json))
    return status


def _told(was: Any, now: Any, as_json: bool) -> int:
    from agentmon.drift import compare
    from agentmon.render import drift as render

    found = compare.differences(was, now)
    if as_json:
        emit_json(render.as_object(was, now, found))
    else:
        emit(render.text(was, now, found))
    return 1 if compare.drifted(found) else 0
