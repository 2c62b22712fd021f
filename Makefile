# `make demo` shows Kiln, `make test` checks it. Both set up the same .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STACK ?= kiln
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint envs/constraints.txt
BENCHES := encoder settings shard reading memory start plan_naip plan_sentinel2 dry_run merge products
export PATH := $(BIN):$(PATH)
unexport PYTHONPATH

.PHONY: help demo explore test test-explorer test-batch lint format bench bench-explorer aws-up aws-image aws-down rulegraph wheels lock clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: sample/.made ## make a sample archive and take it through every rule
	snakemake --cores $(CORES) --quiet reason host
	@snakemake --cores 1 --quiet all -- summary

explore: $(VENV)/.run ## a map of the sample run in the browser: search by looking (after make demo)
	python -m kiln explore --db results/sample/explorer --pictures config/config.yaml --open

test: $(VENV)/.test ## everything that must pass: tests, linters, dry runs of every config
	@$(MAKE) --no-print-directory lint
	pytest -n $(CORES) --dist loadgroup tests --ignore tests/explorer --ignore tests/batch

.PHONY: test-quick
test-quick: $(VENV)/.test ## unit tests alone: no Snakemake, no container, no browser
	pytest -n $(CORES) --dist loadgroup tests/unit

test-explorer: $(VENV)/.test ## the explorer in a real browser, pictures from a real WMS; installs both (Debian, root)
	@tests/explorer/install.sh
	KILN_SCREENSHOTS=$(CURDIR)/results/explorer-screenshots pytest tests/explorer
	@echo "screenshots: results/explorer-screenshots"

test-batch: $(VENV)/.test ## AWS Batch, run for real in containers on this machine; needs root and, but on Debian, podman
	pytest -rP --durations 25 tests/batch

lint: $(VENV)/.test ## ruff, snakefmt, snakemake --lint, mypy, codespell
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint
	mypy kiln scripts
	codespell *.md Makefile Snakefile config docs envs kiln profiles rules scripts tests

format: $(VENV)/.test ## rewrite files as the linters want them
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

bench: $(VENV)/.test ## what encoding, reading, whole shards, planning, dry runs, merging cost, against plain ways
	@broken=; for name in $(BENCHES); do \
	  echo "python -m tests.bench.$$name"; python -m tests.bench.$$name || broken="$$broken $$name"; \
	done; test -z "$$broken" || { echo "limits are broken in:$$broken"; exit 1; }

bench-explorer: $(VENV)/.test ## the explorer with a million chips
	@tests/explorer/install.sh
	python -m tests.bench.explorer

aws-up: $(VENV)/.run ## create in an AWS account what AWS Batch needs; BUCKET=, SET="CpuSpotMax=1024 ...", YES=1, STACK=
	python -m kiln aws up --stack $(STACK) $(if $(BUCKET),--bucket $(BUCKET)) $(if $(SET),--set $(SET)) $(if $(YES),--yes)

aws-image: $(VENV)/.run ## build this commit's image and push it there; DEVICE=cuda, ENGINE=podman, BASE=, TORCH_INDEX=, STACK=
	python -m kiln aws image --stack $(STACK) $(if $(DEVICE),--device $(DEVICE)) $(if $(ENGINE),--engine $(ENGINE)) $(addprefix --build-arg ,$(if $(BASE),BASE=$(BASE)) $(if $(TORCH_INDEX),TORCH_INDEX=$(TORCH_INDEX)))

aws-down: $(VENV)/.run ## delete it again, but for a bucket with data; DELETE_DATA=bucket, YES=1, STACK=
	python -m kiln aws down --stack $(STACK) $(if $(DELETE_DATA),--delete-data $(DELETE_DATA)) $(if $(YES),--yes)

rulegraph: sample/.made ## draw docs/workflow.svg, the rules of the sample run; needs Graphviz
	@command -v dot >/dev/null || { echo "make rulegraph needs dot of Graphviz; on Debian: apt-get install graphviz"; exit 1; }
	snakemake --cores $(CORES) --quiet all -- plan >/dev/null
	snakemake --cores 1 --quiet all --rulegraph dot -- all >results/rulegraph.dot
	@{ grep -v -e '->' -e '^}' results/rulegraph.dot; grep -e '->' results/rulegraph.dot | sort; echo '}'; } | tred | dot -Tsvg -Grankdir=LR -o docs/workflow.svg

wheels: envs/wheels/.made ## wheels for envs/Dockerfile, so that the image is built without an index
envs/wheels/.made: envs/requirements.txt envs/constraints.txt | $(VENV)/.run
	rm -f envs/wheels/*.whl
	$(BIN)/pip wheel --quiet --disable-pip-version-check -c envs/constraints.txt -w envs/wheels -r envs/requirements.txt
	@touch $@

lock: ## renew envs/constraints.txt (needs the network)
	bash envs/lock.sh

clean: ## remove results, samples and logs, keep .venv
	rm -rf results sample logs benchmarks .snakemake

sample/.made: | $(VENV)/.run
	python -m kiln.sample --out sample
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Kiln needs Python >= 3.11; say which: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: envs/requirements.txt envs/constraints.txt | $(VENV)/bin/python
	$(PIP) -r envs/requirements.txt
	$(PIP) --no-deps --no-build-isolation --editable . # the command kiln; rules and workers run from the checkout without it
	@$(BIN)/python envs/link_profiles.py
	@touch $@

$(VENV)/.test: envs/requirements-test.txt $(VENV)/.run
	$(PIP) -r envs/requirements.txt -r envs/requirements-test.txt
	@touch $@
