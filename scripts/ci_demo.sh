#!/bin/sh
# This project's own test job under CI mode: its tests may reach nothing, and a step that does is refused and told.
# Usage: scripts/ci_demo.sh [TEST...]; needs root. The reports are in .cache/ci.
set -eu
cd "$(dirname "$0")/.."
. scripts/host.sh
[ "$(id -u)" = 0 ] || fail "only root can hold a job's steps" "sudo make ci-demo"
agentmon=.venv/bin/agentmon
[ $# -gt 0 ] || set -- tests/unit/test_policy_rules.py tests/unit/test_channel.py tests/unit/test_resolver_core.py

"$agentmon" ci start --name own --enforce --baseline examples/ci/egress.yml
trap '"$agentmon" ci stop --name own >/dev/null 2>&1 || true' EXIT
"$agentmon" ci exec --name own --step tests -- .venv/bin/python -m pytest -q "$@"
"$agentmon" ci exec --name own --step 'not in the baseline' -- curl -sS -m 5 -o /dev/null https://new.example/ || say "refused, as it should be"
"$agentmon" ci stop --name own
status=0
env -u GITHUB_STEP_SUMMARY "$agentmon" ci report --name own --artefacts .cache/ci || status=$?
[ "$status" = 1 ] || fail "the report ends with $status, and something new was tried: 1 was expected" "see .cache/ci/report.md"
say "the report says so, and fails the job: .cache/ci/report.html"
