"""Which names led to which addresses: learned by asking the same question as the program, bounded.

An audit event comes before a lookup and never shows its answer. So a name that has been approved is looked up here
first, in the thread that asks (asyncio asks in an executor: the loop does not wait), with the same family; within
FRESH_NS it is not asked again. Where a server gives ever other addresses, the program's answer may differ: a connect
to an unknown address asks the last few names once more (`chase`) before it is refused.
"""

from __future__ import annotations

import _socket
from _thread import RLock
from time import monotonic_ns

from agentmon.guard.targets import addr16, literal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agentmon.guard.targets import Address

FRESH_NS = 60 * 10**9
CHASE_NS = 10**9  # a name is not chased more often
CHASED = 4
MAX_ADDRESSES = 4096
MAX_NAMES = 4096
MAX_NAMES_OF_ADDRESS = 256


def _look_up(name: str, family: int) -> list[str]:
    found = _socket.getaddrinfo(name, None, family, _socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Names:
    """The map, for all threads. `look_up(name, family)` gives texts of addresses, or raises OSError."""

    __slots__ = ("_asked", "_by_address", "_chased", "_lock", "_look_up")

    def __init__(self, look_up: Callable[[str, int], list[str]] = _look_up) -> None:
        self._look_up = look_up
        self._lock = RLock()  # a signal handler or a finalizer may look something up while its thread holds it
        self._by_address: dict[bytes, dict[str, None]] = {}
        # (name, family) → monotonic_ns of the last lookup and what it gave; newest last
        self._asked: dict[tuple[str, int], tuple[int, tuple[Address, ...]]] = {}
        self._chased: dict[tuple[str, int], int] = {}

    def fresh(self, name: str, family: int) -> bool:
        """Was `name` looked up so lately that asking again would tell nothing?"""
        asked = self._asked.get((name, family))
        return asked is not None and monotonic_ns() - asked[0] < FRESH_NS

    def of(self, address: Address) -> tuple[str, ...]:
        """Names that led to `address`, newest last."""
        return tuple(self._by_address.get(addr16(address), ()))

    def addresses(self, name: str, family: int) -> tuple[Address, ...]:
        """What `name` leads to: the last answer while it is fresh. Empty where it does not resolve."""
        asked = self._asked.get((name, family))
        if asked is not None and asked[1] and monotonic_ns() - asked[0] < FRESH_NS:
            return asked[1]
        return self.learn(name, family)

    def answer(self, name: str, family: int) -> tuple[Address, ...]:
        """The last answer, empty while it is awaited."""
        asked = self._asked.get((name, family))
        return () if asked is None else asked[1]

    def learn(self, name: str, family: int) -> tuple[Address, ...]:
        """Look `name` up now. Empty where it does not resolve: whoever asked learns that from his own lookup."""
        self._note(name, family, ())  # first: the lookup raises an audit event of its own
        try:
            texts = self._look_up(name, family)
        except (OSError, UnicodeError):
            with self._lock:
                self._asked.pop((name, family), None)
            return ()
        addresses = tuple(found for text in texts if (found := literal(text)) is not None)
        self._note(name, family, addresses)
        return addresses

    def chase(self) -> bool:
        """Ask the last few names once more; False where all of them were chased a moment ago."""
        now = monotonic_ns()
        with self._lock:
            last = list(self._asked)[-CHASED:]
            due = [key for key in last if now - self._chased.get(key, -CHASE_NS) >= CHASE_NS]
            self._chased = {key: now if key in due else self._chased[key] for key in last}
        for name, family in due:
            self.learn(name, family)
        return bool(due)

    def forget_lock(self) -> None:
        """In a forked child: a lock that another thread held stays held for ever."""
        self._lock = RLock()

    def _note(self, name: str, family: int, addresses: tuple[Address, ...]) -> None:
        with self._lock:
            self._asked.pop((name, family), None)
            self._asked[name, family] = monotonic_ns(), addresses
            if len(self._asked) > MAX_NAMES:
                del self._asked[next(iter(self._asked))]
            for address in addresses:
                self._put(addr16(address), name)

    def _put(self, key: bytes, name: str) -> None:
        names = self._by_address.pop(key, {})
        names.pop(name, None)
        names[name] = None
        if len(names) > MAX_NAMES_OF_ADDRESS:
            del names[next(iter(names))]
        self._by_address[key] = names
        if len(self._by_address) > MAX_ADDRESSES:
            del self._by_address[next(iter(self._by_address))]
