# Every entry of this file runs on a fresh machine with git, make, Python 3.11+ and a package index;
# what builds the artifact wants Python 3.13, which uv may get, and what says so wants npm. uv is put
# into .tools/ from requirements/uv.txt, the environments into .venv/ and .tools/NAME/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

UV := .tools/uv/bin/uv
PYTHON := .venv/bin/python
SAM := .tools/sam/bin
CHECKOV := .tools/checkov/bin
SERVERS := .tools/servers

TEMPLATES := template.yaml $(wildcard infra/*.yaml)

# Any interpreter that starts and is new enough to run uv's installer.
BOOTSTRAP = for p in python3.13 python3 python3.14 python3.12 python3.11 /usr/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit 0; }; \
	done; echo "No Python 3.11 or newer on PATH: install one." >&2; exit 1

# Which stack the commands for AWS are for: make deploy ENV=prod. samconfig.toml has its name and, if
# it came from a guided deployment, its region: that writes the name beside its own parameters.
ENV := default
STACK = $(or $(shell "$$($(BOOTSTRAP))" -c 'import sys, tomllib; \
	of = tomllib.load(open("samconfig.toml", "rb")).get(sys.argv[1], {}); \
	said = [of.get(command, {}).get("parameters", {}).get("stack_name") for command in ("deploy", "global")]; \
	print(said[0] or said[1] or "")' $(ENV)),$(error samconfig.toml knows no stack of ENV=$(ENV)))

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: .venv/installed ## a database that refuses connections becomes well again
	@PYTHONPATH=functions:. $(PYTHON) -m infra.local.demo

.PHONY: test
test: .venv/installed ## unit and integration tests on an embedded PostgreSQL, and what the templates would make
	$(PYTHON) -m pytest tests/unit tests/template tests/integration

.PHONY: matrix
matrix: .venv/installed $(SERVERS)/installed ## the integration tests on PostgreSQL 13 to 18 (needs npm)
	$(PYTHON) -m pytest tests/integration --servers=$(SERVERS)

.PHONY: faults
faults: .venv/installed ## tests too heavy for every run: a thousand victims, query texts of 1 MB
	$(PYTHON) -m pytest tests/faults

.PHONY: storm
storm: .venv/installed $(SERVERS)/installed ## [ARGS="--majors 16 --hair-trigger"]: 200,000 healthy transactions a major while two reapers kill leaks (needs npm)
	PYTHONPATH=functions:. $(PYTHON) -m tests.storm $(SERVERS) $(ARGS)

.PHONY: storm-short
storm-short: .venv/installed $(SERVERS)/installed ## the storm with 10,000 transactions on the oldest and the newest major (needs npm)
	$(PYTHON) -m pytest tests/storm --servers=$(SERVERS)

.PHONY: check
check: .venv/installed .tools/sam/installed .tools/checkov/installed ## format, lint, types, the policy's schema, the certificates, the templates
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	PYTHONPATH=functions:. $(PYTHON) -m infra.policy_schema --check
	PYTHONPATH=functions:. $(PYTHON) -m infra.trust_store --check
	$(SAM)/cfn-lint --append-rules infra/cfn_rules -t $(TEMPLATES)
	$(SAM)/sam validate --lint
	$(CHECKOV)/checkov --skip-download --framework cloudformation --compact --quiet \
		$(addprefix --file ,$(TEMPLATES))

.PHONY: format
format: .venv/installed ## format and mend what ruff can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

.PHONY: schema
schema: .venv/installed ## write the policy's JSON Schema anew, from its types
	PYTHONPATH=functions:. $(PYTHON) -m infra.policy_schema --write

.PHONY: certs
certs: .venv/installed ## [FROM="file-or-URL ..." ORIGIN="text"]: write AWS's certificate authorities anew
	PYTHONPATH=functions:. $(PYTHON) -m infra.trust_store --write \
		$(if $(FROM),--from $(FROM)) $(if $(ORIGIN),--origin "$(ORIGIN)")

.PHONY: replay
replay: .venv/installed ## SNAPSHOT=recording.json [POLICY=file] [AGAINST=file]: decide again, offline
	@PYTHONPATH=functions:. $(PYTHON) -m infra.replay $(SNAPSHOT) "$(POLICY)" \
		$(if $(AGAINST),--against "$(AGAINST)")

.PHONY: recordings
recordings: .venv/installed $(SERVERS)/installed ## record tests/recordings again on PostgreSQL 13 to 18 (needs npm)
	PYTHONPATH=functions:. $(PYTHON) -m tests.recordings $(SERVERS)

.PHONY: summaries
summaries: .venv/installed ## write tests/summaries and the README's pictures anew
	PYTHONPATH=functions:. $(PYTHON) -m tests.summaries

.PHONY: mutants
mutants: .tools/mutants/installed $(SERVERS)/installed ## break engine and guard in a thousand ways: do the tests see it? (needs npm)
	@rm -rf .tools/mutation && mkdir -p .tools/mutation/functions
	@cp -r functions/session_reaper infra tests events README.md pyproject.toml .tools/mutation
	cd .tools/mutation && ../mutants/bin/mutmut run
	cd .tools/mutation && ../mutants/bin/mutmut results
	PYTHONPATH=functions:. $(PYTHON) -m tests.mutants $(SERVERS)

.PHONY: build
build: .venv/installed .tools/sam/installed ## what is deployed, under .aws-sam/build/: sam build with the tools' own Python
	PATH="$(abspath $(SAM)):$$PATH" $(SAM)/sam build

.PHONY: deploy
deploy: build ## [ENV=staging|prod] [GUIDED=yes] [ARGS=…]: deploy, after a look at the changes
	$(SAM)/sam deploy --config-env $(ENV) $(if $(GUIDED),--guided,--stack-name $(STACK)) $(ARGS)

.PHONY: check-remote
check-remote: .tools/sam/installed ## [ENV=…]: {"check": true} in AWS: does it reach its databases, what is to be mended
	$(SAM)/sam remote invoke SessionReaper --config-env $(ENV) --stack-name $(STACK) \
		--event-file events/manual_check.json

.PHONY: logs
logs: .tools/sam/installed ## [ENV=…]: follow the log in AWS
	$(SAM)/sam logs --config-env $(ENV) --stack-name $(STACK) --name SessionReaper --tail

# One line of a recipe, and its end.
define share
	$(SAM)/sam remote test-event put SessionReaper --config-env $(ENV) --stack-name $(STACK) \
		--name $(basename $(notdir $(1))) --file $(1) --force

endef

.PHONY: events
events: .tools/sam/installed ## [ENV=…]: events/ into the console, as test events that everybody there can use
	$(foreach event,$(sort $(wildcard events/*.json)),$(call share,$(event)))

.PHONY: artifact
artifact: build ## what was built, under the real Lambda runtime client
	$(PYTHON) -m pytest tests/artifact

.PHONY: bench
bench: build $(SERVERS)/installed ## this function beside the article's fifteen lines, and the two below (needs npm)
	PYTHONPATH=functions:. $(PYTHON) -m tests.benchmarks $(SERVERS)
	$(MAKE) bench-kills bench-window

.PHONY: bench-kills
bench-kills: .venv/installed $(SERVERS)/installed ## kills of 10, 100 and 1,000 sessions at 0, 1 and 10 ms of round trip (needs npm)
	PYTHONPATH=functions:. $(PYTHON) -m tests.benchmarks.kills $(SERVERS)

.PHONY: bench-window
bench-window: .venv/installed $(SERVERS)/installed ## how long a session can change after the guard has read it (needs npm)
	PYTHONPATH=functions:. $(PYTHON) -m tests.benchmarks.window $(SERVERS)

.PHONY: sizes
sizes: build $(SERVERS)/installed ## what Lambda's memory buys and costs (needs npm, and root for control groups)
	PYTHONPATH=functions:. $(PYTHON) -m tests.benchmarks.sizes $(SERVERS)

.PHONY: lock
lock: $(UV) ## resolve pyproject.toml anew into the hashed requirement files
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --upgrade \
		--group dev pyproject.toml -o requirements/dev.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 \
		-c requirements/dev.txt pyproject.toml -o functions/requirements.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 \
		-c requirements/dev.txt --group mutants pyproject.toml -o requirements/mutants.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --upgrade \
		--group sam -o requirements/sam.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --upgrade \
		--group checkov -o requirements/checkov.txt

.PHONY: clean
clean: ## remove all that was installed and built here
	rm -rf .venv .tools .aws-sam .mypy_cache .ruff_cache .pytest_cache

$(UV): requirements/uv.txt
	@rm -rf .tools/uv
	@python=$$($(BOOTSTRAP)); "$$python" -m venv .tools/uv || { \
		echo "$$python cannot make a virtual environment: install its venv module (Debian: python3-venv)." >&2; \
		rm -rf .tools/uv; exit 1; }
	@.tools/uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

# The deployed runtime's interpreter if it is here or uv can get it; else what is here, said aloud.
define environment
	@$(UV) venv -q --clear --python 3.13 $(1) 2>/dev/null || { \
		python=$$($(BOOTSTRAP)); $(UV) venv -q --clear --python "$$(command -v $$python)" $(1); \
		echo "NOTE: Python 3.13, the deployed runtime's, is not here: using $$($(1)/bin/python -V)." >&2; }
	@$(UV) pip install -q --python $(1)/bin/python --require-hashes -r $(2)
	@touch $@
endef

.venv/installed: $(UV) requirements/dev.txt
	$(call environment,.venv,requirements/dev.txt)

.tools/mutants/installed: $(UV) requirements/mutants.txt
	$(call environment,.tools/mutants,requirements/mutants.txt)

.tools/sam/installed: $(UV) requirements/sam.txt
	$(call environment,.tools/sam,requirements/sam.txt)

.tools/checkov/installed: $(UV) requirements/checkov.txt
	$(call environment,.tools/checkov,requirements/checkov.txt)

$(SERVERS)/installed: infra/local/servers/package.json infra/local/servers/package-lock.json
	@mkdir -p $(SERVERS)
	@cp infra/local/servers/package.json infra/local/servers/package-lock.json $(SERVERS)
	cd $(SERVERS) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@
