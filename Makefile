# `make` lists the targets; the scripts do the work, so that nothing here is only make's.
# ARGS goes to the program behind a target: make up ARGS="--port-base 17400", make test ARGS="tests/chat -k routing".

# Not PYTHON, which names to scripts/setup the interpreter to make .venv with.
PY := .venv/bin/python
ARGS ?=
ROUNDS ?= 50
CODE := libs services examples tools tests/common/test_table.py

# Modules are compiled once, not by every process again (1.7 s of a core each).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup up down status test lint format protos docs wheel bench-message bench-connections bench-headline bench-growth \
	bench-outbox bench-hub bench-webhook bench-attacks \
	soak fuzz clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv (Python 3.11), with everything in it, and the stubs
	@scripts/setup

up: setup ## set everything up, start the suite, play the walk, stay up (Ctrl-C stops it)
	@scripts/system-packages kafka
	@exec .venv/bin/deskwire up $(ARGS)

down: setup ## stop what `make up` or `deskwire up -d` started
	@.venv/bin/deskwire down

status: setup ## every process, address, health and data store
	@.venv/bin/deskwire status $(ARGS)

test: setup ## install what is missing, start private servers, run the tests
	@scripts/system-packages
	@exec $(PY) -m pytest -n auto $(ARGS)

lint: setup ## ruff, mypy, import rules, and the contract's lint, format and breaking check
	@scripts/lint $(CODE)

format: setup ## format the code
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

protos: setup ## generate the stubs again
	@$(PY) tools/protos.py generate

docs: setup ## bring the generated tables of docs/operations up to date
	@$(PY) tools/pages.py write

wheel: setup ## the wheel deskwire-protos, for integrators, in dist/
	@.tools/uv/bin/uv build --quiet --wheel --out-dir dist protos && ls dist/deskwire_protos-*.whl

bench-message: setup ## messages a second through gateway, chat and PostgreSQL, and Kafka beside it
	@scripts/system-packages
	@exec $(PY) tests/bench/message.py $(ARGS)

bench-connections: setup ## memory, connect rate and idle CPU of 100,000 WebSocket connections
	@scripts/system-packages
	@exec $(PY) tests/bench/connections.py $(ARGS)

bench-headline: setup ## 3,000 messages a second while 100,000 connections are up, for five minutes
	@scripts/system-packages
	@exec $(PY) tests/bench/headline.py $(ARGS)

bench-growth: setup ## CPU a message at 1,000, 10,000 and 100,000 connections, as a plot
	@scripts/system-packages
	@exec $(PY) tests/bench/growth.py $(ARGS)

bench-outbox: setup ## from a commit to Kafka through the outbox, and how fast a relay empties one
	@scripts/system-packages
	@exec $(PY) tests/bench/outbox.py $(ARGS)

bench-hub: setup ## deliveries and events a second through the hub, and what each costs it
	@scripts/system-packages
	@exec $(PY) tests/bench/hub.py $(ARGS)

bench-webhook: setup ## events a second that a webhook is sent, and what each costs the hub
	@scripts/system-packages
	@exec $(PY) tests/bench/webhook.py $(ARGS)

bench-attacks: setup ## what other tenants notice of floods and connect storms
	@scripts/system-packages
	@exec $(PY) tests/bench/attacks.py $(ARGS)

soak: setup ## kill -9 of everything under load 50 times each, and outages of a minute (ROUNDS=n for more)
	@scripts/system-packages
	@DESKWIRE_FAULT_ROUNDS=$(ROUNDS) DESKWIRE_FAULT_OUTAGE=60 $(PY) -m pytest tests/faults --timeout 36000 -v $(ARGS)

fuzz: setup ## a million random and mutated frames (ARGS="--frames N --seed S")
	@scripts/system-packages
	@exec $(PY) tests/faults/fuzz.py $(ARGS)

clean: ## remove what was generated; .venv and .deskwire stay
	rm -rf build dist protos/gen .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
