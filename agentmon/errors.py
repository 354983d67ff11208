"""The errors that reach a person: what is wrong, what to do, and the exit status that says which kind."""

from __future__ import annotations


class AgentmonError(Exception):
    """Something a person must be told: `message` says what is wrong, `hint` what to do.

    `exit_code` follows the contract: 2 bad input, 3 refused, 4 the host lacks something,
    5 daemon not reachable, 1 anything else.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def kind(self) -> str:
        """The name used in JSON: `run --json-summary` puts it under error.class."""
        return type(self).__name__


class BadInput(AgentmonError):
    """A file, option or value that cannot be used; the message names file, line, key and what was expected."""

    exit_code = 2


class Refused(AgentmonError):
    """Refused by policy, budget or permission."""

    exit_code = 3


class HostLacks(AgentmonError):
    """The host lacks a feature, a package or a privilege; the hint says how to get it."""

    exit_code = 4


class DaemonUnreachable(AgentmonError):
    """Nobody answers on the control socket, or what answers is of another version."""

    exit_code = 5


BY_NAME: dict[str, type[AgentmonError]] = {
    c.__name__: c for c in (AgentmonError, BadInput, Refused, HostLacks, DaemonUnreachable)
}
