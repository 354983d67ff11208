"""What a check runs through, photographed once: every name, function, class and table of the modules that decide.

A plain assignment to any of it (`judge._verdict = …`, `targets.LOCAL = …`, a method, a default, a table's entry) is
seen by the next comparison. By identity, never by ==: what was put there has no say. Not sealed: closures, the standard
library, and what the interpreter itself adds to namespaces.
"""

from __future__ import annotations

from itertools import islice
from operator import attrgetter, is_
from types import FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

# Written by the interpreter when warnings are raised, or annotations read.
_ADDED = frozenset({"__warningregistry__", "__annotations__", "__annotations_cache__", "__annotate_func__"})
_code, _defaults, _kwdefaults = attrgetter("__code__"), attrgetter("__defaults__"), attrgetter("__kwdefaults__")


def tables(modules: Iterable[ModuleType]) -> list[tuple[str, Mapping[Any, Any]]]:
    """(name, namespace) of each module, of each class made there, and of each dict that they hold by name."""
    out: list[tuple[str, Mapping[Any, Any]]] = []
    for module in modules:
        short = module.__name__.rpartition(".")[2]
        out.append((short, vars(module)))
        for name, value in list(vars(module).items()):
            if name.startswith("__"):
                continue
            if isinstance(value, type) and value.__module__ == module.__name__:
                out.append((f"{short}.{name}", vars(value)))
            elif type(value) is dict:
                out.append((f"{short}.{name}", value))
    return out


def watch(modules: Iterable[ModuleType], touch: Callable[[], None]) -> None:
    """Have `touch` called before a name of these modules is assigned to or deleted, as `module.name = …` does it: their
    `__class__` becomes one that tells (Python data model, 3.3.2.1). Entries of dicts and attributes of classes are not
    told of: comparing finds them."""

    class Watched(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            touch()
            super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            touch()
            super().__delattr__(name)

    for module in modules:
        module.__class__ = Watched


def functions(namespaces: Iterable[Mapping[Any, Any]]) -> tuple[FunctionType, ...]:
    """Every Python function in them, also behind property, staticmethod and classmethod."""
    found: dict[int, FunctionType] = {}
    for namespace in namespaces:
        for value in namespace.values():
            inner = (value, *(getattr(value, name, None) for name in ("fget", "__func__")))
            found.update((id(each), each) for each in inner if isinstance(each, FunctionType))
    return tuple(found.values())


def seal(  # noqa: C901 - one closure
    modules: Iterable[ModuleType], free: frozenset[str]
) -> tuple[Callable[[], str], Callable[[], str]]:
    """Two functions that say what was changed since now, "" for nothing: of names and tables, and of functions'
    insides (which cannot be assigned to without an audit event). `free`: names ("state.in_force") that may change.

    Some tens of nanoseconds for each name or function, and they call nothing that could be replaced.
    """
    kept = []
    for where, namespace in tables(modules):
        names = tuple(namespace)
        loose = frozenset(at for at, name in enumerate(names) if f"{where}.{name}" in free)
        kept.append((where, namespace, namespace.values(), names, tuple(namespace.values()), len(names), loose))
    sealed = functions(namespace for _, namespace, *_ in kept)
    codes = tuple(f.__code__ for f in sealed)
    defaults = tuple(f.__defaults__ for f in sealed)  # None too: none may be given
    keywords = tuple(f.__kwdefaults__ for f in sealed)
    keyword_values = tuple((table, tuple(table.values())) for table in keywords if table)
    same, every, added, count, each_of, code_of = is_, all, _ADDED, len, map, _code
    defaults_of, keywords_of, some, numbered = _defaults, _kwdefaults, islice, enumerate

    def changed() -> str:  # nothing it could call is out of reach
        for where, namespace, live, names, values, size, loose in kept:
            now = count(namespace)
            if now != size:
                if now < size:
                    return f"a name of {where} was deleted"
                for name in some(namespace, size, None):
                    if name not in added:
                        return f"{where}.{name} was added"
            if not every(each_of(same, live, values)):
                for at, (name, value) in numbered(namespace.items()):
                    if at < size and at not in loose and (name != names[at] or value is not values[at]):
                        return f"{where}.{name} was replaced"
        for keyword, was in keyword_values:
            if not every(each_of(same, keyword.values(), was)):
                return "the defaults of a function were replaced"
        return ""

    def changed_inside() -> str:
        if not every(each_of(same, each_of(code_of, sealed), codes)):
            return "the code of a function was replaced"
        if not (
            every(each_of(same, each_of(defaults_of, sealed), defaults))
            and every(each_of(same, each_of(keywords_of, sealed), keywords))
        ):
            return "the defaults of a function were replaced"
        return ""

    return changed, changed_inside
