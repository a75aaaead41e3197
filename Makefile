# Two commands do everything on a fresh machine: `make demo` and `make test`. Each installs what it needs into .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed

# make demo: another data set in the official layout, a checkpoint to use instead of training, where to write.
DATA ?=
CKPT ?=
OUT ?= runs/demo
# make test: how many processes share the tests.
JOBS ?= 2

.PHONY: help setup demo live-demo test test-slow test-gpu check format benchmarks images monitoring-demo clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo DATA=<folder in the official layout> [CKPT=best.pth.tar] [OUT=runs/demo]"
	@echo "  make live-demo [DATA=<folder>] [ARTIFACT=<folder>] [LIVE_FLAGS='--decisions 3']"

setup: $(STAMP) ## Install everything into .venv (the other targets call it)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh scripts/debian-packages.sh scripts/triton.sh
	@scripts/setup.sh $(VENV)

demo: $(STAMP) ## Data, training, evaluation, export, server, one decision: on CPU, under 8 minutes
	@$(PY) scripts/demo.py --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(CKPT),--ckpt "$(CKPT)")

live-demo: $(STAMP) ## The live console on the demo's scenes: cameras, triggers, decisions, the page; after `make demo`
	@$(PY) scripts/live_demo.py --data "$(or $(DATA),$(OUT)/data)" --artifact "$(or $(ARTIFACT),$(OUT)/artifact)" $(LIVE_FLAGS)

test: check ## Every check and every fast test
	$(PY) -m pytest -m "not slow and not gpu" -n $(JOBS) --dist loadfile --durations 20

test-slow: $(STAMP) ## Full-size work of minutes
	$(PY) -m pytest -m slow

test-gpu: $(STAMP) ## What needs a CUDA device
	$(PY) -m pytest -m gpu

check: $(STAMP) ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmarks: $(STAMP) ## Every benchmark that runs on a CPU, to the terminal
	$(PY) benchmarks/decode.py
	$(PY) benchmarks/dataloader.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/train_step.py --backbones mc3_18 --size 32 --frames 8
	$(PY) benchmarks/backbones.py
	$(PY) benchmarks/serve.py --artifact "$(OUT)/artifact"
	$(PY) benchmarks/serve_load.py --artifact "$(OUT)/artifact" --only saturation open-loop batching
	$(PY) benchmarks/triton_batching.py --artifact "$(OUT)/artifact"
	$(PY) benchmarks/live.py --artifact "$(OUT)/artifact"
	$(PY) benchmarks/live_cameras.py --seconds 20

images: $(STAMP) ## The container images, and what is in them; IMAGES="serving", LOCAL_BASE=1 (docs/images.md)
	@scripts/images.sh $(IMAGES)

monitoring-demo: $(STAMP) ## The platform under load, Prometheus, and a page with the dashboards' panels
	@$(PY) -m scripts.monitoring.demo $(if $(ARTIFACT),--artifact "$(ARTIFACT)")

clean: ## Remove caches; keeps .venv and runs/
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
