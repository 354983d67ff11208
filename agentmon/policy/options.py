"""What a command line may say about one bottle: `run`'s options as one frozen value, and their readers."""

from __future__ import annotations

from dataclasses import dataclass

from agentmon.errors import BadInput
from agentmon.policy.values import MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Options:
    """`uid` is who asks (0: root), `user_home` the directory that "~/" means for him.

    `env` is validated here, and otherwise the launcher's business: a policy is shown to people, an environment is not.
    """

    name: str = ""
    allow: tuple[str, ...] = ()
    provider: str = ""
    agent: str = ""
    budgets: tuple[str, ...] = ()  # "200000", "claude=200000"
    shutdown: str = ""
    observe: bool = False
    home: str = ""
    ro: tuple[str, ...] = ()
    rw: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # "K=V"
    uid: int = 0
    user_home: str = ""


def budget_option(text: str) -> tuple[str, int]:
    """(provider or "", tokens) of a `--budget`.

    :raises BadInput: for anything but N or PROVIDER=N.
    """
    provider, equals, amount = text.rpartition("=")
    digits = amount.replace("_", "")
    good = digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_TOKENS)) and int(digits) <= MAX_TOKENS
    if not good or (equals and not provider):
        raise BadInput(f"--budget {text!r}; expected TOKENS or PROVIDER=TOKENS", "for example --budget claude=200000")
    if int(digits) == 0:
        hint = "a budget is 1 token or more; for none of a provider's hosts at all: --allow '!api.anthropic.com'"
        raise BadInput(f"--budget {text!r} gives no token", hint)
    return provider, int(digits)


def environment(options: Options) -> dict[str, str]:
    """The variables of `--env`, the last one of a name winning.

    :raises BadInput: for one that is not K=V.
    """
    out = {}
    for text in options.env:
        name, equals, value = text.partition("=")
        if not equals or not name or "\0" in text:
            shown = name if equals else text
            raise BadInput(f"--env {shown!r}; expected NAME=VALUE", "for example --env TERM=xterm")
        out[name] = value
    return out
