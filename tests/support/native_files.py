"""Native files of known content, built by the tests: what the audit must and must not find in them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CONNECTS = """
#include <sys/socket.h>
int go(int fd, const struct sockaddr *to) { volatile int done = connect(fd, to, 16); return done; }
"""  # no tail call: it stands on the stack while it connects
HARMLESS = """
#include <string.h>
int go(const char *text) { return (int)strlen(text); }
"""
RAW = """
int go(int fd, const void *to) {
    long done;
    __asm__ volatile("syscall" : "=a"(done) : "0"(42L), "D"((long)fd), "S"(to), "d"(16L) : "rcx", "r11", "memory");
    return (int)done;
}
"""
COMPUTED = """
static long call(long nr, long a) {
    long done;
    __asm__ volatile("syscall" : "=a"(done) : "0"(nr), "D"(a) : "rcx", "r11", "memory");
    return done;
}
void _start(void) { volatile long nr = 231; call(nr, 0); for (;;) {} }
"""


def compiler() -> str:
    """The C compiler; set-up installs one."""
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("needs a C compiler: apt-get install gcc libc6-dev")
    return found


def build(source: str, out: Path, *flags: str) -> Path:
    """Compile `source` to `out`.

    :raises subprocess.CalledProcessError: the compiler refused.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    text = out.with_suffix(".c")
    text.write_text(source)
    subprocess.run([compiler(), "-O2", "-o", out, text, *flags], check=True, capture_output=True)
    text.unlink()
    return out


def library(source: str, out: Path, *flags: str) -> Path:
    """A shared library."""
    return build(source, out, "-shared", "-fPIC", *flags)


def program(source: str, out: Path, *flags: str) -> Path:
    """A static program whose main calls `go` of `source`."""
    return build(source + "\nint main(void) { return go(0, 0); }\n", out, "-static", *flags)


def without_section_headers(path: Path) -> Path:
    """As sstrip leaves it: e_shoff, e_shnum and e_shstrndx are zero. Elf64_Ehdr, elf(5)."""
    data = bytearray(path.read_bytes())
    data[40:48] = bytes(8)
    data[60:64] = bytes(4)
    path.write_bytes(data)
    return path
