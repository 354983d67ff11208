#!/usr/bin/env bash
# Every test this machine can run, cheap ones first, in one session, with branch coverage of all processes.
# Without root only the tests that need none; with CI set, a skipped root test fails. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

selection="not kernel"
flags=(--leftovers)
if [ "$(id -u)" != 0 ]; then
    if [ -n "${CI:-}" ]; then
        echo "error: in CI the tests that need root must run" >&2
        echo "hint: sudo make test" >&2
        exit 4
    fi
    echo "test: not root: namespaces, nft, BPF and the whole product are left out; for them: sudo make test" >&2
    selection="$selection and not root and not e2e and not adversarial"
    flags=()
fi

# Services write their coverage as users of their own, who may not enter the checkout: a directory open to all.
data=$(mktemp -d /tmp/agentmon-coverage.XXXXXX)
chmod 1777 "$data"
trap 'rm -rf "$data"' EXIT
export COVERAGE_FILE=$data/coverage

status=0
.venv/bin/python -m coverage run -m pytest -q -m "$selection" "${flags[@]}" "$@" 2>&1 | tee "$data/output" || status=$?
.venv/bin/python -m coverage combine --quiet || true
.venv/bin/python -m coverage report --sort=cover >.cache/coverage.txt || true
sed -n 's/^TOTAL/coverage by branch, of all files (each is in .cache\/coverage.txt):/p' .cache/coverage.txt
grep -E '^=*.*(passed|failed|error).* in [0-9.]+s' "$data/output" | tail -n 1 || true # the line CI looks for, last
exit "$status"
