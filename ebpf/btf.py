"""Where the running kernel keeps a member of one of its structures, read from its own BTF; and what the machine's
registers are called. Documentation/bpf/btf.rst describes the format.

Only the optional programs need this: without BTF they are left out and everything else works.
"""

from __future__ import annotations

import contextlib
import platform
import struct
from collections.abc import Iterator
from pathlib import Path

from ebpf.errors import Missing

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_HEADER = struct.Struct("=HBBIIIII")  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
_MAGIC = 0xEB9F
_STRUCT = 4
_MEMBER = struct.Struct("=III")  # name, type, offset in bits (with kind_flag: the low 24 bits of it)

_REGISTERS = {  # struct pt_regs of arch/*/include/asm/ptrace.h: offsets in bytes of what a system call leaves there
    "x86_64": {"NR": 120, "IP": 128, "SP": 152},  # orig_ax, ip, sp
    "aarch64": {"NR": 64, "IP": 256, "SP": 248},  # regs[8], pc, sp
}

MEMBERS = {
    "AM_TASK_TGID": ("task_struct", "tgid"),
    "AM_TASK_FLAGS": ("task_struct", "flags"),
    "AM_TASK_SIGNAL": ("task_struct", "signal"),
    "AM_SIGNAL_LIVE": ("signal_struct", "live"),
    "AM_ADDR_UADDR": ("bpf_sock_addr_kern", "uaddr"),
}
"""Name of a definition in the BPF sources → structure and member."""
NEWER_MEMBERS = {
    # v6.7, "bpf: Propagate modified uaddrlen from cgroup sockaddr programs"
    "AM_ADDR_LEN": ("bpf_sock_addr_kern", "uaddrlen"),
    "AM_SOCKET_SK": ("socket", "sk"),
    "AM_SK_PROTOCOL": ("sock", "sk_protocol"),
    "AM_SK_TYPE": ("sock", "sk_type"),
    "AM_SK_NET": ("sock_common", "skc_net"),
    "AM_NET_COOKIE": ("net", "net_cookie"),
}
"""The same for members that the minimum kernel lacks: what needs one is not compiled without it."""


class Types:
    """A kernel's type information. `raw` is the content of /sys/kernel/btf/vmlinux.

    :raises Missing: it is not BTF of this machine's byte order, or cut short.
    """

    def __init__(self, raw: bytes) -> None:
        fields = _HEADER.unpack_from(raw.ljust(_HEADER.size, b"\0"))
        magic, _, _, header, type_at, type_bytes, text_at, text_bytes = fields
        end = max(_HEADER.size, header + max(type_at + type_bytes, text_at + text_bytes))
        if magic != _MAGIC or len(raw) < end:
            raise Missing("readable kernel BTF", "use a kernel built with CONFIG_DEBUG_INFO_BTF")
        self._types = raw[header + type_at : header + type_at + type_bytes]
        self._text = raw[header + text_at : header + text_at + text_bytes]

    def offset(self, structure: str, member: str) -> int:
        """Bytes from the start of `struct structure` to its direct member.

        :raises Missing: there is no such member.
        """
        wanted = self._name_at(member)
        for at, count, has_bits in self._structures(structure):
            for index in range(count):
                name, _, bits = _MEMBER.unpack_from(self._types, at + index * _MEMBER.size)
                if name in wanted:
                    return int((bits & 0xFFFFFF if has_bits else bits) // 8)
        raise Missing(f"struct {structure}.{member} in the kernel's BTF", "report the kernel version")

    def _structures(self, name: str) -> Iterator[tuple[int, int, bool]]:
        """(position of the members, their number, kind_flag) of what looks like `struct name`.

        Records have different lengths, so instead of walking 150,000 of them the name's number is looked for: four
        aligned bytes followed by what describes a structure."""
        for number in self._name_at(name):
            needle = struct.pack("=I", number)
            at = self._types.find(needle)
            while 0 <= at <= len(self._types) - 12:
                if at % 4 == 0:
                    (info,) = struct.unpack_from("=I", self._types, at + 4)
                    count = info & 0xFFFF if at + 12 + (info & 0xFFFF) * _MEMBER.size <= len(self._types) else 0
                    if info >> 24 & 0x1F == _STRUCT and count:
                        yield at + 12, count, bool(info >> 31)
                at = self._types.find(needle, at + 1)

    def _name_at(self, name: str) -> set[int]:
        found = self._text.find(b"\0" + name.encode() + b"\0")
        return {found + 1} if found >= 0 else set()


def definitions(machine: str | None = None, path: Path = VMLINUX) -> dict[str, int]:
    """Every number that the optional programs are compiled with.

    :raises Missing: no BTF, a member that it lacks (of MEMBERS), or a machine whose registers are not known here.
    """
    name = machine or platform.machine()
    registers = _REGISTERS.get(name)
    if registers is None:
        raise Missing(f"attribution on {name}", f"known machines: {', '.join(_REGISTERS)}")
    try:
        types = Types(path.read_bytes())
    except OSError as error:
        raise Missing(f"kernel BTF ({path}: {error.strerror})", "use a kernel with CONFIG_DEBUG_INFO_BTF") from error
    found = {key: types.offset(*member) for key, member in MEMBERS.items()}
    for key, member in NEWER_MEMBERS.items():
        with contextlib.suppress(Missing):
            found[key] = types.offset(*member)
    found |= {f"AM_REGS_{key}": value for key, value in registers.items()}
    if name == "x86_64":
        found["AM_TASK_STATUS"] = types.offset("task_struct", "thread_info") + types.offset("thread_info", "status")
    return found
