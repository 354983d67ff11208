"""Image → the ways past the guard that it has, and what each rests on. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agentmon.audit_native import signs
from agentmon.audit_native.model import Finding, Image, Owner, Way

_OWN = {  # modules of the standard library that are told what to do only by calls which the guard hears of
    "_socket": "Python's own socket module: it raises the events that the guard hears",
    "_posixsubprocess": "Python's own: the guard hears of the processes that it starts",
}


def judge(path: str, image: Image, owner: Owner) -> Finding:
    """One file by itself; what it can do through other files of the environment is added by `join`."""
    by: dict[Way, tuple[str, ...]] = {}
    names = image.imports | image.defines
    for way, functions in signs.LIBC.items():
        _add(by, way, functions & names)
    _add(by, Way.IO_URING, {name for name in names if name.startswith(signs.IO_URING)})
    _add(by, Way.RAW, image.calls)
    _add(by, Way.THROUGH, {f"{signs.THROUGH[n]}: {n}" for n in image.imports & signs.THROUGH.keys()})
    if any(v.name == signs.FFI for v in image.vendored):
        _add(by, Way.CALL, {signs.FFI, *by.get(Way.CALL, ())})
    if image.computed or (image.static and not image.scanned):
        _add(by, Way.SYSCALL, {_computed(image)})
    return Finding(path, owner, image, by, _covered(path, image))


def join(findings: Mapping[str, Finding]) -> dict[str, Finding]:
    """Path → finding, where a file that loads another one of the environment which connects can connect through it.

    Libraries are matched by file name, as auditwheel renames them to be unique; one step is enough, since a library
    that only passes calls on is joined with what it loads as well.
    """
    joined = dict(findings)
    for _ in range(len(findings)):
        strong = {_base(p) for p, f in joined.items() if _connects(f) and not f.covered}
        changed = False
        for path, finding in joined.items():
            loads = {n for n in finding.image.needed if n in strong and n != _base(path)}
            if loads - set(finding.by.get(Way.THROUGH, ())):
                by = dict(finding.by)
                _add(by, Way.THROUGH, loads | set(by.get(Way.THROUGH, ())))
                joined[path] = Finding(path, finding.owner, finding.image, by, finding.covered)
                changed = True
        if not changed:
            break
    return joined


def _connects(finding: Finding) -> bool:
    return any(way in finding.by for way in (Way.CONNECT, Way.IO_URING, Way.RAW, Way.THROUGH))


def _computed(image: Image) -> str:
    if not image.scanned:
        return f"static, for {image.machine}: its instructions are not looked at"
    return f"{image.computed} system call instructions, their numbers are computed"


def _covered(path: str, image: Image) -> str:
    """The interpreter and its socket module raise audit events before they call libc: the guard hears of it."""
    if signs.INTERPRETER in image.defines:
        return "the interpreter: it raises the events that the guard hears"
    directory, _, name = path.rpartition("/")
    return _OWN.get(name.split(".")[0], "") if directory.endswith("/lib-dynload") else ""


def _add(by: dict[Way, tuple[str, ...]], way: Way, names: set[str] | frozenset[str]) -> None:
    if names:
        by[way] = tuple(sorted(names))


def _base(path: str) -> str:
    return path.rpartition("/")[2]
