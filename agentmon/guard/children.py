"""Processes that this one starts: which of them keep the policy, and how a Python child is given it.

fork                     keeps everything: it is a copy
multiprocessing          every start method: the guard travels in the pickled process object (`_config`), before the
                         target and its arguments
subprocess, exec, spawn  a Python child started with `child_env()` installs the same policy before its own code;
                         every other child is reported, and is held by the kernel inside a bottle only

`child_env()` puts bootstrap/ on PYTHONPATH, where a sitecustomize module installs what AGENTMON_GUARD says. Python
started with -I, -E or -S does not read it, and is reported.
"""

from __future__ import annotations

import os
import sys
from collections import namedtuple

from agentmon.guard import judge as judging
from agentmon.guard.scopes import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NamedTuple

    from agentmon.guard.hook import Control

    class Child(NamedTuple):
        event: str
        command: str
        inherits: bool
else:
    Child = namedtuple("Child", "event command inherits")

VARIABLE = "AGENTMON_GUARD"
BOOTSTRAP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap")
PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KEPT = 64  # children remembered
EVENTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system")
_UNREAD = frozenset("IES")
_control: Control  # set once, by carried_by


class _Carrier:
    """Sits in multiprocessing's own configuration of processes; unpickled in the child, it installs the policy."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return install_text, (policy_text(),)


def importing(_: object, args: tuple[Any, ...]) -> None:
    """The audit event of an import: multiprocessing.process is complete when its reduction module is asked for."""
    if args[0] == "multiprocessing.reduction":
        equip_multiprocessing()


def equip_multiprocessing() -> None:
    """Let processes made from now on carry the policy, whatever their start method; nothing where it is not used."""
    process = sys.modules.get("multiprocessing.process")
    current_process = getattr(process, "current_process", None)
    if current_process is not None:
        current_process()._config.setdefault("agentmon_guard", _Carrier())


def carried_by(control: Control) -> None:
    """Where `policy_text` reads what is in force, and `install_text` puts it; told when the package is imported."""
    global _control
    _control = control


def policy_text() -> str:
    """What is in force for the caller, scopes included, for another process to install: JSON; "" without a guard."""
    import json

    now = _control.in_force()
    if now is None:
        return ""
    within = [list(judge.texts) for judge in (*now.within, *(scope.judge for scope in current()))]
    value: dict[str, object] = {"allow": list(now.judge.texts), "mode": now.mode, "bind": now.bind, "within": within}
    value["locked"] = _control.locked()
    return json.dumps(value, separators=(",", ":"))


def install_text(text: str) -> None:
    """Install what `policy_text` said in another process, its scopes for good; a guard that is there already stays.

    :raises ValueError: for anything else.
    """
    import json

    from agentmon.guard.state import State

    if not text or _control.in_force() is not None:
        return
    value = json.loads(text)
    within = tuple(judging.of_texts(texts) for texts in value["within"])
    lock = object() if value.get("locked") else None  # the token does not travel: nobody opens it in the child
    _control.install(State(value["mode"], judging.of_texts(value["allow"]), within, value["bind"], None, None), lock)
    equip_multiprocessing()


def child_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """`env` (this process's, if None) with what a Python child needs to install the policy before its own code."""
    out = dict(os.environ if env is None else env)
    out[VARIABLE] = policy_text()
    paths = [p for p in out.get("PYTHONPATH", "").split(os.pathsep) if p and p not in (BOOTSTRAP, PACKAGES)]
    out["PYTHONPATH"] = os.pathsep.join([BOOTSTRAP, *paths, PACKAGES])
    return out


def of_event(event: str, args: tuple[Any, ...]) -> Child:
    """What the audit event of a new process says of it."""
    argv, env = _argv_and_env(event, args)
    words = [os.fsdecode(word) for word in argv if isinstance(word, str | bytes | os.PathLike)]
    return Child(event, " ".join(words)[:500], _inherits(words, os.environ if env is None else env))


def same_start(before: Child, now: Child) -> bool:
    """Some interpreters tell of one subprocess twice: as subprocess.Popen, then as os.posix_spawn."""
    return (before.event, now.event) == ("subprocess.Popen", "os.posix_spawn") and before.command == now.command


def _argv_and_env(event: str, args: tuple[Any, ...]) -> tuple[list[Any], Any]:
    if event == "os.system":
        return [args[0]], None
    if event == "os.spawn":  # mode, path, args, env
        args = args[1:]
    given, env = args[1], args[3] if event == "subprocess.Popen" else args[2]
    return ([given] if isinstance(given, str | bytes | os.PathLike) else list(given)), env


def _inherits(words: list[str], env: Any) -> bool:
    """True for a Python that will read the bootstrap: by its name, options and environment."""
    if not words or not os.path.basename(words[0]).startswith("python"):
        return False
    for word in words[1:]:
        if not word.startswith("-") or word in ("-c", "-m", "-"):
            break
        if not word.startswith("--") and _UNREAD.intersection(word[1:]):
            return False
    get = env.get if hasattr(env, "get") else (lambda name, default="": default)
    return bool(get(VARIABLE, "")) and BOOTSTRAP in str(get("PYTHONPATH", "")).split(os.pathsep)
