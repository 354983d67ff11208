"""An audit for people: one line per file that could get past the guard, and what the words mean. Pure."""

from __future__ import annotations

import os
from typing import Any

from agentmon.render.table import table

_MEANING = {
    "connect": "opens connections, or sends to an address, by itself",
    "io_uring": "hands the kernel requests without a system call for each",
    "raw": "makes network system calls by its own instructions",
    "through": "loads or calls a library that connects",
    "syscall": "can make any system call by its number (every Rust module can)",
    "call": "calls any C function it is told to",
    "resolve": "looks names up by itself",
}
_SITE = ("/site-packages/", "/dist-packages/", "/lib-dynload/")


def audit_text(data: dict[str, Any]) -> str:
    """Of the object that --json prints."""
    past = [f for f in data["findings"] if f["past_the_guard"]]
    rows = [(_package(f), _where(f["path"], data["root"]), _could(f), _layer3(f)) for f in past]
    parts = [table(("PACKAGE", "FILE", "COULD", "LAYER 3"), rows), _summary(data, len(past))]
    used = [word for word in _MEANING if any(word in f["could"] for f in past)]
    if used:
        parts.append("\n".join(f"  {word:9} {_MEANING[word]}" for word in used) + "\n")
    parts += [_unread(data), _elsewhere(data)]
    return "\n".join(part for part in parts if part)


def _package(f: dict[str, Any]) -> str:
    return f"{f['package']} {f['version']}".strip() or "-"


def _where(path: str, root: str) -> str:
    for site in _SITE:
        if site in path:
            return path.rpartition(site)[2]
    inside = os.path.relpath(path, root) if path != root else os.path.basename(path)
    return path if inside.startswith("..") else inside


def _could(f: dict[str, Any]) -> str:
    words = [word for word in _MEANING if word in f["could"]]
    with_ = [f"{v['name']} {v['version']}".strip() for v in f["vendored"]]
    notes = [*(["static"] if f["static"] else []), *with_]
    return ", ".join(words) + (f" ({', '.join(notes)})" if notes else "")


def _layer3(f: dict[str, Any]) -> str:
    if "seen" not in f:
        return str(f["layer3"])
    times = f["seen"]["count"]
    return f"seen {times} time{'s' if times > 1 else ''}, last {f['seen']['last'][:19]}Z"


def _summary(data: dict[str, Any], past: int) -> str:
    files = data["files"]
    text = f"{files} native file{'' if files == 1 else 's'}; {past or 'none'} could get past the guard.\n"
    if past and not data["layer3"]["known"]:
        text += f"Whether layer 3 has seen it is unknown: {data['layer3']['why']}\n"
    return text


def _unread(data: dict[str, Any]) -> str:
    lines = [f"  {u['path']}: {u['why']}" for u in data["unread"]]
    return "Not judged, so it could be anything:\n" + "\n".join(lines) + "\n" if lines else ""


def _elsewhere(data: dict[str, Any]) -> str:
    lines = [f"  agentmon audit-native {path}" for path in data["elsewhere"]]
    return "Also on this environment's path, and not looked at:\n" + "\n".join(lines) + "\n" if lines else ""
