# Everything runs in .venv, which is made on first use from the pinned versions in constraints-3.11.txt.
PYTHON ?= $(shell for python in python3.11 python3; do $$python -c '' 2>/dev/null && echo $$python && break; done)
VENV := .venv
INSTALLED := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints-3.11.txt)
# Test processes: make test WORKERS=4 on a larger machine, WORKERS=0 for one that can be debugged.
WORKERS ?= 2

export OMP_NUM_THREADS ?= 1

.PHONY: help setup quickstart test test-slurm test-machines chaos chaos-reduced prove prove-five prove-reduced fuzz bench lint format
help:
	@echo "make setup       create .venv and install everything into it"
	@echo "make quickstart  raw text to a trained, exported Llama in a few minutes, in runs/quickstart/"
	@echo "make test        the default test suite (WORKERS=4: in four processes)"
	@echo "make test-slurm  the launcher on a real SLURM that it starts here; as root, on Debian"
	@echo "make test-machines  the launcher over ssh and doctor in networks with a bad node; as root"
	@echo "make prove       111 layouts against one process, in float64"
	@echo "make prove-reduced  14 of them, for CI"
	@echo "make prove-five  all five axes at once: 32 processes, 5 GB"
	@echo "make chaos       50 kills of random ranks in one run, and every other fault; nothing may be lost"
	@echo "make chaos-reduced  5 kills and a torn checkpoint, for CI"
	@echo "make fuzz        every file parser with 1,000 changed files each"
	@echo "make bench       run every benchmark of a CPU: step, loader, tokenizers, checkpoints, start, restart"
	@echo "make lint        ruff: rules and formatting"
	@echo "make format      let ruff mend what it can"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints-3.11.txt
	@test -n "$(PYTHON)" || { echo "No python3 found. Install Python 3.11."; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v[:2] == (3, 11) or sys.exit(f"$(PYTHON) is Python {v[0]}.{v[1]}; \
	llama-train is tested on 3.11 only. Give one with: make setup PYTHON=/path/to/python3.11")'
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH)"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check $(TORCH)
	@echo "Installing llama-train and what its tests need"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-3.11.txt -e '.[test]'
	@echo "Compiling the kernels of the data pipeline"
	@$(VENV)/bin/python -m data_pipeline.warm_up
	@touch $@

quickstart: $(INSTALLED)
	@$(VENV)/bin/python examples/quickstart.py

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m "not slow and not gpu and not slurm and not machines" -n $(WORKERS) --dist loadfile

test-slurm: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slurm tests/slurm

test-machines: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m machines tests/launch

prove: $(INSTALLED)
	$(VENV)/bin/python -m llama_train.prove experiment=quickstart prove.matrix=full

FIVE = pipeline data_replicate data_shard context tensor
prove-five: $(INSTALLED)
	$(VENV)/bin/python -m llama_train.prove experiment=quickstart $(FIVE:%=layout.%=2) prove.ranks=32

prove-reduced: $(INSTALLED)
	$(VENV)/bin/python -m llama_train.prove experiment=quickstart prove.matrix=reduced

chaos: $(INSTALLED)
	$(VENV)/bin/python -m tests.faults.chaos --kills 50

fuzz: $(INSTALLED)
	$(VENV)/bin/python -m pytest tests/faults/test_fuzz*.py --hypothesis-profile=long --timeout=1800

chaos-reduced: $(INSTALLED)
	$(VENV)/bin/python -m tests.faults.chaos --kills 5 --reduced

bench: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.step
	$(VENV)/bin/python -m benchmarks.step --compile
	$(VENV)/bin/python -m benchmarks.step --trainer
	$(VENV)/bin/python -m benchmarks.loader --tokens 16000000
	$(VENV)/bin/python -m benchmarks.tokenizers --megabytes 4
	$(VENV)/bin/python -m benchmarks.checkpoint --mebibytes 256 --steps 40 --rounds 2
	$(VENV)/bin/python -m benchmarks.startup
	$(VENV)/bin/python -m benchmarks.restart

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
