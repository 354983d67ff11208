"""Commands of libnftables-json(5), as language.py writes them, compiled to nf_tables messages. Pure.

libnftables reads every chain and set of the host before it says one new rule; these messages cost the same whatever
else is there. Known is what netfilter says about bottles, nothing else: an expression that is not known is an error.
tests/root/test_nf_languages.py holds the result against what libnftables makes of the same commands.
Formats and numbers: linux/netfilter/nf_tables.h, linux/netfilter/nf_conntrack_common.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

from netfilter.batch import Members, attribute, nested
from netfilter.language import TABLE, Command, Part

NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE = 0, 2, 3, 5, 6, 8
NEWSET, DELSET, NEWSETELEM, DELSETELEM, NEWOBJ, DELOBJ = 9, 11, 12, 14, 18, 20
CREATE, APPEND = 0x400, 0x800
INET, NETDEV = 1, 5

_TABLE, _NAME, _ELEMENTS = 1, 2, 3
_ANONYMOUS, _CONSTANT, _INTERVAL, _MAP, _TIMEOUT, _CONCAT = 1, 2, 4, 8, 16, 128
_FLAGS = {"interval": _INTERVAL, "timeout": _TIMEOUT}
_HOST_ORDER = b"\0\4" + struct.pack("=I", 1)  # libnftables' note to itself, for whoever lists the set
_COUNTER = 1
_DESTINATION, _NFPROTO = 1, {"ip": 2, "ip6": 10}
_ACCEPT, _DROP, _GOTO = 1, 0, -4
_EQUAL, _DIFFERS = 0, 1
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4, "egress": 1}

# name → (nft's number of the type, bytes, host byte order)
_TYPES = {
    "ipv4_addr": (7, 4, False), "ipv6_addr": (8, 16, False), "inet_proto": (12, 1, False),
    "inet_service": (13, 2, False), "ifname": (41, 16, False), "icmpv6_type": (29, 1, False),
    "nf_proto": (2, 1, False), "integer": (4, 4, True), "fib_addrtype": (38, 4, True),
}  # fmt: skip
_WORDS: dict[str, dict[str, int]] = {
    "inet_proto": {"tcp": 6, "udp": 17},
    "nf_proto": {"ipv4": 2, "ipv6": 10},
    "fib_addrtype": {"local": 2, "broadcast": 3, "multicast": 5},
    "icmpv6_type": {
        "mld-listener-report": 131, "nd-router-solicit": 133, "nd-neighbor-solicit": 135,
        "nd-neighbor-advert": 136, "mld2-listener-report": 143,
    },
    "ct_state": {"established": 2, "related": 4, "new": 8},
}  # fmt: skip
# key → (number, type)
_META = {"length": (0, "integer"), "mark": (3, "integer"), "iifname": (6, "ifname"), "oifname": (7, "ifname"),
         "nfproto": (15, "nf_proto"), "l4proto": (16, "inet_proto")}  # fmt: skip
_IIFTYPE, _ETHERNET = 8, 1
_PROTOCOL = 1
_ETHERTYPES = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806}
_CT_STATE, _CT_MARK = 0, 3
# (protocol, field) → (base, offset, bytes, type, what the packet must be)
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2
_PAYLOAD = {
    ("ether", "saddr"): (_LINK, 6, 6, "", ("iiftype", _ETHERNET)),
    ("ip", "saddr"): (_NETWORK, 12, 4, "ipv4_addr", ("nfproto", 2)),
    ("ip", "daddr"): (_NETWORK, 16, 4, "ipv4_addr", ("nfproto", 2)),
    ("ip6", "saddr"): (_NETWORK, 8, 16, "ipv6_addr", ("nfproto", 10)),
    ("ip6", "daddr"): (_NETWORK, 24, 16, "ipv6_addr", ("nfproto", 10)),
    ("arp", "saddr ip"): (_NETWORK, 14, 4, "ipv4_addr", None),
    ("th", "dport"): (_TRANSPORT, 2, 2, "inet_service", None),
    ("tcp", "flags"): (_TRANSPORT, 13, 1, "", ("l4proto", 6)),
    ("icmpv6", "type"): (_TRANSPORT, 0, 1, "icmpv6_type", ("l4proto", 58)),
}  # fmt: skip


class Message(NamedTuple):
    """One message of subsystem nf_tables: kind, netlink flags, attributes, family."""

    kind: int
    flags: int
    body: bytes
    family: int = INET


def compiled(commands: Iterable[Command]) -> list[Message]:
    """One transaction.

    :raises KeyError, ValueError: a command that is not known here.
    """
    found: list[Message] = []
    for place, command in enumerate(commands, 1):
        if isinstance(command, Members):
            found += _members(command)
            continue
        messages = _COMPILED.get(command.text)
        if messages is None:
            messages = _messages(command, place)
            if len(messages) == 1:  # a set without a name has a number that says where in a transaction it stands
                _remember(command.text, messages)
        found += messages
    return found


_COMPILED: dict[str, list[Message]] = {}  # by text: what is said in a bottle is nearly the same in all of them
_MOST_COMPILED = 4096


def _remember(text: str, messages: list[Message]) -> None:
    if len(_COMPILED) >= _MOST_COMPILED:
        _COMPILED.clear()
    _COMPILED[text] = messages


def _messages(command: Part, place: int) -> list[Message]:
    ((verb, what),) = command.json.items()
    ((kind, fields),) = what.items()
    messages = _Rule(place).messages(fields) if kind == "rule" else _COMMANDS[verb, kind](fields)
    return [m._replace(family=NETDEV) for m in messages] if fields["family"] == "netdev" else messages


def _members(command: Members) -> Iterator[Message]:
    where = _where(TABLE, command.set_name)
    kind, flags = (NEWSETELEM, CREATE) if command.verb == "add" else (DELSETELEM, 0)
    for piece in command.pieces:
        yield Message(kind, flags, where + nested(_ELEMENTS, piece))


# ── tables, chains, sets, counters ──


def _where(table: str, name: str) -> bytes:
    return string(_TABLE, table) + string(_NAME, name)


def _of(fields: dict[str, Any]) -> bytes:
    return _where(fields["table"], fields["name"])


def _table(fields: dict[str, Any]) -> list[Message]:
    return [Message(NEWTABLE, CREATE, string(_TABLE, fields["name"]))]


def _no_table(fields: dict[str, Any]) -> list[Message]:
    return [Message(DELTABLE, 0, string(_TABLE, fields["name"]))]


def _chain(fields: dict[str, Any]) -> list[Message]:
    body = string(1, fields["table"]) + string(3, fields["name"])
    if "hook" in fields:
        hook = number(1, _HOOKS[fields["hook"]]) + attribute(2, struct.pack(">i", fields["prio"]))
        body += nested(4, hook + (string(3, fields["dev"]) if "dev" in fields else b""))
        body += number(5, _ACCEPT if fields["policy"] == "accept" else _DROP) + string(7, fields["type"])
    return [Message(NEWCHAIN, CREATE, body)]


def _no_chain(fields: dict[str, Any]) -> list[Message]:
    return [Message(DELCHAIN, 0, string(1, fields["table"]) + string(3, fields["name"]))]


def _flush_chain(fields: dict[str, Any]) -> list[Message]:
    return [Message(DELRULE, 0, _of(fields))]


def _set(fields: dict[str, Any]) -> list[Message]:
    types = fields["type"] if isinstance(fields["type"], list) else [fields["type"]]
    flags = sum(_FLAGS[flag] for flag in fields.get("flags", ()))
    if len(types) > 1 and flags & _INTERVAL:
        flags |= _CONCAT
    return [_new_set(_of(fields), types, flags, 1)]


def _new_set(where: bytes, types: list[str], flags: int, ident: int, size: int = 0) -> Message:
    kind = 0
    for name in types:
        kind = kind << 6 | _TYPES[name][0]
    lengths = [_TYPES[name][1] for name in types]
    padded = [(n + 3) & ~3 for n in lengths]
    length = sum(padded) if len(types) > 1 else lengths[0]
    described = number(1, size) if size else b""
    if flags & _CONCAT:
        described += nested(2, b"".join(nested(1, number(1, n)) for n in lengths))
    body = where + number(3, flags) + number(4, kind) + number(5, length) + number(10, ident)
    if lengths == [4] and _TYPES[types[0]][2]:
        body += attribute(13, _HOST_ORDER)
    return Message(NEWSET, CREATE, body + (nested(9, described) if described else b""))


def _no_set(fields: dict[str, Any]) -> list[Message]:
    return [Message(DELSET, 0, _of(fields))]


def _flush_set(fields: dict[str, Any]) -> list[Message]:
    return [Message(DELSETELEM, 0, _of(fields))]


def _counter(fields: dict[str, Any]) -> list[Message]:
    return [Message(NEWOBJ, CREATE, _of(fields) + number(3, _COUNTER) + nested(4, b""))]


def _no_counter(fields: dict[str, Any]) -> list[Message]:
    return [Message(DELOBJ, 0, _of(fields) + number(3, _COUNTER))]


def _devices(fields: dict[str, Any]) -> bytes:
    """Elements of a set of device names, or of a map from them to verdicts."""
    return _of(fields) + nested(_ELEMENTS, b"".join(nested(1, _device(member)) for member in fields["elem"]))


def _device(member: Any) -> bytes:
    name, verdict = member if isinstance(member, list) else (member, None)
    key = nested(1, attribute(1, _packed("ifname", name)))
    if verdict is None:
        return key
    ((word, said),) = verdict.items()
    code = attribute(1, struct.pack(">i", {"drop": _DROP, "goto": _GOTO}[word]))
    return key + nested(2, nested(2, code + (string(2, said["target"]) if said else b"")))


_COMMANDS: dict[tuple[str, str], Callable[[dict[str, Any]], list[Message]]] = {
    ("add", "table"): _table, ("delete", "table"): _no_table,
    ("add", "chain"): _chain, ("delete", "chain"): _no_chain, ("flush", "chain"): _flush_chain,
    ("add", "set"): _set, ("delete", "set"): _no_set, ("flush", "set"): _flush_set,
    ("add", "counter"): _counter, ("delete", "counter"): _no_counter,
    ("add", "element"): lambda fields: [Message(NEWSETELEM, CREATE, _devices(fields))],
    ("delete", "element"): lambda fields: [Message(DELSETELEM, 0, _devices(fields))],
}  # fmt: skip


# ── rules ──


@lru_cache(1 << 13)
def _expression(name: str, attributes: tuple[bytes, ...]) -> bytes:
    return nested(1, string(1, name) + nested(2, b"".join(attributes)))


class _Rule:
    """One rule being compiled: the sets without names that it needs, then itself."""

    def __init__(self, ident: int) -> None:
        self._ident = ident << 4  # of sets, unlike others of the transaction
        self._sets: list[Message] = []
        self._code: list[bytes] = []
        self._known: set[tuple[str, int]] = set()  # what the packet has been found to be
        self._table = ""
        self._netdev = False

    def messages(self, fields: dict[str, Any]) -> list[Message]:
        self._table = fields["table"]
        self._netdev = fields["family"] == "netdev"
        for part in fields["expr"]:
            ((kind, said),) = part.items()
            getattr(self, f"_{kind}")(said)
        body = _where(fields["table"], fields["chain"]) + nested(4, b"".join(self._code))
        return [*self._sets, Message(NEWRULE, CREATE | APPEND, body)]

    def _say(self, name: str, *attributes: bytes) -> None:
        self._code.append(_expression(name, attributes))

    def _must_be(self, key: str, value: int) -> None:
        if (key, value) in self._known:
            return
        self._known.add((key, value))
        if key == "protocol":
            self._say("meta", number(2, _PROTOCOL), number(1, 1))
            self._compare(_EQUAL, struct.pack(">H", value))
        elif key == "iiftype":
            self._say("meta", number(2, _IIFTYPE), number(1, 1))
            self._compare(_EQUAL, struct.pack("=H", value))
        else:
            self._say("meta", number(2, _META[key][0]), number(1, 1))
            self._compare(_EQUAL, bytes([value]))

    def _compare(self, op: int, data: bytes) -> None:
        self._say("cmp", number(1, 1), number(2, op), nested(3, attribute(1, data)))

    def _and_xor(self, mask: int, xor: int, width: int) -> None:
        values = (nested(k, attribute(1, v.to_bytes(width, sys.byteorder))) for k, v in ((4, mask), (5, xor)))
        self._say("bitwise", number(1, 1), number(2, 1), number(3, width), *values)

    def _load(self, what: dict[str, Any], register: int = 1) -> list[str]:
        """Put a value into a register; the types of what is there."""
        ((kind, said),) = what.items()
        if kind == "concat":
            types: list[str] = []
            place = 8  # registers of four bytes; the first is also register 1
            for part in said:
                self._depend(part)
            for part in said:
                (found,) = self._load(part, place)
                types.append(found)
                place += (_TYPES[found][1] + 3) // 4
            return types
        self._depend(what)
        if kind == "meta":
            key, name = _META[said["key"]]
            self._say("meta", number(2, key), number(1, register))
            return [name]
        if kind == "payload":
            base, offset, width, name, _ = _PAYLOAD[said["protocol"], said["field"]]
            self._say("payload", number(1, register), number(2, base), number(3, offset), number(4, width))
            return [name]
        if kind == "ct":
            self._say("ct", number(2, {"state": _CT_STATE, "mark": _CT_MARK}[said["key"]]), number(1, register))
            return ["integer"]
        if kind == "fib":
            self._say("fib", number(2, 3), number(3, 2), number(1, register))
            return ["fib_addrtype"]
        raise ValueError(f"no value is known by the name {kind}")

    def _depend(self, what: dict[str, Any]) -> None:
        ((kind, said),) = what.items()
        if kind != "payload":
            return
        needed = _PAYLOAD[said["protocol"], said["field"]][4]
        if self._netdev and said["protocol"] in _ETHERTYPES:
            self._must_be("protocol", _ETHERTYPES[said["protocol"]])
            return
        if said["protocol"] == "icmpv6":
            self._must_be("nfproto", 10)
        if needed is not None:
            self._must_be(*needed)

    def _match(self, said: dict[str, Any]) -> None:
        left, right, op = said["left"], said["right"], said["op"]
        if op == "in":  # connection states: any of them
            self._load(left)
            self._and_xor(sum(_WORDS["ct_state"][name] for name in right), 0, 4)
            self._compare(_DIFFERS, bytes(4))
            return
        differs = op == "!="
        if "&" in left:
            inner, mask = left["&"]
            width = 1 if "payload" in inner else 4
            self._load(inner)
            self._and_xor(mask, 0, width)
            self._compare(_DIFFERS if differs else _EQUAL, int(right).to_bytes(width, sys.byteorder))
            return
        types = self._load(left)
        if isinstance(right, str) and right.startswith("@"):
            self._look_up(right[1:], inverted=differs)
        elif isinstance(right, dict) and "set" in right:
            self._look_up(self._without_name(types, right["set"]), inverted=differs, ident=self._ident)
        else:
            self._compare(_DIFFERS if differs else _EQUAL, _value(types, right))
            if "meta" in left and not differs and left["meta"]["key"] in {"nfproto", "l4proto"}:
                self._known.add((left["meta"]["key"], _value(types, right)[0]))

    def _without_name(self, types: list[str], members: list[Any]) -> str:
        name = "__set%d"
        self._ident += 1
        where = _where(self._table, name)
        self._sets.append(_new_set(where, types, _ANONYMOUS | _CONSTANT, self._ident, len(members)))
        elements = (nested(1, nested(1, attribute(1, _value(types, member)))) for member in members)
        body = where + number(4, self._ident) + nested(_ELEMENTS, b"".join(elements))
        self._sets.append(Message(NEWSETELEM, CREATE, body))
        return name

    def _look_up(self, name: str, *, inverted: bool, ident: int = 0) -> None:
        more = [number(4, ident)] if ident else []
        more += [number(5, 1)] if inverted else []
        self._say("lookup", string(1, name), number(2, 1), *more)

    def _mangle(self, said: dict[str, Any]) -> None:
        ((kind, key),) = said["key"].items()
        wide, bits = said["value"]["|"]
        mask = 0xFFFF_FFFF & ~bits
        if "&" in wide:
            wide, kept = wide["&"]
            mask &= kept
        self._load(wide)
        self._and_xor(mask, bits, 4)
        if kind == "meta":
            self._say("meta", number(2, _META[key["key"]][0]), number(3, 1))
        else:
            self._say("ct", number(2, _CT_MARK), number(4, 1))

    def _counter(self, name: str) -> None:
        self._say("objref", number(1, _COUNTER), string(2, name))

    def _verdict(self, code: int, chain: str = "") -> None:
        said = attribute(1, struct.pack(">i", code)) + (string(2, chain) if chain else b"")
        self._say("immediate", number(1, 0), nested(2, nested(2, said)))

    def _goto(self, said: dict[str, Any]) -> None:
        self._verdict(_GOTO, said["target"])

    def _dnat(self, said: dict[str, Any]) -> None:
        family = said["family"]
        data = attribute(1, ip_address(said["addr"]).packed)
        self._say("immediate", number(1, 1), nested(2, data))
        self._say("nat", number(1, _DESTINATION), number(2, _NFPROTO[family]), number(3, 1))

    def _accept(self, _: None) -> None:
        self._verdict(_ACCEPT)

    def _drop(self, _: None) -> None:
        self._verdict(_DROP)

    def _reject(self, said: dict[str, Any]) -> None:
        if said["type"] == "tcp reset":
            self._must_be("l4proto", 6)
            self._say("reject", number(1, 1), attribute(2, b"\0"))
        else:
            self._say("reject", number(1, 2), attribute(2, b"\x03"))  # icmpx admin-prohibited


# ── values ──


def _value(types: list[str], said: Any) -> bytes:
    if isinstance(said, dict):
        parts = zip(types, said["concat"], strict=True)
        return b"".join((packed := _packed(name, part)) + bytes(-len(packed) % 4) for name, part in parts)
    return _packed(types[0], said)


def _packed(name: str, said: Any) -> bytes:
    if isinstance(said, str):
        if name in _WORDS:
            said = _WORDS[name][said]
        elif name == "ifname":
            return said.encode().ljust(16, b"\0")
        elif name in {"ipv4_addr", "ipv6_addr"}:
            return ip_address(said).packed
        else:
            return bytes.fromhex(said.replace(":", ""))  # a MAC address
    _, width, host_order = _TYPES[name]
    return int(said).to_bytes(width, sys.byteorder if host_order else "big")


@lru_cache(1 << 12)
def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits in network order."""
    return attribute(kind, struct.pack(">I", value))


@lru_cache(1 << 14)
def string(kind: int, text: str) -> bytes:
    """An attribute of a C string."""
    return attribute(kind, text.encode() + b"\0")
