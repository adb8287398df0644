# make demo, make test, make lint, make notebook: each makes .venv if it is missing.
PYTHON ?= python3
VENV := .venv/bin

.PHONY: demo test lint notebook fuzz mutants clean

.venv/ready: requirements.txt requirements-dev.txt
	test -x $(VENV)/python || $(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet torch==2.13.0
	$(VENV)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/ready
	$(VENV)/python -m tools.demo

test: .venv/ready
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -m "not gpu" -n 2

lint: .venv/ready
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy models tasks pipeline tools benchmarks analysis pred.py eval.py collect_results.py

notebook: .venv/ready
	$(VENV)/python tools/run_notebook.py

fuzz: .venv/ready
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -m fuzz tests/test_fuzz_scripts.py

mutants: .venv/ready
	OMP_NUM_THREADS=1 $(VENV)/python -m tools.mutants

clean:
	rm -rf .venv
