"""A report as Markdown, for a CI job's summary. Pure."""

from __future__ import annotations

from agentmon.render.report import Report, sections
from agentmon.render.words import printable, tokens


def markdown(report: Report) -> str:
    lines = [f"# {_cell(title(report))}", "", lead(report), ""]
    for heading, rows, empty in sections(report):
        lines += [f"## {heading}", ""]
        if rows:
            head, *body = rows
            lines += [_row(head), "|" + "---|" * len(head), *(_row(row) for row in body), ""]
        else:
            lines += [f"{empty}.", ""]
    if report.more:
        lines += [f"{report.more} more kinds of refusals are not listed: `agentmon events --verdict refused`.", ""]
    return "\n".join(lines)


def title(report: Report) -> str:
    return f"agentmon: {printable(report.bottle)}" if report.bottle else "agentmon: this host"


def lead(report: Report) -> str:
    """The sentence at the top of every form."""
    cut = sum(1 for c in report.cuts if c.get("policy") in {"cutoff", "freeze", "kill"})
    times = "once" if report.refused == 1 else f"{report.refused} times"
    return (report.found and f"{report.found} ") + (
        f"{tokens(report.tokens)} weighted tokens used, {times if report.refused else 'nothing'} refused, "
        f"{cut or 'no'} cut{'' if cut == 1 else 's'}, {len(report.approvals) or 'no'} approval"
        f"{'' if len(report.approvals) == 1 else 's'} asked."
    )


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Names come from the job: nothing of them may become markup."""
    text = printable(text)
    for char in "\\`*_[]<>|":
        text = text.replace(char, f"\\{char}" if char not in "<>" else {"<": "&lt;", ">": "&gt;"}[char])
    return text
