"""A value that does not show itself: no way of printing, formatting or serialising it gives it away."""

from __future__ import annotations

import hmac
from typing import Never, final

from agentmon.errors import BadInput

MAX_BYTES = 8192
_SHOWN = "Secret(…)"


@final
class Secret:
    """One line of visible ASCII and inner spaces, as an HTTP header can carry it (RFC 9110 section 5.5)."""

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: str) -> None:
        """:raises BadInput: it could not be a header's value; the message never quotes it."""
        if not value or len(value) > MAX_BYTES:
            raise BadInput(f"a credential has 1 to {MAX_BYTES} characters, this has {len(value)}", "look at its source")
        if value != value.strip() or any(not " " <= c <= "~" for c in value):
            what = "a credential is one line of printable ASCII without spaces around it, this is not"
            raise BadInput(what, "look at its source: more than one line, or another encoding?")
        self._value = value

    def reveal(self) -> str:
        """The value, for the one place that sends it on."""
        return self._value

    def __repr__(self) -> str:
        return _SHOWN

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(_SHOWN, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __reduce_ex__(self, protocol: object) -> Never:
        """:raises TypeError: pickle and copy would write it out."""
        raise TypeError("a Secret cannot be serialised")
