# Every target does its own set-up. What is installed and where: scripts/setup.sh says it before it does it.
PYTHON := .venv/bin/python
TORTURE := tests/contract/test_budget_races.py tests/root/test_proxy_race.py tests/contract/test_ledger_process.py -k "race or kill_nine"
BPF_SOURCES := $(wildcard ebpf/bpf/*.h ebpf/bpf/*.c)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit torture coverage test-kernels adversarial ci-demo lint bench docs uninstall

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 20

setup: ## install system packages, users and .venv (quick when there is nothing to do)
	@scripts/setup.sh

demo: setup ## the whole of agentmon on this machine, without an API key or the internet (root)
	@.venv/bin/agentmon demo

test: setup ## every test that this machine can run (root for most of them)
	@scripts/setup.sh tests
	@scripts/setup-firewalld.sh
	@scripts/test.sh

test-unit: setup ## the tests that need neither root nor network
	@$(PYTHON) -m pytest -q

adversarial: setup ## every attempt to get out, each layer alone; writes tests/adversarial/results.json (root)
	@[ "$$(id -u)" = 0 ] || { echo 'error: only root can make the namespaces that are attacked' >&2; \
		echo 'hint: sudo make adversarial' >&2; exit 4; }
	@AGENTMON_ADVERSARIAL=tests/adversarial/results.json $(PYTHON) -m pytest -q -m adversarial tests/adversarial

torture: setup ## a hundred rounds of the tests of races and of kills at random moments (root); ROUNDS=1000
	@AGENTMON_ROUNDS=$(or $(ROUNDS),100) $(PYTHON) -m pytest -q --timeout 3000 -m "not kernel" $(TORTURE)

coverage: setup ## every test, one after another, with branch coverage of all processes in .cache/coverage.txt (root)
	@COVERAGE=1 scripts/test.sh

ci-demo: setup ## a part of these tests as a CI job that may reach nothing, reported by step (root); docs/operations/ci.md
	@scripts/ci_demo.sh

lint: setup ## format, style, types, imports
	@$(PYTHON) -m ruff format --check --quiet .  || { echo 'hint: .venv/bin/ruff format .' >&2; exit 1; }
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy
	@.venv/bin/lint-imports --no-logo
	@$(PYTHON) -m pytest -q tests/unit/test_import_table.py
	@$(if $(BPF_SOURCES),.venv/bin/clang-format --dry-run --Werror $(BPF_SOURCES))

bench: setup ## measure against the goals and the peers (root); BENCH="--only proxy --quick" for a part
	@$(PYTHON) bench/run.py $(BENCH)

test-kernels: setup ## the BPF and nft tests on other kernels, in QEMU; KERNELS="6.1 --update" for a part (docs/testing.md)
	@scripts/setup-kernels.sh
	@$(PYTHON) -m tests.kernel $(KERNELS)

docs: setup ## write docs/reference and docs/man from the commands; check that links lead somewhere
	@$(PYTHON) scripts/cli_docs.py
	@$(PYTHON) scripts/check_docs.py

uninstall: ## remove all that set-up and agentmon put on this machine, system packages excepted (root)
	@scripts/uninstall.sh
