"""Whether machine code in front of an address is a call, so that the address can be a return address. Pure.

Intel SDM volume 2, CALL: E8 rel32, FF /2; Arm ARM C6: BL, BLR and its authenticating forms.
"""

from __future__ import annotations

BEFORE = 8
"""Bytes in front of an address that are looked at; fewer are enough where a mapping begins."""

_X86 = ("x86_64", "i386")
_DIRECT = 5  # bytes of E8 rel32
_SIB, _DISP32 = 4, 5  # special numbers in the field rm and in the base of a SIB byte


def direct(before: bytes, machine: str) -> int | None:
    """How far from the address the call goes that `before` ends with, in bytes; None: it is no call to a fixed place.

    `machine` is that of uname(2).
    """
    if machine in _X86 and len(before) >= _DIRECT and before[-_DIRECT] == 0xE8:
        return int.from_bytes(before[-4:], "little", signed=True)
    word = int.from_bytes(before[-4:], "little")
    if machine == "aarch64" and len(before) >= 4 and word & 0xFC00_0000 == 0x9400_0000:
        words = word & 0x03FF_FFFF
        return (words - (words >> 25 << 26)) * 4 - 4
    return None


def indirect(before: bytes, machine: str) -> bool:
    """Whether `before` ends with a call through a register or memory. Unknown machines: it always may."""
    if machine in _X86:
        return any(_through(before[-size:]) == size for size in range(2, min(7, len(before)) + 1))
    if machine == "aarch64":
        word = int.from_bytes(before[-4:], "little")
        return word & 0xFEFF_F000 == 0xD63F_0000  # BLR; other bits: with a pointer authentication key
    return True


def _through(code: bytes) -> int:
    """Length in bytes of the FF /2 that `code` begins with; 0: it does not."""
    if len(code) < 2 or code[0] != 0xFF or code[1] >> 3 & 7 != 2:
        return 0
    mode, rm = code[1] >> 6, code[1] & 7
    if mode == 3:
        return 2
    sib = rm == _SIB
    if sib and len(code) < 3:
        return 0
    length = 3 if sib else 2
    if mode == 0:
        base = code[2] & 7 if sib else rm
        return length + 4 * (base == _DISP32)
    return length + (1 if mode == 1 else 4)
