#!/usr/bin/env bash
# Every test this machine can run. As root in two lanes at the same time (tests/lane.py): the whole product on this
# host, and the parts in a network namespace beside it; then the demo, alone. Arguments go to pytest, in one lane.
# COVERAGE=1: one lane, with branch coverage of all processes. Without root only what needs none; with CI set, a
# skipped root test fails.
set -euo pipefail
cd "$(dirname "$0")/.."

data=$(mktemp -d /tmp/agentmon-tests.XXXXXX)
trap 'rm -rf "$data"' EXIT
python=$PWD/.venv/bin/python
pytest=("$python" -m pytest -q)
demo=tests/e2e/test_demo.py

if [ "$(id -u)" != 0 ]; then
    if [ -n "${CI:-}" ]; then
        echo "error: in CI the tests that need root must run" >&2
        echo "hint: sudo make test" >&2
        exit 4
    fi
    echo "test: not root: namespaces, nft, BPF and the whole product are left out; for them: sudo make test" >&2
    exec "${pytest[@]}" -m "not kernel and not root and not e2e and not adversarial" "$@"
fi

# lane NAME COMMAND...: its output, each line with its name, and in a file of its own
lane() {
    local name=$1
    shift
    "$@" 2>&1 | tee "$data/$name" | sed -u "s/^/$name: /"
}


status=0
if [ -n "${COVERAGE:-}" ]; then
    # Services write theirs as users of their own, who may not enter the checkout: a directory open to all.
    chmod 1777 "$data"
    export COVERAGE_FILE=$data/coverage
    lane all "$python" -m coverage run -m "${pytest[@]:2}" -m "not kernel" --leftovers "$@" || status=$?
    "$python" -m coverage combine --quiet || true
    "$python" -m coverage report --sort=cover >.cache/coverage.txt || true
    sed -n 's/^TOTAL/coverage by branch, of all files (each is in .cache\/coverage.txt):/p' .cache/coverage.txt
elif [ $# -gt 0 ]; then
    lane all "${pytest[@]}" -m "not kernel" --leftovers "$@" || status=$?
else
    lane parts "$python" -m tests.lane --apart "${pytest[@]}" -m "root and not e2e" --leftovers &
    parts=$!
    lane whole "$python" -m tests.lane "${pytest[@]}" -m "not kernel and (e2e or not root)" --leftovers --ignore $demo ||
        status=$?
    wait $parts || status=$?
    lane demo "${pytest[@]}" -m e2e --leftovers $demo || status=$?
fi

# The line CI looks for, last: the lanes together.
find "$data" \( -name all -o -name parts -o -name whole -o -name demo \) -exec cat {} + | "$python" scripts/closing_line.py || status=1
exit "$status"
