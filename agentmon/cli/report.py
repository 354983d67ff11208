"""`agentmon report`: what was used, cut, refused and decided, of a bottle or of the host, in a period."""

from __future__ import annotations

import time
from pathlib import Path

import click

from agentmon.cli.completing import bottles
from agentmon.cli.console import emit, emit_json, example, notice
from agentmon.cli.when import since_ns
from agentmon.errors import BadInput


@click.command(
    epilog=example(
        "sudo agentmon report --bottle build-17 --markdown", "sudo agentmon report --since 7d --html week.html"
    )
)
@click.option("--bottle", metavar="B", shell_complete=bottles, help="Only of this bottle, running or ended.")
@click.option("--since", metavar="TIME", help="15m, 2h, 7d ago, or 2026-01-31T12:00:00Z.  [default: all that is kept]")
@click.option("--markdown", is_flag=True, help="Markdown, as for a CI job's summary (the default).")
@click.option(
    "--html", metavar="FILE", type=click.Path(path_type=Path), help="Write one HTML file with charts to FILE."
)
@click.option("--json", "as_json", is_flag=True, help="One object.")
def report(bottle: str | None, since: str | None, markdown: bool, html: Path | None, as_json: bool) -> None:
    """Report tokens used, refusals with the command that would allow each, cuts, approvals and budgets: of a bottle, or
    of this host. From the ledger and the stored events: it works without a daemon."""
    from agentmon.cli.reporting import gather
    from agentmon.render import report as render
    from agentmon.render.report_html import html as as_html
    from agentmon.render.report_markdown import markdown as as_markdown

    if markdown and as_json:
        raise click.UsageError("--json and --markdown: choose one")
    found = gather(bottle or "", since_ns(since, time.time_ns()), time.time_ns())
    if html is not None:
        try:
            html.write_text(as_html(found), encoding="utf-8")
        except OSError as e:
            raise BadInput(f"--html {html}: {e.strerror}", "name a file in a directory that can be written") from e
        notice(f"written to {html}")
    if as_json:
        emit_json(render.as_object(found))
    elif html is None or markdown:
        emit(as_markdown(found))
