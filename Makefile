# make run: the main job from raw text to a fine-tuned model.   make test: lint, types, tests.   Nothing else to install.
.PHONY: help run test contracts lint clean
.DEFAULT_GOAL := help

# The newest Python that works (a version manager's stand-in may exist and fail), unless PYTHON=... says which.
WORKS = -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)'
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do $$p $(WORKS) 2>/dev/null && echo $$p && break; done)
VERSION = $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
BIN = .venv/bin
PY = $(BIN)/python

help:
	@head -1 Makefile

# One stamp per lock file: a second call installs nothing, a changed lock installs again.
.venv/.python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv found; install one, or give PYTHON=/path/to/python3"; exit 2; }
	@echo "== $(PYTHON) -m venv .venv"
	@$(PYTHON) -m venv .venv && echo $(VERSION) > $@

.venv/.base: .venv/.python setup.cfg $(wildcard locks/*.txt)
	@lock=locks/$$(cat .venv/.python).txt; echo "== installing $$lock"; \
	  test -f $$lock || { echo "error: no lock file for this Python; there are: $$(ls locks)"; exit 2; }; \
	  $(BIN)/pip install --quiet --disable-pip-version-check -r $$lock && \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . && touch $@

.venv/.dev: .venv/.base
	@lock=locks/$$(cat .venv/.python)-dev.txt; echo "== installing $$lock"; \
	  $(BIN)/pip install --quiet --disable-pip-version-check -r $$lock && touch $@

MODULE = @echo "== python -m $(1)"; $(PY) -m $(1)

run: .venv/.base
	$(call MODULE,tools.train_tokenizer)
	$(call MODULE,lm.main --config=configs/tiny.py --workdir=runs/tiny)
	$(call MODULE,lm.main --config=configs/tiny_mlm.py --workdir=runs/tiny_mlm)
	$(call MODULE,tools.sweep experiments/docstring_module/sweep.py --workdir=runs/docstring_module)
	$(call MODULE,tools.generate --workdir=runs/tiny --prompt="The with statement" --max_new_tokens=64)
	$(call MODULE,tools.report runs/)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python .venv lm tools configs

test: lint
	JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 --dist worksteal -m "not slow" --durations=10

# Every task, family and method with every other, where `make test` runs a covering set.
contracts: .venv/.dev
	JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 -m slow

clean:
	rm -rf .venv .cache
