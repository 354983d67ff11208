"""A report as one HTML file: charts as inline SVG with the same figures as tables below; nothing is loaded. Pure.

Everything that a job could have named is escaped; the page's own policy forbids scripts and requests besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from agentmon.render.report import Report, sections
from agentmon.render.report_markdown import lead, title
from agentmon.render.words import printable, tokens

_COLOURS = ("#3366aa", "#cc6633", "#339966", "#996699", "#b8860b", "#556677", "#aa3355", "#227777")  # 4.5:1 on white
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#1a1a1a}
table{border-collapse:collapse;margin:.5em 0 2em}th,td{padding:.25em .7em;border-bottom:1px solid #ccc;text-align:left;
vertical-align:top;overflow-wrap:anywhere}td.n{text-align:right;font-variant-numeric:tabular-nums}figure{margin:1em 0}
figcaption{color:#555}code{background:#f2f2f2;padding:.1em .3em}@media print{body{margin:0}}"""
_WIDE, _HIGH, _LEFT, _BELOW = 760, 220, 70, 40


def html(report: Report) -> str:
    """A whole document, UTF-8."""
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
        '<meta name="viewport" content="width=device-width">', f"<title>{_text(title(report))}</title>",
        f"<style>{_STYLE}</style>", "</head>", "<body>", f"<h1>{_text(title(report))}</h1>",
        f"<p>{_text(lead(report))} Days are of {_text(report.zone)}.</p>",
    ]  # fmt: skip
    if report.days:
        parts.append(_figure("Weighted tokens by day and provider", _stacked(report.days)))
    if report.layers:
        parts.append(_figure("Refused, by layer", _bars(report.layers)))
    for heading, rows, empty in sections(report):
        parts.append(f"<h2>{_text(heading)}</h2>")
        parts.append(_table(rows) if rows else f"<p>{_text(empty)}.</p>")
    if report.more:
        parts.append(f"<p>{report.more} more kinds of refusals: <code>agentmon events --verdict refused</code></p>")
    return "\n".join([*parts, "</body>", "</html>", ""])


def _text(text: str) -> str:
    return escape(printable(text))


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [
        "<table>",
        "<thead><tr>" + "".join(f'<th scope="col">{_text(c)}</th>' for c in head) + "</tr></thead>",
        "<tbody>",
    ]
    for row in body:
        cells = (f'<td class="n">{int(c):,}</td>' if c.isdigit() else f"<td>{_text(c)}</td>" for c in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def _figure(caption: str, svg: str) -> str:
    return f"<figure>\n{svg}\n<figcaption>{_text(caption)}</figcaption>\n</figure>"


def _stacked(days: Mapping[tuple[str, str], int]) -> str:
    """A bar a day, a part of it a provider."""
    names = sorted({day for day, _ in days})
    providers = sorted({provider for _, provider in days})
    sums = {day: sum(n for (d, _), n in days.items() if d == day) for day in names}
    top = max(sums.values(), default=0) or 1
    step = (_WIDE - _LEFT) / len(names)
    marks = [_axis(top)]
    for i, day in enumerate(names):
        y = float(_HIGH)
        for j, provider in enumerate(providers):
            value = days.get((day, provider), 0)
            height = value / top * (_HIGH - 20)
            y -= height
            if value:
                marks.append(
                    f'<rect x="{_LEFT + i * step + step * 0.1:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" '
                    f'height="{height:.1f}" fill="{_COLOURS[j % len(_COLOURS)]}">'
                    f"<title>{_text(day)} {_text(provider)}: {value:,}</title></rect>"
                )
        if i % max(1, len(names) // 8) == 0:
            marks.append(
                f'<text x="{_LEFT + i * step + step / 2:.1f}" y="{_HIGH + 16}" text-anchor="middle">{_text(day)}</text>'
            )
    for j, provider in enumerate(providers):
        x = _LEFT + j * 110
        marks.append(f'<rect x="{x}" y="{_HIGH + 24}" width="10" height="10" fill="{_COLOURS[j % len(_COLOURS)]}"/>')
        marks.append(f'<text x="{x + 14}" y="{_HIGH + 33}">{_text(provider)}</text>')
    return _svg(_HIGH + _BELOW, f"{len(names)} days, at most {top:,} weighted tokens", marks)


def _axis(top: int) -> str:
    lines = []
    for part in (0.5, 1.0):
        y = _HIGH - part * (_HIGH - 20)
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tokens(int(top * part))}</text>')
    return "\n".join(lines)


def _bars(values: Mapping[str, int]) -> str:
    top = max(values.values()) or 1
    marks = []
    for i, (name, value) in enumerate(sorted(values.items(), key=lambda item: (-item[1], item[0]))):
        y, width = 6 + i * 24, value / top * (_WIDE - 220)
        marks.append(f'<text x="110" y="{y + 13}" text-anchor="end">{_text(name)}</text>')
        marks.append(f'<rect x="118" y="{y}" width="{width:.1f}" height="16" fill="{_COLOURS[0]}"/>')
        marks.append(f'<text x="{124 + width:.1f}" y="{y + 13}">{value:,}</text>')
    return _svg(12 + 24 * len(values), f"{len(values)} layers, at most {top:,} refusals", marks)


def _svg(height: int, description: str, marks: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDE} {height}" width="{_WIDE}" role="img" aria-label="{_text(description)}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui,sans-serif" font-size="12">\n'
        + "\n".join(marks)
        + "\n</svg>"
    )
