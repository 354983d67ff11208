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
from agentmon.guard.scopes import Scope, current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NamedTuple

    from agentmon.guard.state import State

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


class _Carrier:
    """Sits in multiprocessing's own configuration of processes; unpickled in the child, it installs the policy."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _install_in_child, (policy_text(),)


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


def policy_text() -> str:
    """What is in force for the caller, scopes included, for another process to install: JSON; "" without a guard."""
    import json

    from agentmon.guard import state

    now = state.in_force
    if now is None:
        return ""
    scopes = [list(scope.judge.texts) for scope in current()]
    value = {"allow": list(now.judge.texts), "mode": now.mode, "bind": now.bind, "scopes": scopes}
    return json.dumps(value, separators=(",", ":"))


def _install_in_child(text: str) -> None:
    install_text(text)


def install_text(text: str) -> None:
    """Install what `policy_text` said in another process; a guard that this process has already stays.

    :raises ValueError: for anything else.
    """
    import json

    from agentmon.guard import EgressGuard, state

    if not text or state.in_force is not None:
        return
    value = json.loads(text)
    EgressGuard.install(value["allow"], mode=value["mode"], bind=value["bind"])
    for texts in value["scopes"]:
        Scope(judging.of_texts(texts), "the scope of the parent process").__enter__()


def child_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """`env` (this process's, if None) with what a Python child needs to install the policy before its own code."""
    out = dict(os.environ if env is None else env)
    out[VARIABLE] = policy_text()
    paths = [p for p in out.get("PYTHONPATH", "").split(os.pathsep) if p and p not in (BOOTSTRAP, PACKAGES)]
    out["PYTHONPATH"] = os.pathsep.join([BOOTSTRAP, *paths, PACKAGES])
    return out


def of_event(event: str, args: tuple[Any, ...], now: State) -> Child:
    """What the audit event of a new process says of it."""
    argv, env = _argv_and_env(event, args)
    words = [os.fsdecode(word) for word in argv if isinstance(word, str | bytes | os.PathLike)]
    return Child(event, " ".join(words)[:500], _inherits(words, os.environ if env is None else env))


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
