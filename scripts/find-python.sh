#!/bin/sh
# Print "VERSION PATH" of the newest usable Python >= 3.11: released, with the modules that agentmon needs, and it
# really runs (a version switcher's shim or a broken build is passed over). Nothing is printed when there is none.
set -eu

PROBE='
import ctypes, ensurepip, ssl, sys, sysconfig, venv
v = sys.version_info
usable = v >= (3, 11) and v.releaselevel == "final" and not sysconfig.get_config_var("Py_GIL_DISABLED")
base = getattr(sys, "_base_executable", sys.executable)
print("%d.%d.%d %s" % (*v[:3], base)) if usable and sys.implementation.name == "cpython" else sys.exit(1)
'

homes=${HOME:-/root}
if [ -n "${SUDO_USER:-}" ]; then
    homes="$homes $(getent passwd "$SUDO_USER" | cut -d: -f6)"
fi

candidates() {
    ls -1 /usr/bin/python3.1[1-9] /usr/bin/python3 2>/dev/null || true
    printf '%s\n' "$PATH" | tr ':' '\n' | while read -r dir; do
        ls -1 "$dir"/python3.1[1-9] "$dir"/python3 2>/dev/null || true
    done
    for home in $homes; do
        ls -1 "$home"/.pyenv/versions/3.1[1-9]*/bin/python3 2>/dev/null || true
    done
}

# The same version twice: the first, so the distribution's, wins.
candidates | while read -r python; do
    timeout 20 "$python" -I -c "$PROBE" </dev/null 2>/dev/null || true
done | sort -s -V -r -k1,1 | head -n 1
