# Everything one does with a checkout. `make` alone lists it.

VENV   := .venv
BIN    := $(VENV)/bin
# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 serve` names one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
            if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
LINT   := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
# What `make serve` serves; `make serve MODELS="-m Qwen/Qwen3-0.6B" PORT=9000` serves something else.
MODELS ?= -m smollm2 -m minilm
PORT   ?= 8080
ARGS   ?=
CSRC   := CMakeLists.txt $(shell find csrc -name tests -prune -o -name '*.cpp' -print -o -name '*.h' -print -o -name '*.cmake' -print)

.DEFAULT_GOAL := help
.PHONY: help serve build test lint format docs bench soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## serve the two starter models on 127.0.0.1:8080 (sets everything up first)
	@exec $(BIN)/inferloom serve $(MODELS) --port $(PORT) $(ARGS)

build: $(VENV)/.dev ## compile csrc/ again after a change; what did not change is not compiled
	@if command -v $(CXX) > /dev/null; then csrc/build.sh $(BIN)/python && touch $(VENV)/.serve; \
	else echo "csrc: NOT COMPILED: there is no $(CXX); everything runs on torch's operators"; fi

test: build ## lint, then every test (ARGS="tests/engine -x" narrows it to those of Python)
	@$(LINT); linted=$$?; \
	native=0; if [ -z "$(ARGS)" ]; then csrc/tests/run.sh $(BIN); native=$$?; fi; \
	$(BIN)/python -m pytest $(ARGS); tested=$$?; \
	if [ $$linted -ne 0 ]; then echo "make lint failed: see above the tests"; fi; \
	if [ $$native -ne 0 ]; then echo "the standalone tests of csrc/ failed: see above the tests"; fi; \
	exit $$(( linted | native | tested ))

lint: $(VENV)/.dev ## ruff, mypy and the order of the rooms
	@$(LINT)

format: $(VENV)/.dev ## let ruff format and fix the sources
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: build ## run every snippet of README.md and docs/ against a real server
	$(BIN)/python -m pytest tests/docs $(ARGS)

bench: build ## the benchmarks, beside peers started in the same run (about half an hour)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/engine.py

soak: $(VENV)/.dev ## 200 swaps of four models under request load, then random histories of models (about ten minutes)
	$(BIN)/python benchmarks/soak.py $(ARGS)
	$(BIN)/python -m pytest tests/catalog/test_state_machine.py --hypothesis-profile=soak --timeout=1800

clean: ## remove the virtual environments and every cache of this checkout
	rm -rf $(VENV) .peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache inferloom/kernels/native/*.so

# The stamps are older than pyproject.toml after its dependencies change: then pip runs again.
$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "error: no Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3.12 serve" >&2; exit 1; fi
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make a virtual environment; install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.serve: pyproject.toml $(CSRC) | $(BIN)/python
	@echo "installing inferloom into $(VENV) (the first time this takes a minute or two)"
	@$(PIP) install -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing inferloom and what its tests need into $(VENV)"
	@$(PIP) install -e '.[dev]' --config-settings=wheel.cmake=false
	@touch $@
