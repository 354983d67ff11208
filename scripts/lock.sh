#!/bin/sh
# Resolve requirements/*.in into pinned, hashed requirements/*.txt for every supported Python. Needs uv.
set -eu
cd "$(dirname "$0")/../requirements"

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --custom-compile-command scripts/lock.sh "$@"
}

if ! command -v uv >/dev/null; then
    echo "error: uv is not installed; only locking needs it" >&2
    echo "hint: python3 -m pip install uv" >&2
    exit 4
fi
compile "$@" --output-file dev.txt dev.in
compile --constraint dev.txt --output-file run.txt run.in # the same versions, fewer of them
