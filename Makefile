# Every target sets up what it needs in .venv, on a machine with make and Python 3.11 to 3.13.
#
#   make quickstart ARGS="--set=optimizer.learning_rate=1e-4"    more flags for the command
#   make clean test PYTHON=/opt/python3.12/bin/python3           a Python of your choice
#   make test WORKERS=1                                          how many tests run side by side

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

WORKERS ?= 2
PY := .venv/bin/python
TORCH_CPU := https://download.pytorch.org/whl/cpu
PYTHONS := python3.11 python3.12 python3.13 python3
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# The GPU kernels need jax 0.11, their interpreter 0.12, both of them Python 3.12: an environment of their own.
GPU_PY := .venv/gpu/bin/python
GPU_PYTHONS := .venv/bin/python python3.12 python3.13 python3
GPU_RANGE := import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))
GPU_FOUND = $(firstword $(foreach p,$(if $(PYTHON),"$(PYTHON)") $(GPU_PYTHONS),\
  $(if $(shell $(p) -c '$(GPU_RANGE)' 2>/dev/null && echo yes),$(p))))
RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist loadfile --durations=25

# Tests run on the CPU unless told otherwise. The other targets leave the choice to JAX and to you.
test test-all test-reference test-gpu-kernels: export JAX_PLATFORMS := $(or $(JAX_PLATFORMS),cpu)
# Tests of the launcher that need xmanager are skipped without this.
test test-all: export OPSD_LAUNCH_PYTHON := $(or $(OPSD_LAUNCH_PYTHON),$(wildcard $(CURDIR)/.venv/launch/bin/python))

help: ## this list
	@echo 'make TARGET [ARGS="..."]    runs on a CPU; the first call installs into .venv (minutes)'
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' Makefile | while read -r name text; do \
	  printf '  %-17s %s\n' "$$name" "$$text"; done

quickstart: .venv/.base ## train a small model by self-distillation, into runs/quickstart
	$(PY) -m experiments.train --experiment=quickstart --workdir=runs/quickstart $(ARGS)

quickstart-seeds: .venv/.base ## the same with five seeds, for error bars
	$(PY) -m experiments.seeds --experiment=quickstart --seeds=0,1,2,3,4 \
	  --workdir=runs/quickstart-seeds $(ARGS)

# Every seed compiles the same programs: the first one writes them down for the others.
recipes recipes-grades: export JAX_COMPILATION_CACHE_DIR := $(or $(JAX_COMPILATION_CACHE_DIR),$(CURDIR)/runs/compiled)
recipes: .venv/.base ## compare every method on one task with five seeds, into runs/recipes (an hour)
	$(PY) -m experiments.seeds --experiment=misconceptions --vary_data --workdir=runs/recipes $(ARGS)

recipes-grades: .venv/.base ## four of them where the misconception is rarer and more common
	for share in 0.35 0.95; do \
	  $(PY) -m experiments.seeds --experiment=misconceptions_graded --vary_data --seeds=0,1,2 \
	    --set=data.chains.misconception=$$share --workdir=runs/recipes-grades/$$share $(ARGS) || exit 1; \
	done

launch: .venv/.base .venv/.launch ## start a run or a sweep through xmanager: ARGS="--sweep=seed=0,1 -- experiments.train ..."
	.venv/launch/bin/python -m experiments.launch_xm $(ARGS)

# What is timed beside ours has environments of its own, unless the flags name other peers, or none.
bench: .venv/.base $(if $(findstring --peers,$(ARGS))$(findstring --smoke,$(ARGS)),,bench-peers) ## time rollouts and a step beside other programs, into runs/bench; ARGS=--peers= for ours alone
	$(PY) -m experiments.bench --workdir=runs/bench $(ARGS)

bench-peers: .venv/.base ## install what bench times beside ours (1 GB); what cannot be is left out
	@$(MAKE) --no-print-directory .venv/.peers || echo 'google-tunix is not there: its rows will say so.'
	@$(MAKE) --no-print-directory .venv/.peers-torch || echo 'PyTorch is not there: its rows will say so.'

bench-kernel: .venv/.base ## time the divergence against whole logits, into runs/bench-kernel
	$(PY) -m kernels.linear_divergence.bench --out=runs/bench-kernel/results.json $(ARGS)

bench-tpu: export TPU_LIBRARY_PATH := $(or $(TPU_LIBRARY_PATH),$(CURDIR)/.venv/libtpu/libtpu/libtpu.so)
bench-tpu: .venv/.base .venv/.tpu-compile ## estimate the divergence's time on TPUs, into runs/bench-tpu
	$(PY) -m kernels.linear_divergence.tpu_table --out=runs/bench-tpu/results.json $(ARGS)

bench-tpu-decode: export TPU_LIBRARY_PATH := $(or $(TPU_LIBRARY_PATH),$(CURDIR)/.venv/libtpu/libtpu/libtpu.so)
bench-tpu-decode: .venv/.base .venv/.tpu-compile ## plan a decode step for TPUs: memory, exchanges, bytes over the floor
	$(PY) -m experiments.benching.tpu_decode

plan: export TPU_LIBRARY_PATH := $(or $(TPU_LIBRARY_PATH),$(CURDIR)/.venv/libtpu/libtpu/libtpu.so)
plan: .venv/.base .venv/.tpu-compile ## what a run would take on a TPU slice, into runs/plan; ARGS="--experiment=... --topology=v5e:16x16"
	mkdir -p runs/plan
	$(PY) -m experiments.plan --out=runs/plan/results.json $(ARGS)

bench-gpu: .venv/.base .venv/.gpu-peers ## time the divergence on a GPU beside PyTorch's, into runs/bench-gpu
	$(PY) -m kernels.linear_divergence.bench_gpu --out=runs/bench-gpu/results.json $(ARGS)

bench-grading: .venv/.base ## time the grading of mathematics, into runs/bench-grading
	$(PY) -m experiments.bench_grading --workdir=runs/bench-grading $(ARGS)

test: .venv/.test ## the fast tests
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: export TPU_LIBRARY_PATH := $(or $(TPU_LIBRARY_PATH),$(CURDIR)/.venv/libtpu/libtpu/libtpu.so)
test-all: .venv/.test .venv/.tpu-compile ## all tests, and the kernels compiled for TPUs and GPUs
	$(PYTEST) $(ARGS)
	$(if $(GPU_FOUND),$(MAKE) test-gpu-kernels ARGS=,@echo 'The GPU kernels are not tested: no Python 3.12 or 3.13.')

test-gpu-kernels: export CUDA_PLUGIN_PATH := $(or $(CUDA_PLUGIN_PATH),$(CURDIR)/.venv/cuda)
test-gpu-kernels: .venv/.gpu-kernels ## the GPU kernels, simulated and compiled; needs Python 3.12 or 3.13
	$(GPU_PY) -m pytest -n $(WORKERS) tests/kernels/linear_divergence_gpu_test.py \
	  tests/kernels/gpu_compile_test.py $(ARGS)

test-reference: .venv/.reference ## the tests against PyTorch code, installed first (1 GB or more)
	$(PY) -m pytest -m reference $(ARGS)

lint: .venv/.test ## style and likely mistakes
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

check: lint test ## what a change must pass

clean: ## remove .venv, caches and build products; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, and a stamp for each list installed into it: a changed list is installed again.

.venv/.base: .venv/.created requirements.txt
	@echo 'Installing requirements.txt into .venv ...'
	$(PIP) -r requirements.txt
	@touch $@

.venv/.test: .venv/.base requirements/test.txt
	$(PIP) -r requirements.txt -r requirements/test.txt
	@touch $@

.venv/.tpu-compile: .venv/.test requirements/tpu-compile.txt
	@echo 'Installing the TPU compiler into .venv/libtpu ...'
	rm -rf .venv/libtpu
	$(PIP) --target .venv/libtpu -r requirements/tpu-compile.txt
	@touch $@

.venv/.gpu-kernels: .venv/.created requirements.txt requirements/test.txt requirements/gpu-compile.txt
	@if [ -z '$(GPU_FOUND)' ]; then \
	  echo 'No Python 3.12 or 3.13 here, which the GPU kernels need: tried $(GPU_PYTHONS).' >&2; \
	  echo 'Install one, or name it: make test-gpu-kernels PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	fi
	@echo 'Installing into .venv/gpu, and the compiler for GPUs into .venv/cuda (500 MB) ...'
	$(GPU_FOUND) -m venv --clear .venv/gpu
	$(GPU_PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements/test.txt
	rm -rf .venv/cuda
	@version=$$($(GPU_PY) -c 'import jaxlib; print(jaxlib.__version__)') && \
	$(GPU_PY) -m pip install --quiet --disable-pip-version-check --target .venv/cuda --no-deps \
	  -r requirements/gpu-compile.txt "jax-cuda13-plugin==$$version" "jax-cuda13-pjrt==$$version"
	@touch $@

.venv/.gpu-peers: .venv/.created requirements/gpu-peers.txt
	@echo 'Installing PyTorch and Liger into .venv/gpu-peers ...'
	$(PY) -m venv --clear .venv/gpu-peers
	.venv/gpu-peers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/gpu-peers.txt
	@touch $@

# uv chooses versions in seconds, for which pip takes minutes here.
.venv/.launch: .venv/.created requirements/launch.txt
	@echo 'Installing xmanager into .venv/launch (600 MB) ...'
	$(PY) -m venv --clear .venv/launch
	.venv/launch/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/launch/bin/python -m uv pip install --quiet --python=.venv/launch/bin/python -r requirements/launch.txt \
	  || .venv/launch/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/launch.txt
	@touch $@

.venv/.peers: .venv/.created requirements/peers.txt
	@echo 'Installing google-tunix into .venv/peers ...'
	$(PY) -m venv --clear .venv/peers
	.venv/peers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/peers.txt
	@touch $@

.venv/.peers-torch: .venv/.created requirements/peers-torch.txt
	@echo 'Installing PyTorch and transformers into .venv/peers-torch ...'
	$(PY) -m venv --clear .venv/peers-torch
	@.venv/peers-torch/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 \
	  --index-url $(TORCH_CPU) torch || echo 'Going on with the default build.'
	.venv/peers-torch/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/peers-torch.txt
	@touch $@

.venv/.reference: .venv/.test requirements/reference.txt
	@echo 'Installing PyTorch and others into .venv ...'
	@$(PIP) --retries 1 --index-url $(TORCH_CPU) torch || echo 'Going on with the default build.'
	$(PIP) -r requirements.txt -r requirements/test.txt -r requirements/reference.txt
	@touch $@

# `command -v` alone is not enough to find a Python: version managers leave shims that fail.
.venv/.created:
	@if .venv/bin/python -c '$(RANGE)' 2>/dev/null && $(PY) -m pip --version >/dev/null 2>&1; then \
	  echo 'Using the .venv that is here'; touch $@; exit 0; \
	fi; \
	found=; for candidate in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
	  "$$candidate" -c '$(RANGE)' 2>/dev/null && found="$$candidate" && break; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'No Python 3.11, 3.12 or 3.13 here: tried $(or $(PYTHON),$(PYTHONS)).' >&2; \
	  echo 'Install one, or name it: make PYTHON=/path/to/python3.12 ...' >&2; \
	  exit 1; \
	fi; \
	echo "Creating .venv with $$("$$found" -V) ($$found)"; \
	"$$found" -m venv --clear .venv || { \
	  rm -rf .venv; \
	  echo "$$found cannot create a virtual environment: see above." >&2; \
	  echo 'On Debian and Ubuntu: apt install python3-venv (or python3.12-venv, ...).' >&2; \
	  echo 'Or use another Python: make PYTHON=/path/to/python3.12 ...' >&2; \
	  exit 1; \
	}
	@touch $@

.PHONY: help quickstart quickstart-seeds recipes recipes-grades launch plan bench bench-peers bench-kernel \
  bench-tpu bench-tpu-decode bench-gpu bench-grading test test-all test-gpu-kernels test-reference lint check clean
