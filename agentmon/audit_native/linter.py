"""A contract for import-linter: these packages are not imported, unless somebody has reviewed them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from agentmon.audit_native.model import Finding, Way

_HEAD = """\
# Written by agentmon audit-native. Native code that could connect without the guard's knowledge is not imported.
# Imports by other packages are not followed: what a dependency imports shows in the audit itself.
"""


def forbidden(findings: Iterable[Finding], reviewed: Collection[str]) -> dict[str, tuple[Finding, ...]]:
    """Import name → the files behind it that could get past the guard. Programs are not imported.

    :param reviewed: distributions or import names that may be used; compared as package indexes do.
    """
    allowed = {_canonical(name) for name in reviewed}
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        if not finding.past_the_guard or finding.image.program or _canonical(finding.owner.package) in allowed:
            continue
        for module in finding.owner.modules:
            if _canonical(module) not in allowed:
                found.setdefault(module, []).append(finding)
    return {module: tuple(files) for module, files in sorted(found.items())}


def contract(findings: Iterable[Finding], sources: Collection[str], reviewed: Collection[str]) -> str:
    """TOML for pyproject.toml: a `forbidden` contract over the packages `sources`."""
    modules = forbidden(findings, reviewed)
    lines = [_HEAD, "[tool.importlinter]", f"root_packages = [{', '.join(_quoted(s) for s in sources)}]"]
    lines += ["include_external_packages = true", "", "[[tool.importlinter.contracts]]"]
    lines += ['name = "no native code that could get past the guard"', 'type = "forbidden"']
    lines += [f"source_modules = [{', '.join(_quoted(s) for s in sources)}]", "forbidden_modules = ["]
    lines += [f"    {_quoted(module)},  # {_why(files)}" for module, files in modules.items()]
    lines += ["]", ""]
    return "\n".join(lines)


def _why(files: tuple[Finding, ...]) -> str:
    owner = files[0].owner
    ways = [way.value for way in Way if any(way in finding.by for finding in files)]
    return f"{owner.package} {owner.version}: {', '.join(ways)}"


def _canonical(name: str) -> str:
    """PEP 503."""
    return name.replace("_", "-").replace(".", "-").lower()


def _quoted(name: str) -> str:
    return f'"{name}"'
