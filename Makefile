# Every target is described by the comment behind its name: `make help`.
PYTHON ?= python3
# Relative, so that paths with spaces never reach make.
BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check format lint type check-kernels test-gpu reliability bench-train bench-decode bench-ops bench-gpu clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

install: $(STAMP) ## make .venv and install the tested versions into it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP) ## train, translate and score a small model on generated data (ten minutes)
	$(BIN)/lcmt-train experiment=demo run_dir=runs/demo
	printf '%s\n' 'Monday, April 7, 2008' 'Sinhala (Sri Lanka)' '1 kilometer and 19 karats' \
		'France, Pakistan, and Brunei' 'May and October' | \
		awk '{ print; print | "cat >&2" }' | $(BIN)/lcmt-translate run_dir=runs/demo
	$(BIN)/lcmt-eval run_dir=runs/demo

test: $(STAMP) ## run the whole test suite
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

check: lint type test ## what continuous integration runs
	$(BIN)/python scripts/check_kernels.py --reduced

check-kernels: $(STAMP) ## check the kernels without a GPU: numbers, spills, bytes moved (20 minutes)
	$(BIN)/python scripts/check_kernels.py

test-gpu: $(STAMP) ## run the tests that need a GPU, under compute-sanitizer too where that is
	$(BIN)/python scripts/test_gpu.py

reliability: $(STAMP) ## interrupt training runs hundreds of times (an hour)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --thorough --figures docs/checks.md \
		tests/test_kills.py tests/test_end_to_end.py tests/train tests/nasty tests/test_configs.py

format: $(STAMP) ## rewrite the code in the house style
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

lint: $(STAMP) ## find mistakes and departures from the house style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP) ## check the types of the library
	$(BIN)/mypy

bench-train: $(STAMP) ## time training beside other toolkits (LCMT_DATA holds multi30k/; docs/speed.md says how peers get in)
	$(BIN)/python scripts/bench_train.py

bench-decode: $(STAMP) ## time translating beside a plain search and CTranslate2 (LCMT_DATA holds multi30k/)
	$(BIN)/python scripts/bench_decode.py

bench-ops: $(STAMP) ## time the convolutions on one and two threads
	$(BIN)/python scripts/bench_ops.py

bench-gpu: $(STAMP) ## time convolutions, cross-entropy, dropout and training steps on a GPU
	$(BIN)/python scripts/bench_gpu.py

clean: ## remove .venv, caches and build output; runs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
