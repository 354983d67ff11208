"""What `ci report` is made of: the session, its events, the baseline; and the files it writes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from agentmon.ci import baseline, session, watch
from agentmon.ci.baseline import Compared
from agentmon.ci.session import Session
from agentmon.ci.steps import Steps, ns
from agentmon.cli.control import reachable, stream
from agentmon.cli.reporting import gather
from agentmon.errors import BadInput
from agentmon.policy import manifest, settings
from agentmon.policy.rules import Rule
from agentmon.providers import registry
from agentmon.render.ci import as_ci_object, with_ci
from agentmon.render.report import Report
from agentmon.render.report_html import html
from agentmon.render.report_markdown import markdown


def of(name: str, file: Path | None) -> tuple[Session, Report, Compared, str]:
    """(session, report, comparison, baseline's name or "") of the session `name`.

    :param file: the baseline; None: the one that `ci start` was given.
    :raises AgentmonError: there is no such session, or what it left cannot be read.
    """
    found = session.load(name)
    if file is None and found.baseline:
        file = Path(found.baseline)
    host = settings.load()
    providers = registry.load(host.providers)
    until = found.stopped_ns or time.time_ns()
    seen = [e for e in _events(name, found.started_ns) if ns(str(e["ts"])) <= until]
    compared = baseline.compare(
        name,
        [e for e in seen if e.get("bottle") == name],
        Steps(watch.read(session.steps_file(name))),
        rules(file) if file and file.exists() else (),
        sorted(host for p in providers.values() for host in p.hosts),
        lost=sum(max(int(e.get("count") or 0), 1) for e in seen if e.get("kind") == "lost"),
    )
    label = file.name if file else ""
    return found, with_ci(gather(name, found.started_ns, until), found, compared, label), compared, label


def _events(name: str, since_ns: int) -> list[dict[str, Any]]:
    """Of the bottle, and what was lost of nobody knows whom: from the daemon, who stores what waits first, or from what
    the last one stored."""
    if reachable():
        mine, lost = (
            [
                e
                for e in stream("events", follow=False, since_ns=since_ns, **wanted)
                if isinstance(e, dict) and "kind" in e
            ]
            for wanted in ({"bottle": name}, {"kind": "lost"})
        )
    else:
        from agentmon.cli.books import stored_events

        mine, lost = list(stored_events(name, "", since_ns)), list(stored_events("", "lost", since_ns))
    return [*mine, *(event for event in lost if not event.get("bottle"))]


def rules(file: Path) -> tuple[Rule, ...]:
    """Of a baseline. :raises BadInput: with file, line and what was expected."""
    return tuple(placed.rule for placed in manifest.load(file, settings.load().bottles_dir).allow)


def update(file: Path, compared: Compared) -> int:
    """Add to a baseline what is new; how many rules that is.

    :raises BadInput: the file has more than rules, which would be lost; or it cannot be written.
    """
    old = rules(file) if file.exists() else ()
    if file.exists():
        found = manifest.load(file, settings.load().bottles_dir)
        other = sorted(found.places.keys() - {"allow"})
        if other:
            raise BadInput(
                f"{file}: `{other[0]}` stands there, and a baseline has nothing but `allow:`",
                "move it to a manifest of its own: agentmon ci start --policy FILE",
            )
    text = baseline.text([*(rule.text for rule in old), *compared.new])
    if not file.exists() or file.read_text() != text:
        write(file, text)
    return len(compared.new)


def artefacts(directory: Path, found: tuple[Session, Report, Compared, str]) -> None:
    """report.html, report.json, report.md. :raises BadInput: they cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"--artefacts {directory}: {e.strerror}", "name a directory that can be written") from e
    one, report, compared, label = found
    write(directory / "report.html", html(report))
    write(directory / "report.md", markdown(report))
    write(directory / "report.json", json.dumps(as_ci_object(report, one, compared, label), indent=1) + "\n")


def write(file: Path, text: str) -> None:
    """:raises BadInput: it cannot be written."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as e:
        raise BadInput(f"{file}: {e.strerror}", "name a file in a directory that can be written") from e


def append(file: Path, text: str) -> None:
    """To a job's summary, which other steps write to as well. :raises BadInput: it cannot be written."""
    try:
        with file.open("a", encoding="utf-8") as out:
            out.write(text)
    except OSError as e:
        raise BadInput(f"--summary {file}: {e.strerror}", "name a file in a directory that can be written") from e
