"""Reads an environment and puts the audit together: the contract's JSON object, which the text is rendered from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentmon.audit_native import elf
from agentmon.audit_native.judge import join, judge
from agentmon.audit_native.model import Finding, Image, Unreadable
from agentmon.audit_native.packages import Owners
from agentmon.audit_native.sightings import Sightings
from agentmon.audit_native.tree import Tree
from agentmon.errors import BadInput


@dataclass(frozen=True)
class Audit:
    """Every native file of a tree, judged, in the tree's order."""

    tree: Tree
    findings: tuple[Finding, ...]


def audit(tree: Tree, files: Iterable[str] | None = None) -> Audit:
    """What cannot be read is noted in the tree, unless it is all that was asked for.

    :param files: the tree's files, where somebody wants to see how far it is.
    :raises BadInput: one file was named, and it cannot be judged.
    """
    owners = Owners(tree.stdlib)
    for site in tree.sites:
        owners.learn(site)
    images: dict[str, Image] = {}
    for path in tree.files if files is None else files:
        try:
            images[path] = elf.read(path)
        except Unreadable as e:
            if path == tree.root:
                raise BadInput(f"{path}: {e.why}", "name a native module (.so), a program, or a directory") from e
            tree.unread.append((path, e.why))
    findings = join({path: judge(path, image, owners.of(path)) for path, image in images.items()})
    return Audit(tree, tuple(findings.values()))


def to_dict(audit: Audit, sightings: Sightings) -> dict[str, Any]:
    """The object that --json prints."""
    tree = audit.tree
    return {
        "root": tree.root,
        "files": len(audit.findings),
        "past_the_guard": sum(f.past_the_guard for f in audit.findings),
        "layer3": {"known": not sightings.unknown, "why": sightings.unknown},
        "findings": [_finding(f, sightings) for f in audit.findings],
        "unread": [{"path": path, "why": why} for path, why in tree.unread],
        "elsewhere": list(dict.fromkeys(tree.elsewhere)),
    }


def _finding(f: Finding, sightings: Sightings) -> dict[str, Any]:
    seen = sightings.of(f.path)
    out: dict[str, Any] = {
        "path": f.path,
        "package": f.owner.package,
        "version": f.owner.version,
        "modules": list(f.owner.modules),
        "kind": "program" if f.image.program else "library",
        "static": f.image.static,
        "machine": f.image.machine,
        "past_the_guard": f.past_the_guard,
        "could": {way.value: list(names) for way, names in f.by.items()},
        "covered": f.covered,
        "vendored": [{"name": v.name, "version": v.version} for v in f.image.vendored],
        "needed": list(f.image.needed),
        "layer3": "unknown" if sightings.unknown else "seen" if seen else "not seen",
    }
    if seen:
        told = {"bottles": sorted(seen.bottles), "destinations": sorted(seen.destinations)}
        out["seen"] = {"count": seen.count, "last": seen.last, **told}
    return out
