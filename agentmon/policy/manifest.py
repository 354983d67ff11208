"""Bottle manifests: one YAML file each, and the chain that `extends:` makes of them, child first.

A manifest under `bottles_dir` is the host's word. One from elsewhere (a repository's) is a request: it names what it
needs to reach and may lower what the host gives, and `untrusted()` refuses the rest with the place where it belongs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentmon.errors import BadInput
from agentmon.policy import document, routes, sockets, values
from agentmon.policy.document import Node, Place, Scalar
from agentmon.policy.effective import LIMITS
from agentmon.policy.routes import PlacedRoute
from agentmon.policy.settings import SHUTDOWNS, UNREADABLE, Settings
from agentmon.policy.values import Budget, PlacedRule

MAX_CHAIN = 8
GUARDS = ("off", "observe", "strict")  # from the mildest to the strictest
HOMES = ("private", "host")
Reader = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One file, validated. None means that the file leaves it to its parent. `places`: where each key stands."""

    file: str
    trusted: bool  # it stands under bottles_dir
    extends: str | None = None
    provider: str | None = None
    agents: Mapping[str, tuple[Budget, ...]] = field(default_factory=dict)  # a Budget with provider "": the default one
    allow: tuple[PlacedRule, ...] = ()
    routes: tuple[PlacedRoute, ...] = ()
    budget: tuple[Budget, ...] = ()
    shutdown: str | None = None
    unreadable: str | None = None
    guard: str | None = None
    home: str | None = None
    ro: tuple[str, ...] = ()  # absolute, or "~/…"
    rw: tuple[str, ...] = ()
    unix: tuple[str, ...] = ()
    listen: tuple[str, ...] | None = None
    io_uring: bool | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)

    @property
    def scope(self) -> str:
        """The name of its budget scope; a path for a file of elsewhere, so that it cannot take another's name."""
        return Path(self.file).stem if self.trusted else self.file

    @property
    def bottle_name(self) -> str:
        """A bottle name made of the file's name."""
        return re.sub(r"[^a-z0-9._-]+", "-", Path(self.file).stem.lower()).strip("-._")[:63]


def find(name: str, bottles_dir: Path) -> Path:
    """The file that `name` means: a path, or the name of a manifest in bottles_dir."""
    if "/" in name or name.endswith((".yml", ".yaml")):
        return Path(name)
    return bottles_dir / f"{name}.yml"


def load(path: Path | str, bottles_dir: Path, read: Reader = document.read) -> Manifest:
    """One manifest, without its parents.

    :raises BadInput: with file, line, key and what was expected.
    """
    file = Path(os.path.realpath(path))
    trusted = file.is_relative_to(os.path.realpath(bottles_dir))
    return parse(read(file), str(file), trusted=trusted)


def load_chain(path: Path | str, bottles_dir: Path, read: Reader = document.read) -> tuple[Manifest, ...]:
    """The manifest and its ancestors, child first. `read` gives the text of a file.

    A daemon passes a reader that takes files outside bottles_dir from its client, who read them with his own rights.

    :raises BadInput: as load(); also for a parent that is missing, a cycle, or more than MAX_CHAIN files.
    """
    chain = [load(path, bottles_dir, read)]
    while (name := chain[-1].extends) is not None:
        child = chain[-1]
        place = child.places["extends"]
        parent = Path(os.path.realpath(_parent(child, name, bottles_dir)))
        seen = [m.file for m in chain]
        if str(parent) in seen:
            circle = " → ".join(Path(f).name for f in (*seen[seen.index(str(parent)) :], str(parent)))
            raise place.error(f"{name!r} makes a circle: {circle}", "take one `extends:` out")
        if len(chain) == MAX_CHAIN:
            raise place.error(f"more than {MAX_CHAIN} manifests extend each other", "put some of them together")
        try:
            chain.append(load(parent, bottles_dir, read))
        except BadInput as e:
            if not e.message.startswith(f"{parent}: "):
                raise  # an error in the parent's content names its own line
            known = sorted(p.stem for p in bottles_dir.glob("*.yml"))
            hint = document.suggestion(name, known) if known else f"parents by name stand in {bottles_dir}"
            if (Path(child.file).parent / f"{name}.yml").exists():
                hint = f"for the one beside this file, write {name}.yml; parents by name stand in {bottles_dir}"
            raise place.error(f"parent {name!r}: {e.message}", hint) from e
    return tuple(chain)


def gather(path: Path | str, bottles_dir: Path) -> dict[str, str]:
    """The texts of a chain's files outside bottles_dir, by real path: what a client sends with a request to run.

    :raises BadInput: as load_chain().
    """
    texts: dict[str, str] = {}
    root = os.path.realpath(bottles_dir)

    def read(file: Path) -> str:
        text = document.read(file)
        if not file.is_relative_to(root):
            texts[str(file)] = text
        return text

    load_chain(path, bottles_dir, read)
    return texts


def reader(texts: Mapping[str, str], bottles_dir: Path) -> Reader:
    """A reader for the daemon, which must not read for others what they could not read themselves: files outside
    bottles_dir come from gather()'s texts, and from nowhere else."""
    root = os.path.realpath(bottles_dir)

    def read(file: Path) -> str:
        if file.is_relative_to(root):
            return document.read(file)
        if str(file) not in texts:
            hint = "use the agentmon command of this version"
            raise BadInput(f"{file}: its text did not come with the request", hint)
        return texts[str(file)]

    return read


def _parent(child: Manifest, name: str, bottles_dir: Path) -> Path:
    if "/" in name or name.endswith((".yml", ".yaml")):
        return Path(child.file).parent / name
    return bottles_dir / f"{name}.yml"


def parse(text: str, file: str, *, trusted: bool) -> Manifest:
    """The manifest that a file's text holds.

    :raises BadInput: as load().
    """
    table = document.parse(text, file)
    if (denied := table.values.get("deny")) is not None:
        hint = 'write "!host" under allow: (deny: stands in the settings only, above every manifest)'
        raise Place(file, denied.place.line).error("unknown key 'deny'", hint)
    document.check_keys(table, _READERS)
    found: dict[str, Any] = {}
    for key, read in _READERS.items():
        node = values.optional(table, key)
        if node is not None:
            found[key] = read(node)
    base = Path(file).parent
    for key in ("ro", "rw"):
        found[key] = tuple(_host_path(node, base, trusted=trusted) for node in found.get(key, ()))
    places = {key: node.place for key, node in table.values.items()}
    return Manifest(file=file, trusted=trusted, places=places, **found)


def _host_path(node: Node, base: Path, *, trusted: bool) -> str:
    written = document.text(node, "a path")
    if ".." in written.split("/") or "\0" in written:
        raise node.place.error(f"{written!r} has '..' in it", "write the path out")
    if trusted:
        if written.startswith(("/", "~/")):
            return written
        raise node.place.error(f"{written!r}; expected an absolute path, or one that begins with ~/", "write it out")
    if written.startswith(("/", "~")):
        hint = "here, paths are relative to the manifest; others go on the command line (--ro, --rw) or in bottles_dir"
        raise node.place.error(f"{written!r} is outside this manifest's directory", hint)
    path = os.path.normpath(base / written)
    if not Path(os.path.realpath(path)).is_relative_to(base):  # a symbolic link in a repository
        raise node.place.error(f"{written!r} leads outside this manifest's directory", "use --ro or --rw")
    return path


def _agents(node: Node) -> dict[str, tuple[Budget, ...]]:
    table = document.mapping(node, "settings by agent, such as {reviewer: {budget: 50000}}")
    return {_name(name, inner): _agent(inner) for name, inner in table.values.items()}


def _name(name: str, node: Node) -> str:
    try:
        return values.check_name(name, "agent")
    except BadInput as e:
        raise node.place.error(e.message, e.hint) from e


def _agent(node: Node) -> tuple[Budget, ...]:
    table = document.mapping(node, "{budget: 50000}")
    document.check_keys(table, ("budget",))
    inner = values.optional(table, "budget")
    if inner is None:
        return ()
    if isinstance(inner, Scalar) or "tokens" in document.mapping(inner, "tokens").values:
        return (values.budget("", inner),)
    return values.budgets(inner)


def _limits(node: Node) -> dict[str, int]:
    table = document.mapping(node, "limits by name")
    document.check_keys(table, LIMITS)
    return {
        key: document.integer(value, least=1, most=10**6, expected="a number") for key, value in table.values.items()
    }


def _choice(allowed: tuple[str, ...]) -> Callable[[Node], str]:
    return lambda node: document.choice(node, allowed)


_READERS: Mapping[str, Callable[[Node], Any]] = {
    "extends": lambda node: document.text(node, "the name of a manifest, or a path"),
    "provider": lambda node: document.text(node, "the name of a provider"),
    "agents": _agents,
    "allow": values.rules,
    "routes": routes.routes,
    "budget": values.budgets,
    "shutdown": _choice(SHUTDOWNS),
    "unreadable": _choice(UNREADABLE),
    "guard": _choice(GUARDS),
    "home": _choice(HOMES),
    "ro": lambda node: document.items(node, "a list of paths"),
    "rw": lambda node: document.items(node, "a list of paths"),
    "unix": sockets.unix,
    "listen": sockets.listen,
    "io_uring": document.boolean,
    "limits": _limits,
}


def untrusted(manifest: Manifest, settings: Settings) -> None:
    """Check a manifest from outside bottles_dir: it may lower, it may not grant.

    :raises BadInput: naming the key and where it would be allowed.
    """
    if manifest.trusted:
        return
    where = f"this belongs into a manifest under {settings.bottles_dir}; from elsewhere a manifest may only lower"
    grants = (
        ("home", manifest.home == "host", "gives the job your home directory"),
        ("io_uring", manifest.io_uring is True, "gives the job io_uring"),
        ("unix", bool(manifest.unix), "gives the job host sockets"),
        ("guard", manifest.guard == "off", "turns the guard off"),
    )
    for key, granted, what in grants:
        if granted:
            raise manifest.places[key].error(what, where)
    if manifest.shutdown and SHUTDOWNS.index(manifest.shutdown) < SHUTDOWNS.index(settings.shutdown):
        what = f"{manifest.shutdown!r} is milder than the host's {settings.shutdown!r}"
        raise manifest.places["shutdown"].error(what, where)
    for key, value in manifest.limits.items():
        if value > LIMITS[key]:
            raise manifest.places["limits"].error(f"{key}: {value} is more than the host gives ({LIMITS[key]})", where)
    for placed in manifest.routes:
        if placed.route.auth_credential:
            what = f"route {placed.route.host!r} asks for the host's credential {placed.route.auth_credential!r}"
            raise placed.place.error(what, where)
    for budget in budgets(manifest):
        if budget.shadow:
            raise budget.place.error("shadow: true would record instead of cutting", where)


def budgets(manifest: Manifest) -> tuple[Budget, ...]:
    """All that one file defines."""
    return (*manifest.budget, *(b for of_agent in manifest.agents.values() for b in of_agent))


def only_lowers(manifest: Manifest, settings: Settings) -> None:
    """Check that a manifest from outside bottles_dir asks for no more than the host gives.

    :raises BadInput: naming the key and where it would be allowed.
    """
    if not manifest.trusted:
        for budget in budgets(manifest):
            _only_lowers(budget, settings)


def _only_lowers(budget: Budget, settings: Settings) -> None:
    where = f"this belongs into a manifest under {settings.bottles_dir}; from elsewhere a manifest may only lower"
    by_provider = {b.provider: b for b in settings.budget}
    host = by_provider.get(budget.provider, by_provider.get(values.ANY_PROVIDER))
    if host is not None and budget.tokens > host.tokens:
        what = f"{budget.tokens} tokens are more than the host gives ({host.tokens} per {host.per or 'month'})"
        raise budget.place.error(what, where)
