# `make demo` runs Kiln on a sample, `make test` checks it. Both first set up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STACK ?= kiln
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
# Tests of a file share a process, since they share finished runs. The longest files are named first.
PARALLEL ?= -n $(CORES) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint envs/constraints.txt
BENCHES := encoder settings shard reading memory start plan_naip plan_sentinel2 dry_run merge products
export PATH := $(BIN):$(PATH)
unexport PYTHONPATH PYTHONDONTWRITEBYTECODE

.PHONY: fuzz mutation network
.PHONY: help demo explore test test-explorer test-batch lint format bench bench-explorer image aws-up aws-image aws-down rulegraph wheels lock clean
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: sample/.made ## make a sample archive and run every rule on it
	snakemake --cores $(CORES) --logger kiln
	@snakemake --cores 1 --quiet all -- summary

explore: $(VENV)/.run ## open the map of the sample run in the browser (after make demo)
	python -m kiln explore --db results/sample/explorer --pictures config/config.yaml --open

test: $(VENV)/.test ## run linters, tests, and dry runs of every config
	@$(MAKE) --no-print-directory lint
	pytest $(PARALLEL) tests/workflow tests/packaging tests/network tests/unit

.PHONY: test-quick
test-quick: $(VENV)/.test ## run the unit tests only: no Snakemake, containers or browser
	pytest $(PARALLEL) tests/unit

test-explorer: $(VENV)/.test ## test the explorer in a browser with a WMS; installs both if missing (Debian, root)
	@tests/explorer/install.sh
	KILN_SCREENSHOTS=$(CURDIR)/results/explorer-screenshots pytest tests/explorer
	@echo "screenshots: results/explorer-screenshots"

test-batch: $(VENV)/.test ## test AWS Batch, simulated with containers on this machine; needs root, and podman if not on Debian
	pytest -rP --durations 25 tests/batch

network: $(VENV)/.test ## embed 600 times through a network that resets, cuts, stalls and refuses, by seed: never a wrong result
	python -m tests.bench.network

fuzz: $(VENV)/.test ## read 635 damaged inputs of every kind: no traceback, no hang, no other result without a word
	python -m tests.fuzz

mutation: $(VENV)/.test ## make small mistakes in guards and core arithmetic, one at a time: the tests must notice each
	python -m tests.mutation

lint: $(VENV)/.test ## run ruff, snakefmt, snakemake --lint, mypy, zizmor, codespell
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules workflow
	snakemake --lint
	mypy kiln scripts snakemake_logger_plugin_kiln rules/code_folder.py
	zizmor --offline --quiet .github
	codespell *.md Makefile Snakefile .github config docs envs kiln profiles rules scripts snakemake_logger_plugin_kiln tests

format: $(VENV)/.test ## format the code and apply the linters' fixes
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules workflow

bench: $(VENV)/.test ## measure encoding, reading, shards, planning, dry runs and merging against simple ways
	@broken=; for name in $(BENCHES); do \
	  echo "python -m tests.bench.$$name"; python -m tests.bench.$$name || broken="$$broken $$name"; \
	done; test -z "$$broken" || { echo "limits exceeded in:$$broken"; exit 1; }

bench-explorer: $(VENV)/.test ## measure the explorer with a million chips
	@tests/explorer/install.sh
	python -m tests.bench.explorer

aws-up: $(VENV)/.run ## create the AWS resources that AWS Batch needs; BUCKET=, SET="CpuSpotMax=1024 ...", YES=1, STACK=
	python -m kiln aws up --stack $(STACK) $(if $(BUCKET),--bucket $(BUCKET)) $(if $(SET),--set $(SET)) $(if $(YES),--yes)

aws-image: $(VENV)/.run ## build this commit's image and push it to AWS; DEVICE=cuda, ENGINE=podman, BASE=, TORCH_INDEX=, STACK=
	python -m kiln aws image --stack $(STACK) $(if $(DEVICE),--device $(DEVICE)) $(if $(ENGINE),--engine $(ENGINE)) $(addprefix --build-arg ,$(if $(BASE),BASE=$(BASE)) $(if $(TORCH_INDEX),TORCH_INDEX=$(TORCH_INDEX)))

aws-down: $(VENV)/.run ## delete the AWS resources, except a bucket with data; DELETE_DATA=bucket, YES=1, STACK=
	python -m kiln aws down --stack $(STACK) $(if $(DELETE_DATA),--delete-data $(DELETE_DATA)) $(if $(YES),--yes)

image: ## build envs/Dockerfile on this machine, without AWS; IMAGE=name:tag, DEVICE=cuda, ENGINE=podman, BASE=, TORCH_INDEX=
	$(or $(ENGINE),docker) build --file envs/Dockerfile --tag $(or $(IMAGE),kiln) \
	  --build-arg REVISION=$(shell git rev-parse HEAD) \
	  $(foreach name,DEVICE VERSION BASE TORCH_INDEX,$(if $($(name)),--build-arg $(name)=$($(name)))) .

rulegraph: sample/.made ## draw docs/workflow.svg, the rules of the sample run; needs Graphviz
	@command -v dot >/dev/null || { echo "make rulegraph needs dot of Graphviz; on Debian: apt-get install graphviz"; exit 1; }
	snakemake --cores $(CORES) --quiet all -- plan >/dev/null
	snakemake --cores 1 --quiet all --rulegraph dot -- all >results/rulegraph.dot
	@{ grep -v -e '->' -e '^}' results/rulegraph.dot; grep -e '->' results/rulegraph.dot | sort; echo '}'; } | tred | dot -Tsvg -Grankdir=LR -o docs/workflow.svg

wheels: envs/wheels/.made ## build the wheels with which envs/Dockerfile needs no package index
envs/wheels/.made: envs/requirements.txt envs/constraints.txt | $(VENV)/.run
	rm -f envs/wheels/*.whl
	$(BIN)/pip wheel --quiet --disable-pip-version-check -c envs/constraints.txt -w envs/wheels -r envs/requirements.txt
	@touch $@

lock: ## update envs/constraints.txt and envs/kiln.yaml (needs the network)
	bash envs/lock.sh

clean: ## remove results, samples and logs, but not .venv
	rm -rf results sample logs benchmarks .snakemake

sample/.made: | $(VENV)/.run
	python -m kiln.sample --out sample
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Kiln needs Python >= 3.11. Name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: envs/requirements.txt envs/constraints.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) -r envs/requirements.txt
	$(PIP) --no-deps --no-build-isolation --editable . # installs the command `kiln` and the logger plugin; rules and workers need neither
	@touch $@

$(VENV)/.test: envs/requirements-test.txt $(VENV)/.run
	$(PIP) -r envs/requirements.txt -r envs/requirements-test.txt
	$(PIP) --no-deps --ignore-requires-python torchgeo==0.10.1 # its reader of embeddings alone; the rest needs torchvision
	@touch $@
