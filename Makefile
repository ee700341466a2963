# The one command surface: each target is a line or two that calls cargo, pytest or the twin.
.DEFAULT_GOAL := help
.PHONY: help demo up down clean status build check delivery test soak template trainer-test trainer-image invoke invoke-all \
	denials sam-local postman openapi settings client-test redrive redrive-test reindex e2e cases faults bench

EVENT = events/status-healthz.json
# The whole workspace, or the dependencies would be compiled once more with other features.
E2E = cargo test -q --workspace
TWIN = cargo build -q -p twin --bins && target/debug/twin

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

demo: up ## Start the twin and run the main job on it, step by step
	@target/debug/twin demo

up: ## Start the local twin, or bring the running one up to date
	@echo "building the twin (minutes the first time)"
	@$(TWIN) up

down: ## Stop the twin and keep its state
	@$(TWIN) down

clean: ## Stop the twin and delete its state
	@$(TWIN) clean

status: ## Show the twin's components
	@$(TWIN) status

build: ## Build the functions for deployment (sam from .local/venv/sam, or your own)
	PATH="$(CURDIR)/.local/venv/sam/bin:$(CURDIR)/.local/venv/lambda/bin:$$PATH" SAM_CLI_TELEMETRY=0 sam build

check: ## Formatting, lints and unit tests; needs no twin
	cargo fmt --check
	cargo clippy -q --workspace --all-targets -- -D warnings
	cargo clippy -q --workspace --test '*' -- -D warnings
	cargo test -q --workspace

test: check delivery up template trainer-test invoke-all denials redrive-test postman client-test e2e ## Everything, against a twin that it starts and stops
	@target/debug/twin down

delivery: ## The index under S3's delivery at its worst, with three seeds; needs no twin
	$(E2E) --test delivery

soak: ## The index with fifty more seeds, the submit protocol within wider bounds, the trainer with many more kill points: hours
	$(E2E) --profile soak --test delivery --test protocol -- --ignored --nocapture
	.local/venv/trainer/bin/pytest -q trainer/tests -m soak

template: ## Checks of template.yaml, infra/cluster and events
	.local/venv/sam/bin/python -m pytest -q tests/template

trainer-test: ## The trainer's tests
	.local/venv/trainer/bin/ruff check trainer
	.local/venv/trainer/bin/ruff format --check trainer
	@# The processes of data loaders meet at sockets below the temporary folder, whose paths may have 107 characters.
	@folder=$$(mktemp -d -t tXXXXXX) && trap 'rm -rf "$$folder"' EXIT && \
		.local/venv/trainer/bin/pytest -q -n 3 --dist worksteal --basetemp "$$folder" trainer/tests

trainer-image: ## Build the trainer's image, and the one without CUDA (needs Docker)
	@docker version >/dev/null 2>&1 || { echo "no image is built: there is no Docker here, or its daemon does not answer" >&2; exit 1; }
	docker build --tag trainer:cuda trainer
	docker build --tag trainer:cpu --target cpu trainer

invoke: ## Send EVENT=events/<file>.json to its function, without Docker, against the running twin
	@.local/venv/sam/bin/python infra/local/invoke.py $(EVENT)

invoke-all: ## Send every event whose answer is fixed, and judge the answers
	@.local/venv/sam/bin/python infra/local/invoke.py --expected

denials: ## What each deployed role may do, and what not, asked on the running twin
	@.local/venv/sam/bin/python -m pytest -q tests/access

sam-local: ## Run one event per function in Docker with `sam local invoke`
	@.local/venv/sam/bin/python infra/local/sam_local.py

postman: ## Run the Postman collection against the running twin (needs Node.js)
	@tests/postman/run

openapi: ## Write openapi.json and the reference of the request's fields anew from the types
	cargo build -q --workspace --bin openapi
	target/debug/openapi .

settings: ## Write the schemas and tables of the trainer's settings anew from what it checks
	cd trainer && ../.local/venv/trainer/bin/python -m training.schema

client-test: .local/venv/client ## Generate a client from openapi.json and use it on the running twin
	.local/venv/client/bin/python -m pytest -q tests/client

.local/venv/client: infra/local/tools/client.txt
	@.local/venv/uv/bin/uv venv --quiet --clear --python python3 $@
	@.local/venv/uv/bin/uv pip install --quiet --require-hashes --python $@/bin/python3 --requirements $<
	@touch $@

e2e: ## End-to-end tests against the running twin; the last group needs it for itself
	$(E2E) --test jobs --test submitting --test reading --test tracing
	$(E2E) --test hostile --test manifests --test listing --test refusals --test foreign
	$(E2E) --test indexing
	$(E2E) --test training --test duplicates --test cases --test access --test outages -- --test-threads=1
	$(E2E) --test faults -- --nocapture

bench: ## What a cold start, a first request, the index and a look at the data cost, on the running twin
	cargo build -q --release -p empty
	cargo bench -q --workspace --profile dev --bench cold_start
	cargo bench -q --workspace --bench indexing
	.local/venv/trainer/bin/python trainer/bench.py

cases: ## Inputs after bug reports and reviews alone, on the running twin
	$(E2E) --test cases --test duplicates --test foreign --test refusals -- --test-threads=1
	.local/venv/sam/bin/python -m pytest -q tests/template/test_architecture.py
	.local/venv/trainer/bin/pytest -q trainer/tests/test_environment.py trainer/tests/test_reports.py

faults: ## The table of faults alone, on the running twin
	$(E2E) --test faults -- --nocapture

reindex: ## Compare the twin's index with its bucket (ARGS=--write repairs), or that of S3_URI=s3://bucket/runs on AWS
	@cargo build -q --workspace --bin reindex
	@$(if $(S3_URI),,. .local/env &&) target/debug/reindex $(ARGS) $(or $(S3_URI),"$$RUNS_BASE_URI")

redrive: ## Replay the twin's dead-letter queue, or that of STACK=<stack> on AWS
	@$(if $(STACK),,. .local/env &&) .local/venv/sam/bin/python infra/redrive.py $(or $(STACK),training)

redrive-test: ## What redrive does with messages, on the running twin
	.local/venv/sam/bin/python -m pytest -q tests/redrive
