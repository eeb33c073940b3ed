# make demo: set up, run the demo experiment, print its table.   make test: set up, run the tests.   make bench: measure.
# make notebook: run workflow/notebooks/explore.ipynb on the finished experiment.
# requirements.lock pins all versions with hashes; make lock updates it.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
SHELL := /bin/bash
# Versions come from the lock alone, whatever constraints this machine's pip is configured with.
PIP := PIP_CONSTRAINT=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip

# An environment that was moved with its folder, or whose Python is gone, is rebuilt.
ALIVE := $(shell $(BIN)/python -c 0 2> /dev/null && grep -qsF '$(CURDIR)/$(BIN)/python' $(BIN)/pip && echo yes)
ifneq ($(ALIVE),yes)
$(shell rm -f $(INSTALLED))
endif

.PHONY: setup demo test bench notebook check format lock clean

setup: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not on the PATH. Install Python 3.11.4 or later, or: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || { echo "$$(command -v $(PYTHON)) is $$($(PYTHON) -V); 3.11.4 or later is needed. Another one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@test '$(ALIVE)' = yes || test ! -e $(VENV) || echo "$(VENV) belongs to another folder or Python: rebuilding it"
	@test '$(ALIVE)' = yes || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@echo "Installing the locked dependencies into $(VENV) (once; a few minutes, 7 GB)"
	@set -o pipefail; $(PIP) install --progress-bar off --require-hashes --no-deps -r requirements.lock | awk '\
		/^Collecting/ && ++n % 25 == 0 {print "  " n " packages"; fflush()} \
		/^Installing/ {print "  " n " packages, unpacking (a minute or two)"; fflush()}'
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@grep -qx 'preset: demo' params.yaml || { echo "params.yaml is not the demo's: semcorr preset demo first, or: semcorr run" >&2; exit 2; }
	@export PATH="$(CURDIR)/$(BIN):$$PATH" && semcorr run && semcorr verify

test: setup
	@export PATH="$(CURDIR)/$(BIN):$$PATH" && pytest -n 4 --maxschedchunk 1

bench: setup
	@for name in extract match evaluate willow evaluator finetune spair_counts noop; do $(BIN)/python benchmarks/$$name.py || exit 1; done

notebook: setup
	@cd workflow/notebooks && $(CURDIR)/$(BIN)/jupyter execute --inplace --NotebookClient.record_timing=False explore.ipynb

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check Snakefile workflow
	@export PATH="$(CURDIR)/$(BIN):$$PATH" && ! snakemake --lint 2>&1 | grep '^    [*] ' | grep -v 'Specify a conda environment'

format: setup
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/snakefmt Snakefile workflow

lock: setup
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header --quiet --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) .snakemake logs
